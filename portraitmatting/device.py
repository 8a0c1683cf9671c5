"""What PyTorch runs on: devices, precisions, threads and memory; why an NVIDIA GPU is not used."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from portraitmatting import choices
from portraitmatting.errors import PortraitmattingError

Result = TypeVar("Result")

_log = logging.getLogger("portraitmatting")
PRECISIONS = {name: getattr(torch, dtype) for name, dtype in choices.PRECISIONS.items()}

_GPU_PATHS = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*", "dev/dxg")
"""Paths of a driver's GPUs in Linux, in containers, and in Windows' subsystem for Linux."""
_WHEELS = {11: ("cu118", '"torch<2.8" "torchvision<0.23"'), 12: ("cu126", "torch torchvision")}
"""CUDA major version to the newest builds of PyTorch that run on every driver of that version."""


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best there is.

    Only "auto" falls back, from CUDA to MPS to the CPU; any other name raises
    `PortraitmattingError` if the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        if reason := why_gpu_is_idle(torch.version.cuda, torch.version.hip):
            _log.warning("%s; using the CPU", reason)  # without a handler, a line on stderr
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PortraitmattingError(f"unknown device {name!r}: use auto, cpu, cuda or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "no usable GPU found" if torch.version.cuda else "this PyTorch has no CUDA"
        if gpus_are_hidden():
            reason = "CUDA_VISIBLE_DEVICES hides every GPU"
        reason = why_gpu_is_idle(torch.version.cuda, torch.version.hip) or reason
        raise PortraitmattingError(f"device {name!r}: {reason}; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise PortraitmattingError(f"device {name!r}: there are {count} GPUs, counted from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise PortraitmattingError(f"device {name!r}: no Apple GPU found; use cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise PortraitmattingError(f"device {name!r} is not supported: use auto, cpu, cuda or mps")
    return device


def has_cuda(device: str | torch.device) -> bool:
    """Whether `device` is a CUDA device that this process can use. It need not be one: the name may
    come from another machine, or from the process that this one was forked from."""
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise PortraitmattingError(f"unknown device {device!r}: use cpu, cuda or mps") from None
    if chosen.type != "cuda" or _forked or not torch.cuda.is_available():
        return False
    return (chosen.index or 0) < torch.cuda.device_count()


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`: "auto", "fp32", "bf16" or "fp16".

    "auto" is fp16 on CUDA, bf16 on a CPU that is faster in it, and fp32 elsewhere. Raises
    `PortraitmattingError` for an unknown name, and for fp16 on a CPU.
    """
    if name == "auto":
        if device.type == "cpu" and is_faster_in_bf16():
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise PortraitmattingError(f"unknown precision {name!r}: use auto, {known}")
    if name == "fp16" and device.type == "cpu":
        raise PortraitmattingError("precision fp16 needs a GPU: use fp32 or bf16 on the CPU")
    return PRECISIONS[name]


def is_faster_in_bf16() -> bool:
    """Whether this processor runs the network faster in bf16 than in fp32.

    True with AMX, and on AMD with AVX512-BF16. Intel's processors with AVX512-BF16 but without AMX,
    as in some virtual machines, were slower; without either, bf16 is emulated.
    """
    # Older versions of PyTorch lack get_capabilities.
    processor: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    is_amd = str(processor.get("cpu_name", "")).startswith("AMD")
    return bool(processor.get("amx_bf16") or (is_amd and processor.get("avx512_bf16")))


