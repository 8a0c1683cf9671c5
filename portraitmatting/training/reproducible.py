"""The same numbers again: randomness follows from the seed and the step, none is stored."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_step(seed: int, step: int, index: int) -> None:
    """Seed torch (dropout, stochastic depth) for the piece of a step that begins at `index`."""
    state = np.random.SeedSequence((seed, step, index)).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(state) >> 1)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On the CPU, only kernels that give the same bits each time; GPUs keep their fast ones."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu", warn_only=warns)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
