"""Whether an NVIDIA GPU is idle, and why, without PyTorch or a working driver."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

_SIGNS = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*", "dev/dxg")
"""Where a driver shows its GPUs: Linux, Linux in a container, and Windows' Linux."""
_WHEELS = {11: ("cu118", '"torch<2.8" "torchvision<0.23"'), 12: ("cu126", "torch torchvision")}
"""CUDA major version of a driver to the newest builds of PyTorch that every such driver runs."""


def why_idle(torch_cuda: str | None, torch_hip: str | None = None) -> str | None:
    """Why PyTorch, made for this version of CUDA or ROCm, does not use the NVIDIA GPU that is here,
    and the way out, in one line; None if there is no GPU, or it is hidden on purpose."""
    if is_hidden() or not (sign := find_gpu()):
        return None
    there = f"there is an NVIDIA GPU ({sign})"
    if not torch_cuda:
        kind = f"made for ROCm {torch_hip}" if torch_hip else "built without CUDA"
        return (
            f"{there}, but this PyTorch is {kind}: install one for CUDA, see "
            "https://pytorch.org/get-started/locally"
        )
    supported = driver_cuda()
    if supported and supported[0] < int(torch_cuda.split(".")[0]):
        version = ".".join(map(str, supported))
        text = (
            f"{there}, but its driver{_driver_version()}, for CUDA {version}, is too old for this "
            f"PyTorch, made for CUDA {torch_cuda}: update the driver"
        )
        if wheel := _WHEELS.get(supported[0]):
            text += (
                f", or pip install --force-reinstall {wheel[1]} --index-url "
                f"https://download.pytorch.org/whl/{wheel[0]}"
            )
        return text
    return (
        f"{there}, but PyTorch, made for CUDA {torch_cuda}, cannot use it: update the driver"
        f"{_driver_version()}; in a container, start it with --gpus all"
    )


def is_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU: it is set and empty, or begins with -1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and (not visible.strip() or visible.strip().startswith("-1"))


def find_gpu(root: Path = Path("/")) -> str | None:
    """The sign of an NVIDIA GPU, such as a path; None if there is none."""
    for pattern in _SIGNS:
        if next(root.glob(pattern), None):
            return f"/{pattern.rstrip('/*[0-9]')}"
    listed = _nvidia_smi("-L")
    return "nvidia-smi" if listed.startswith("GPU") else None


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) that the installed driver runs; None without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        version = ctypes.c_int()
        failed = driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def _driver_version() -> str:
    """The driver's own version, as " 535.104"; empty if nothing tells it."""
    lines = _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").split()
    return f" {lines[0]}" if lines else ""


def _nvidia_smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
