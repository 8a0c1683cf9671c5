"""Packages: which are there, whether they fit each other, and whether they can be imported."""

import importlib
import importlib.util
import platform
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from types import ModuleType

from portraitmatting.doctor.finding import Finding

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pymatting", "numba")
OPENCVS = (
    "opencv-python",
    "opencv-contrib-python",
    "opencv-python-headless",
    "opencv-contrib-python-headless",
)
"""Distributions that all install the one folder cv2."""
EXTRAS = {
    "video": ("av",),
    "virtualcam": ("pyvirtualcam",),
    "tensorboard": ("tensorboard",),
    "onnx": ("onnx", "onnxruntime"),
    "web": ("gradio",),
    "distributed": ("ray", "fsspec"),
    "completion": ("shtab",),
}
"""Extra to the modules that come with it."""
PURPOSES = {
    "video": "video files with their sound",
    "virtualcam": "the result as a camera that meeting programs can choose",
    "tensorboard": "a training run's curves in TensorBoard",
    "onnx": "export to ONNX, and running what was exported",
    "web": "the page in a browser",
    "distributed": "folders and buckets worked off by several machines",
    "completion": "completion of commands and options in bash and zsh",
}


def versions() -> list[Finding]:
    """What is installed; a package that is needed and missing is wrong."""
    found = [Finding("python", f"{platform.python_version()}, {platform.system()}")]
    for name in PACKAGES:
        if version := installed(name):
            found.append(Finding(name, version))
        else:
            found.append(Finding(name, "missing", f"{name} is not installed: pip install {name}"))
    return found


def installed(name: str) -> str | None:
    """A distribution's version, None without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[Finding]:
    """What the installed package asks for and has not got in that version."""
    try:
        wanted = metadata.requires("portraitmatting") or []
    except metadata.PackageNotFoundError:
        return []  # a copy that is merely on the path asks for nothing
    return unmet(wanted)


def unmet(wanted: Sequence[str]) -> list[Finding]:
    """Of requirements as packages state them, those whose version does not fit, extras aside."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []  # it comes with timm, whose absence is said elsewhere

    findings = []
    for requirement in map(Requirement, wanted):
        marker, version = requirement.marker, installed(requirement.name)
        if version is None or (marker and not marker.evaluate({"extra": ""})):
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            asked = f"{requirement.name}{requirement.specifier}"
            wrong = f'{requirement.name} is {version}, needed is: pip install "{asked}"'
            findings.append(Finding(requirement.name, version, wrong))
    return findings


def opencv(build: Callable[[], str] | None = None) -> list[Finding]:
    """Which OpenCV there is, whether it can open windows, and whether it is one."""
    there = {name: version for name in OPENCVS if (version := installed(name))}
    text = ", ".join(f"{name} {version}" for name, version in there.items())
    cv2, wrong = attempt("cv2")
    if cv2 is None:
        return [Finding("opencv", text or "missing", wrong)]
    if len(there) > 1:
        wrong = (
            f"{' and '.join(there)} install the same folder and overwrite each other: "
            f"pip uninstall {' '.join(there)}, then pip install opencv-python"
        )
    elif re.search(r"GUI:\s+NONE", (build or cv2.getBuildInformation)()):
        wrong = (
            "this OpenCV is built without windows, which `portraitmatting webcam` needs: "
            "pip uninstall opencv-python-headless, then pip install opencv-python"
        )
    return [Finding("opencv", text or f"cv2 {cv2.__version__}", wrong)]


def imports() -> list[Finding]:
    """Those of PyTorch's family that cannot be imported, and why."""
    for name in ("torch", "torchvision", "timm"):
        _, wrong = attempt(name)
        if wrong and installed(name):
            # The others build on it and would only say the same again.
            return [Finding(name, "cannot be imported", wrong)]
    return []


def attempt(name: str) -> tuple[ModuleType | None, str | None]:
    """A module, or None and in words why it cannot be imported."""
    try:
        return importlib.import_module(name), None
    except Exception as error:  # a broken binary may raise whatever it likes
        return None, explain(name, error)


def explain(name: str, error: Exception) -> str:
    """One line on a failed import: the cause if it is a known one, and the way out."""
    said = " ".join(str(error).split())[:200]
    if name == "cv2" and re.search(r"lib(GL|gthread|glib)", said):
        return f"OpenCV lacks a system library ({said}): apt-get install libgl1 libglib2.0-0"
    if name == "torchvision":
        have, partner = installed("torch") or "?", installed("torchvision") or "?"
        return (
            f"torchvision {partner} does not fit torch {have}{_partner(partner)}, and timm needs "
            f"both ({said}): pip install --force-reinstall torch torchvision"
        )
    return f"{name} cannot be imported ({type(error).__name__}: {said}): pip install {name}"


def _partner(torchvision: str) -> str:
    """Which torch a torchvision is made for: their minor versions have kept 15 apart since 0.15."""
    minor = re.match(r"0\.(\d+)", torchvision)
    return f" (it is made for torch 2.{int(minor[1]) - 15})" if minor else ""


def importable(module: str) -> bool:
    """Whether there is such a module, a mere folder of its name in the way aside."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def extras() -> list[Finding]:
    """What is there beyond the necessary, and what the rest would be for; nothing wrong here."""
    return [
        Finding(
            f"[{extra}]",
            "installed"
            if all(map(importable, modules))
            else f'not installed; for {PURPOSES[extra]}: pip install -e ".[{extra}]"',
        )
        for extra, modules in EXTRAS.items()
    ]
