"""The environment, and what is wrong with it: `portraitmatting doctor`.

It checks packages and libraries, devices and threads, and the checkpoint. A check returns findings;
it never raises an error for something broken.
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
"""Distributions that all install the folder cv2."""
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
"""The modules of each extra."""
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
"""Further values of NUMBA_THREADING_LAYER."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    wrong: str | None = None
    """What is wrong, and the way out, in one line; None if nothing is."""


def examine() -> list[Finding]:
    """Every check in turn."""
    findings = [Finding("portraitmatting", own_version()), *versions()]
    findings += opencv() + requirements() + imports()
    torch, _ = attempt("torch")
    if torch:
        findings += devices(torch) + threads(torch)
    return findings + numba_cache() + checkpoint() + extras()


def versions() -> list[Finding]:
    """The versions of packages; those that are missing are wrong."""
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
    """The requirements of this package whose installed version does not fit."""
    try:
        requirements = metadata.requires("portraitmatting") or []
    except metadata.PackageNotFoundError:
        return []  # a copy on the path that is not installed
    return unmet(requirements)


def unmet(requirements: Sequence[str]) -> list[Finding]:
    """Those of a package's requirements, except extras, whose installed version does not fit."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []  # it comes with timm, whose absence is reported elsewhere

    findings = []
    for requirement in map(Requirement, requirements):
        marker, version = requirement.marker, installed(requirement.name)
        if version is None or (marker and not marker.evaluate({"extra": ""})):
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            needed = f"{requirement.name}{requirement.specifier}"
            wrong = f'{requirement.name} is {version}, needed is: pip install "{needed}"'
            findings.append(Finding(requirement.name, version, wrong))
    return findings


def opencv(build: Callable[[], str] | None = None) -> list[Finding]:
    """OpenCV: whether it is installed once, and can open windows."""
    versions = {name: version for name in OPENCVS if (version := installed(name))}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    cv2, wrong = attempt("cv2")
    if cv2 is None:
        return [Finding("opencv", text or "missing", wrong)]
    if len(versions) > 1:
        wrong = (
            f"{' and '.join(versions)} install the same folder and overwrite each other: "
            f"pip uninstall {' '.join(versions)}, then pip install opencv-python"
        )
    elif re.search(r"GUI:\s+NONE", (build or cv2.getBuildInformation)()):
        wrong = (
            "this OpenCV is built without windows, which `portraitmatting webcam` needs: "
            "pip uninstall opencv-python-headless, then pip install opencv-python"
        )
    return [Finding("opencv", text or f"cv2 {cv2.__version__}", wrong)]


def imports() -> list[Finding]:
    """PyTorch, torchvision or timm, if it cannot be imported, and why."""
    for name in ("torch", "torchvision", "timm"):
        _, wrong = attempt(name)
        if wrong and installed(name):
            # The others depend on it and fail with the same error.
            return [Finding(name, "cannot be imported", wrong)]
    return []


def attempt(name: str) -> tuple[ModuleType | None, str | None]:
    """A module, or None and the reason why it cannot be imported."""
    try:
        return importlib.import_module(name), None
    except Exception as error:  # a broken library may raise any error
        return None, explain(name, error)


def explain(name: str, error: Exception) -> str:
    """The cause of a failed import, if it is known, and the way out, in one line."""
    message = " ".join(str(error).split())[:200]
    if name == "cv2" and re.search(r"lib(GL|gthread|glib)", message):
        return f"OpenCV lacks a system library ({message}): apt-get install libgl1 libglib2.0-0"
    if name == "torchvision":
        torch, torchvision = installed("torch") or "?", installed("torchvision") or "?"
        return (
            f"torchvision {torchvision} does not fit torch {torch}{_partner(torchvision)}, and "
            f"timm needs both ({message}): pip install --force-reinstall torch torchvision"
        )
    return f"{name} cannot be imported ({type(error).__name__}: {message}): pip install {name}"


def _partner(torchvision: str) -> str:
    """The torch that a torchvision is made for: since 0.15 their minor versions differ by 15."""
    minor = re.match(r"0\.(\d+)", torchvision)
    return f" (it is made for torch 2.{int(minor[1]) - 15})" if minor else ""


def importable(module: str) -> bool:
    """Whether there is such a module; a folder without code does not count."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def extras() -> list[Finding]:
    """Which extras are installed, and what the others are for; none of this is wrong."""
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
    """The devices that PyTorch can use, and whether it leaves a GPU unused."""
    from portraitmatting.device import gpus_are_hidden, why_gpu_is_idle  # which import PyTorch

    names = ["cpu"]
    if torch.cuda.is_available():
        names += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        names.append("mps")
    wrong = None
    if not torch.cuda.is_available():
        wrong = why_gpu_is_idle(torch.version.cuda, torch.version.hip)
        if gpus_are_hidden():
            names.append("GPUs hidden by CUDA_VISIBLE_DEVICES")
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    made_for = f"ROCm {torch.version.hip}" if torch.version.hip else made_for
    return [Finding("torch made for", made_for), Finding("devices", ", ".join(names), wrong)]


def threads(torch: Any) -> list[Finding]:
    """The number of threads of each library, and numba's threading layer."""
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
    """The threading layer that numba will choose for pymatting; `works` is whether a layer can be
    loaded."""
    numba, wrong = attempt("numba")
    if numba is None:
        return [Finding("numba threads", "none", wrong)]
    if numba.config.DISABLE_JIT:
        wrong = "NUMBA_DISABLE_JIT is set, with which foreground colours take hours: unset it"
        return [Finding("numba threads", "none: compiling is disabled", wrong)]
    setting = numba.config.THREADING_LAYER
    if setting not in (*_POOLS, *_LAYER_KINDS):
        wrong = f"NUMBA_THREADING_LAYER is {setting!r}, which numba does not know: unset it"
        return [Finding("numba threads", str(setting), wrong)]
    order = [setting] if setting in _POOLS else numba.config.THREADING_LAYER_PRIORITY
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
    """The folder in which numba keeps compiled code of pymatting; wrong if there is none."""
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
    """The default checkpoint's file and sha256; wrong if it is missing, a Git LFS pointer, damaged,
    or not the listed one."""
    try:
        path, listed = locate()
    except CheckpointError as error:
        return [Finding("checkpoint", "missing", str(error))]
    digest = sha256(path)
    state = "not listed" if not listed else "as listed" if digest == listed else "not as listed"
    wrong = None
    if attempt("torch")[0]:  # else PyTorch is reported elsewhere
        from portraitmatting.checkpoint.format import read_state

        try:
            read_state(path)
        except CheckpointError as error:
            wrong = str(error)
    if not wrong and listed and digest != listed:
        wrong = f"{path}: {SUMS} lists sha256 {listed}: damaged or another version, fetch it again"
    return [
        Finding("checkpoint", path.name, wrong),
        Finding("sha256", f"{digest} ({state})"),
    ]
