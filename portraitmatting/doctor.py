"""What this environment is, and what is wrong with it in words: `portraitmatting doctor`.

Packages and libraries, devices and threads, the checkpoint. A check returns findings and never
raises for what it finds broken.
"""

import importlib
import importlib.util
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from portraitmatting.checkpoint.registry import SUMS, locate, sha256
from portraitmatting.cli import own_version
from portraitmatting.errors import CheckpointError

PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "safetensors", "pymatting", "numba"),
    *("pillow", "pillow-heif", "pillow-jxl-plugin", "tifffile", "imagecodecs"),
)
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
    "watch": ("watchdog",),
}
"""Extra to the modules that come with it."""
PURPOSES = {
    "video": "video files with their sound",
    "virtualcam": "the result as a camera that meeting programs can choose",
    "tensorboard": "a training run's curves in TensorBoard",
    "onnx": "export to ONNX, and running what was exported",
    "web": "the page in a browser",
    "distributed": "folders and buckets on several machines",
    "completion": "completion of commands and options in bash and zsh",
    "watch": "images matted as they come into a folder",
}
_POOLS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
"""numba's threading layers, best first, and their modules in numba.np.ufunc."""
_LAYER_KINDS = ("default", "safe", "forksafe", "threadsafe")
"""What else NUMBA_THREADING_LAYER may be."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    wrong: str | None = None
    """What is wrong with it and the way out, on one line; None if all is well."""


def examine() -> list[Finding]:
    """Every check in turn."""
    findings = [Finding("portraitmatting", own_version()), *versions()]
    findings += opencv() + requirements() + imports()
    torch, _ = attempt("torch")
    if torch:
        findings += devices(torch) + threads(torch)
    return findings + numba_cache() + checkpoint() + extras()


def versions() -> list[Finding]:
    """What is installed; a package that is needed and missing is wrong."""
    findings = [Finding("python", f"{platform.python_version()}, {platform.system()}")]
    for name in PACKAGES:
        if version := installed(name):
            findings.append(Finding(name, version))
        else:
            findings.append(
                Finding(name, "missing", f"{name} is not installed: pip install {name}")
            )
    return findings


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
        return []  # it comes with timm, whose absence is reported elsewhere

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
    message = " ".join(str(error).split())[:200]
    if name == "cv2" and re.search(r"lib(GL|gthread|glib)", message):
        return f"OpenCV lacks a system library ({message}): apt-get install libgl1 libglib2.0-0"
    if name == "torchvision":
        have, partner = installed("torch") or "?", installed("torchvision") or "?"
        return (
            f"torchvision {partner} does not fit torch {have}{_partner(partner)}, and timm needs "
            f"both ({message}): pip install --force-reinstall torch torchvision"
        )
    return f"{name} cannot be imported ({type(error).__name__}: {message}): pip install {name}"


def _partner(torchvision: str) -> str:
    """Which torch a torchvision is made for: since 0.15 their minor versions differ by 15."""
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


def devices(torch: Any) -> list[Finding]:
    """What PyTorch can compute on, and whether it leaves a GPU unused."""
    from portraitmatting.device import is_hidden, why_idle  # needs a PyTorch that can be imported

    names = ["cpu"]
    if torch.cuda.is_available():
        names += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        names.append("mps")
    wrong = None
    if not torch.cuda.is_available():
        wrong = why_idle(torch.version.cuda, torch.version.hip)
        if is_hidden():
            names.append("GPUs hidden by CUDA_VISIBLE_DEVICES")
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    made_for = f"ROCm {torch.version.hip}" if torch.version.hip else made_for
    return [Finding("torch made for", made_for), Finding("devices", ", ".join(names), wrong)]


def threads(torch: Any) -> list[Finding]:
    """How many threads each library has, and which layer numba runs its on."""
    findings = [
        Finding("processors", str(os.cpu_count())),
        Finding("torch threads", f"{torch.get_num_threads()} ({_backend(torch)})"),
    ]
    cv2, _ = attempt("cv2")
    if cv2:
        findings.append(Finding("opencv threads", str(cv2.getNumThreads())))
    return findings + numba_threads()


def _backend(torch: Any) -> str:
    info = torch.__config__.parallel_info()
    return "OpenMP" if "parallel backend: OpenMP" in info else "native"


def numba_threads(works: Callable[[str], bool] | None = None) -> list[Finding]:
    """The layer that numba, and so pymatting, will choose; `works` says if one can be loaded."""
    numba, wrong = attempt("numba")
    if numba is None:
        return [Finding("numba threads", "none", wrong)]
    if numba.config.DISABLE_JIT:
        wrong = "NUMBA_DISABLE_JIT is set, with which foreground colours take hours: unset it"
        return [Finding("numba threads", "none: compiling is disabled", wrong)]
    asked = numba.config.THREADING_LAYER
    if asked not in (*_POOLS, *_LAYER_KINDS):
        wrong = f"NUMBA_THREADING_LAYER is {asked!r}, which numba does not know: unset it"
        return [Finding("numba threads", str(asked), wrong)]
    order = [asked] if asked in _POOLS else numba.config.THREADING_LAYER_PRIORITY
    layer = next((name for name in order if (works or _loads)(name)), None)
    if layer == "workqueue":
        wrong = (
            "numba's threading layer is workqueue, which two threads may not enter: foreground "
            "colours are estimated one image at a time. Install OpenMP (apt-get install "
            "libgomp1) or TBB (pip install tbb)"
        )
    elif layer is None:
        wrong = (
            f"numba has no threading layer {' or '.join(order)} here: unset NUMBA_THREADING_LAYER, "
            "or install what it names"
        )
    return [Finding("numba threads", f"{numba.config.NUMBA_NUM_THREADS} ({layer})", wrong)]


def _loads(layer: str) -> bool:
    try:
        importlib.import_module(f"numba.np.ufunc.{_POOLS[layer]}")
    except ImportError:
        return False
    return True


def numba_cache() -> list[Finding]:
    """Where numba keeps what it has compiled of pymatting; wrong if it cannot keep it."""
    package = importlib.util.find_spec("pymatting")
    if package is None or package.origin is None or attempt("numba")[0] is None:
        return []  # reported elsewhere
    caching = importlib.import_module("numba.core.caching")
    source = Path(package.origin).parent / "foreground" / "estimate_foreground_ml.py"
    namespace: dict[str, Any] = {}
    exec(compile("def function(): pass", str(source), "exec"), namespace)
    try:
        folder = caching.FunctionCache(namespace["function"]).cache_path
    except Exception as error:
        wrong = (
            "numba can write neither beside pymatting nor in a home folder, so that foreground "
            "colours are compiled anew, for a minute, in every process: set NUMBA_CACHE_DIR to a "
            f"folder that can be written ({' '.join(str(error).split())[:100]})"
        )
        return [Finding("numba cache", "none", wrong)]
    return [Finding("numba cache", str(folder))]


def checkpoint() -> list[Finding]:
    """The default checkpoint's file and sha256; wrong if it is missing, a pointer to the weights
    instead of them, damaged, or not the listed one."""
    try:
        path, listed = locate()
    except CheckpointError as error:
        return [Finding("checkpoint", "missing", str(error))]
    digest = sha256(path)
    known = "not listed" if not listed else "as listed" if digest == listed else "not as listed"
    wrong = None
    if attempt("torch")[0]:  # what is wrong with PyTorch, if anything, is reported elsewhere
        from portraitmatting.checkpoint.format import read_state

        try:
            read_state(path)
        except CheckpointError as error:
            wrong = str(error)
    if not wrong and listed and digest != listed:
        wrong = f"{path}: {SUMS} lists sha256 {listed}: damaged or another version, fetch it again"
    return [
        Finding("checkpoint", path.name, wrong),
        Finding("sha256", f"{digest} ({known})"),
    ]
