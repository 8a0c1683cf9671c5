"""One process, or several that torchrun started, each with its share of every step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from portraitmatting.errors import PortraitmattingError


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: logs, validates, saves."""
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
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The group that torchrun's environment variables describe; without them, this process."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()
