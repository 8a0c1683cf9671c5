"""What goes from one step of a prediction to the next, also between threads."""

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor


class Prepared(NamedTuple):
    """An image, and what the network reads of it."""

    image: NDArray[Any]
    """HxWx3 RGB, as `as_rgb` gives it."""
    tensor: Tensor
    """3xhxw float32 in [0, 1] at working size, on the CPU; pinned, if the network is on CUDA."""


class Estimate(NamedTuple):
    """An image, and what the network says of it."""

    image: NDArray[Any]
    """HxWx3 RGB, as prepared."""
    alpha: Tensor
    """1xhxw float32 in [0, 1] at working size, on the CPU once `arrived` is."""
    trimap: Tensor
    """hxw uint8 classes, alike."""
    arrived: torch.cuda.Event | None
    """When both are copied from a CUDA device; None elsewhere, where copies wait."""
