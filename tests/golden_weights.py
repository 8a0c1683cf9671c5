"""Weights and images that anyone can rebuild from names, as for the golden outputs."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "author_network.npz"
_SLOPES = {
    f"{layer}.weight"
    for layer in (
        "start_conv.1",
        "start_conv.3",
        "conv5.1",
        "conv5.3",
        "conv5.5",
        "convo.1",
        "convo.3",
    )
}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict for the author's names and shapes."""
    return {key: _weight(key, shape) for key, shape in shapes.items()}


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """The author's 416 names and shapes."""
    entries = (entry.split() for entry in np.load(GOLDEN)["keys"])
    return {key: tuple(map(int, shape.split("x"))) for key, shape in entries}


def image(height: int, width: int) -> Tensor:
    """The input 1x3xHxW of the golden output of this size."""
    rng = np.random.default_rng(crc32(f"image{height}x{width}".encode()))
    return torch.from_numpy(rng.random((1, 3, height, width)).astype(np.float32))


def _weight(key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith("relative_position_index"):
        return torch.zeros(shape, dtype=torch.long)
    n = np.random.default_rng(crc32(key.encode())).standard_normal(shape)
    if key.endswith("relative_position_bias_table"):
        n = 0.5 * n
    elif n.ndim >= 2:
        n = n / np.sqrt(prod(shape[1:]))
    elif key.endswith("bias"):
        n = 0.1 * n
    elif key in _SLOPES:
        n = 0.25 + 0.05 * n
    else:
        n = 1 + 0.1 * n
    return torch.from_numpy(n.astype(np.float32))