def check_compiler() -> None:
    """Raise `PortraitmattingError` if there is no C++ compiler: torch.compile would fail
    at the first image and with a long traceback."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if not any(map(shutil.which, names)):
        raise PortraitmattingError(
            f"compile needs a C++ compiler, and there is no {' or '.join(names)}: install one "
            "(apt install g++), or run without compile"
        )


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """PyTorch computes on the CPU with at most `count` threads.

    With 1 it starts no thread, so that the process may still fork: a child that was forked after
    PyTorch had started its threads waits for them forever.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(min(count, threads))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch off the caller's `torch.autocast`: the steps around the network need the precision of
    float32, and the network has its own."""
    kinds = [kind for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)]
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in kinds:
            torch.set_autocast_enabled(kind, True)


_computed = _forked = False


def check_process() -> None:
    """Call this before PyTorch computes with several threads: raises `PortraitmattingError` in a
    process that was forked from one that has done so, and would wait for its threads forever."""
    global _computed
    if _forked and torch.get_num_threads() > 1:
        raise PortraitmattingError(
            "this process was forked from one that had computed already, and lacks its threads: "
            "start workers by spawn, or call torch.set_num_threads(1) in them"
        )
    _computed = True


def _note_fork() -> None:
    global _forked
    _forked = _computed


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def describe_device(device: torch.device) -> str:
    """The device's name for people: "cuda:0 (NVIDIA A100)", "cpu (2 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} {'thread' if threads == 1 else 'threads'})"
    return str(device)


def describe_precision(dtype: torch.dtype) -> str:
    """The name of a dtype for `choose_precision`."""
    return next(name for name, value in PRECISIONS.items() if value == dtype)


@contextmanager
def explain_memory(message: str) -> Iterator[None]:
    """Errors of missing memory become `PortraitmattingError` with this message."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PortraitmattingError) or not is_out_of_memory(error):
            raise
        raise PortraitmattingError(message) from error


def memory_of(device: torch.device) -> int | None:
    """The bytes of a CUDA device's memory; None for other devices."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def attempt(function: Callable[..., Result], *args: Any) -> Result | None:
    """What the function returns, or None where it runs out of memory.

    The error does not leave this function: it would keep alive what filled the memory.
    """
    try:
        return function(*args)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch, OpenCV or Python means that the device or the machine has no
    memory left."""
    # On MPS and on the CPU PyTorch raises plain RuntimeErrors; OpenCV has one class for all errors.
    messages = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "bad allocation",
        "Insufficient memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    )
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        message in str(error) for message in messages
    )


def why_gpu_is_idle(torch_cuda: str | None, torch_hip: str | None = None) -> str | None:
    """Why PyTorch, built for this version of CUDA or ROCm, does not use the NVIDIA GPU of this
    machine, and the way out, in one line; None if there is no GPU, or it is hidden on purpose.

    Works without a driver, which may be the reason.
    """
    if gpus_are_hidden() or not (evidence := find_gpu()):
        return None
    gpu = f"there is an NVIDIA GPU ({evidence})"
    if not torch_cuda:
        kind = f"made for ROCm {torch_hip}" if torch_hip else "built without CUDA"
        return (
            f"{gpu}, but this PyTorch is {kind}: install one for CUDA, see "
            "https://pytorch.org/get-started/locally"
        )
    supported = driver_cuda()
    if supported and supported[0] < int(torch_cuda.split(".")[0]):
        version = ".".join(map(str, supported))
        message = (
            f"{gpu}, but its driver{_driver_version()}, for CUDA {version}, is too old for this "
            f"PyTorch, made for CUDA {torch_cuda}: update the driver"
        )
        if wheel := _WHEELS.get(supported[0]):
            message += (
                f", or pip install --force-reinstall {wheel[1]} --index-url "
                f"https://download.pytorch.org/whl/{wheel[0]}"
            )
        return message
    return (
        f"{gpu}, but PyTorch, made for CUDA {torch_cuda}, cannot use it: update the driver"
        f"{_driver_version()}; in a container, start it with --gpus all"
    )


def gpus_are_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU: it is set and empty, or begins with -1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and (not visible.strip() or visible.strip().startswith("-1"))


def find_gpu(root: Path = Path("/")) -> str | None:
    """Evidence of an NVIDIA GPU, such as a path; None if there is none."""
    for pattern in _GPU_PATHS:
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
    """The driver's version, as " 535.104"; empty if it is unknown."""
    lines = _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").split()
    return f" {lines[0]}" if lines else ""


def _nvidia_smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
