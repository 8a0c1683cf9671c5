"""Which device runs the network, and in which precision."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch

from portraitmatting import choices, nvidia
from portraitmatting.errors import PortraitmattingError

_log = logging.getLogger("portraitmatting")
PRECISIONS = {name: getattr(torch, dtype) for name, dtype in choices.PRECISIONS.items()}


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
        if reason := nvidia.why_idle(torch.version.cuda, torch.version.hip):
            _log.warning("%s; using the CPU", reason)  # without a handler, a line on stderr
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PortraitmattingError(f"unknown device {name!r}: use auto, cpu, cuda or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "no usable GPU found" if torch.version.cuda else "this PyTorch has no CUDA"
        if nvidia.is_hidden():
            reason = "CUDA_VISIBLE_DEVICES hides every GPU"
        reason = nvidia.why_idle(torch.version.cuda, torch.version.hip) or reason
        raise PortraitmattingError(f"device {name!r}: {reason}; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise PortraitmattingError(f"device {name!r}: there are {count} GPUs, counted from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise PortraitmattingError(f"device {name!r}: no Apple GPU found; use cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise PortraitmattingError(f"device {name!r} is not supported: use auto, cpu, cuda or mps")
    return device


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

    True with AMX, and for AMD's with AVX512-BF16. Intel's with AVX512-BF16 but without AMX, as some
    virtual machines have it, were slower; without either, bf16 is emulated.
    """
    # Not in every PyTorch.
    processor: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    of_amd = str(processor.get("cpu_name", "")).startswith("AMD")
    return bool(processor.get("amx_bf16") or (of_amd and processor.get("avx512_bf16")))


def check_compiler() -> None:
    """Raises `PortraitmattingError` if there is no C++ compiler, without which torch.compile fails
    only at the first image, and at length."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if not any(map(shutil.which, names)):
        raise PortraitmattingError(
            f"compile needs a C++ compiler, and there is no {' or '.join(names)}: install one "
            "(apt install g++), or run without compile"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on the CPU in this thread alone, and starts no others.

    Its pool of threads does not survive a fork: a child that was forked after the pool was started
    waits for it forever.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_computed = _forked = False


def check_process() -> None:
    """Call before PyTorch computes on several threads: raises `PortraitmattingError` in a process
    that was forked after that, and would wait forever for threads that it does not have."""
    global _computed
    if _forked:
        raise PortraitmattingError(
            "this process was forked from one that had run the network already, and has not got "
            "its threads: load the model in each worker, or start workers by spawn"
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
    """A dtype's name as `choose_precision` takes it."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


@contextmanager
def explain_memory(message: str) -> Iterator[None]:
    """Raises `PortraitmattingError` with this message where memory is too small."""
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        raise PortraitmattingError(message) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch means that the device, or for the CPU the machine, has no memory left."""
    # MPS and the CPU say so in plain RuntimeErrors.
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "bad allocation",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    )
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
