"""Devices and threads."""

import importlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from portraitmatting.doctor.environment import attempt
from portraitmatting.doctor.finding import Finding

_NVIDIA = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*", "dev/dxg")
"""Where a driver shows its GPUs: Linux, Linux in a container, and Windows' Linux."""
_POOLS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
"""numba's threading layers, best first, and their modules in numba.np.ufunc."""


def devices(torch: Any) -> list[Finding]:
    """What PyTorch can compute on, and whether it leaves a GPU lying idle."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        names.append("mps")
    wrong = None
    if not torch.cuda.is_available() and (sign := nvidia_gpu()):
        if torch.version.cuda or torch.version.hip:
            wrong = (
                f"there is an NVIDIA GPU ({sign}), but PyTorch, made for CUDA "
                f"{torch.version.cuda}, cannot use it: update the driver; in a container, "
                "start it with --gpus all"
            )
        else:
            wrong = (
                f"there is an NVIDIA GPU ({sign}), but this PyTorch is built without CUDA: "
                "install one with it, see https://pytorch.org/get-started/locally"
            )
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    made_for = f"ROCm {torch.version.hip}" if torch.version.hip else made_for
    return [Finding("torch made for", made_for), Finding("devices", ", ".join(names), wrong)]


def nvidia_gpu(root: Path = Path("/")) -> str | None:
    """What gives an NVIDIA GPU away, in a word; None if nothing does."""
    for pattern in _NVIDIA:
        if next(root.glob(pattern), None):
            return f"/{pattern.rstrip('/*[0-9]')}"
    if program := shutil.which("nvidia-smi"):
        try:
            done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0 and done.stdout.startswith("GPU"):
            return "nvidia-smi"
    return None


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
    asked = numba.config.THREADING_LAYER
    order = [asked] if asked in _POOLS else numba.config.THREADING_LAYER_PRIORITY
    layer = next((name for name in order if (works or _loads)(name)), None)
    if layer == "workqueue":
        wrong = (
            "numba's threading layer is workqueue, which two threads may not enter: foreground "
            "colours are estimated one image at a time. Install OpenMP (apt-get install "
            "libgomp1) or TBB (pip install tbb)"
        )
    elif layer is None:
        wrong = f"numba finds no threading layer ({', '.join(order)}): unset NUMBA_THREADING_LAYER"
    return [Finding("numba threads", f"{numba.config.NUMBA_NUM_THREADS} ({layer})", wrong)]


def _loads(layer: str) -> bool:
    try:
        importlib.import_module(f"numba.np.ufunc.{_POOLS[layer]}")
    except ImportError:
        return False
    return True
