"""What a training process runs in: device, precision, other processes, random numbers, signals."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from portraitmatting.device import choose_device, choose_precision, is_faster_in_bf16
from portraitmatting.errors import PortraitmattingError


@dataclass(frozen=True)
class Precision:
    """Weights, losses and updates stay fp32; the network runs in `dtype`."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """For the network's forward pass."""
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses in fp16, whose gradients would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_training_precision(device_name: str, precision_name: str) -> Precision:
    """Under torchrun, "auto" and "cuda" mean this process's own GPU.

    "auto" precision is bf16 where the device computes it, since it needs no scaling; else fp16 on
    a GPU and fp32 on others.
    """
    device = choose_device(device_name)
    if device.type == "cuda" and device.index is None:
        device = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(device)
    if precision_name == "auto":
        if computes_bf16(device):
            precision_name = "bf16"
        else:
            precision_name = "fp16" if device.type == "cuda" else "fp32"
    return Precision(device, choose_precision(precision_name, device))


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; emulation is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and is_faster_in_bf16()


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: Any = None
    """A process group that waits for days instead of NCCL's ten minutes."""

    @property
    def first(self) -> bool:
        """Whether this is the process that logs, validates and saves."""
        return self.rank == 0

    def share(self, batch_size: int) -> range:
        """This process's indices of a step's samples."""
        if batch_size % self.count:
            raise PortraitmattingError(
                f"batch_size {batch_size} cannot be shared by {self.count} processes: "
                f"use a multiple of {self.count}"
            )
        each = batch_size // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values = values / self.count
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Wait for all processes, however long the first one validates or saves."""
        if self.count > 1:
            dist.barrier(group=self.patient)


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun's environment variables describe; without them, this one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        yield Processes(dist.get_rank(), count, device, patient)
    finally:
        dist.destroy_process_group()


def seed_step(seed: int, step: int, index: int) -> None:
    """Seed torch (dropout, stochastic depth) for the part of a step that begins at `index`.

    All random numbers then follow from the recipe and the step: no state must be stored.
    """
    state = np.random.SeedSequence((seed, step, index)).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(state) >> 1)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On the CPU, only kernels that always give the same bits; GPUs keep their fast ones."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device.type == "cpu", warn_only=warns)
    # Filling new tensors takes time, and no kernel reads what was not written before.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        settings.fill_uninitialized_memory = fills


class Interrupt:
    """Context manager in which the first Ctrl-C, SIGTERM or SIGHUP only sets `signal`; a second one
    acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            names = ("SIGINT", "SIGTERM", "SIGHUP")
            numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
            for number in numbers:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as nohup sets it
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def finish(self) -> None:
        """End the process as the signal would have done."""
        self._restore()
        if self.signal not in (None, signal.SIGINT):
            signal.raise_signal(self.signal)
        raise KeyboardInterrupt

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        print("stopping after this step; once more stops at once", file=sys.stderr)
