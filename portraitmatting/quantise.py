"""Weights in 8 bits: a checkpoint of half the size of fp16, at a small loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from portraitmatting.errors import CheckpointError

_CODES, _SCALE = ".int8", ".scale"
"""What is added to a tensor's name for its codes and for the scale of each output channel."""
_SMALLEST = 4096
"""Tensors of fewer values stay fp16: norms, biases, position tables; 1 % of the network."""


def quantise_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A float state dict to one that stores large weights as int8 with a float32 scale per channel.

    Symmetric, per output channel (the first dimension): value = code * scale, with codes from -127
    to 127 and scale the channel's largest magnitude / 127 (Krishnamoorthi, arXiv 1806.08342,
    section 3.1). A weight NAME becomes NAME.int8 and NAME.scale; the others become fp16 under their
    own names.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if not value.is_floating_point():
            out[name] = value
        elif value.ndim < 2 or value.numel() < _SMALLEST:
            out[name] = value.half()
        else:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            codes = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
            out[name + _CODES], out[name + _SCALE] = codes.view(value.shape), scale
    return out


def dequantise_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float state dict that `quantise_int8` was given, its weights as near as 8 bits can say.

    Entries that are not quantised pass through, so any state dict may come in. A weight without
    its scale raises `CheckpointError`.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(_CODES):
            weight = name.removesuffix(_CODES)
            scale = state.get(weight + _SCALE)
            if scale is None or scale.shape != value.shape[:1]:
                raise CheckpointError(f"{name} lacks a scale for each of its {len(value)} channels")
            out[weight] = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) + _CODES in state):
            out[name] = value
    return out
