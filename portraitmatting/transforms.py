"""From an image to what the network reads, and from its mattes back to the image's size.

Images and mattes shrink by area averages (cubic interpolation would alias fine hair) and grow by
cubic interpolation; arrays through OpenCV, tensors by the same formulas in PyTorch. (The mattes of
larger images grow by `guided_upsample`, which looks at the image too.)
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.choices import MULTIPLE, check_short_side
from portraitmatting.images.pixels import peak

_LONGEST_ASPECT = 4
"""Beyond 4:1 the working size shrinks: its area never exceeds 4 short sides squared."""


def network_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Working (height, width), multiples of 32, of an image of `height` x `width`.

    The short side becomes `short_side`, the long side is scaled alike and rounded up (the author's
    rule); strips longer than 4:1 are scaled down further, so that memory stays bounded.
    Raises `PortraitmattingError` for a `short_side` that is not a positive multiple of 32.
    """
    check_short_side(short_side)
    short, long = sorted((height, width))
    area = _LONGEST_ASPECT * short_side**2
    if long > _LONGEST_ASPECT * short:
        shrunk = (area * short / long) ** 0.5
        short_side = max(MULTIPLE, round(shrunk / MULTIPLE) * MULTIPLE)
    long_side = -(-long * short_side // (short * MULTIPLE)) * MULTIPLE
    long_side = min(long_side, area // short_side // MULTIPLE * MULTIPLE)
    return (short_side, long_side) if height <= width else (long_side, short_side)


def to_tensor(image: NDArray[Any], size: tuple[int, int]) -> Tensor:
    """HxWx3 as `as_rgb` gives it, to a new float32 tensor 3xhxw in [0, 1] of `size` (h, w)."""
    resized = np.array(resize(image, size), np.float32, order="C")
    return torch.from_numpy(resized).permute(2, 0, 1).div_(peak(image.dtype)).clamp_(0, 1)


def to_source_size(matte: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A float32 matte hxw in [0, 1] to a new one of the source's `size` (H, W), still in [0, 1]."""
    return resize(matte, size).clip(0, 1)


def resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """HxW or HxWxC, uint8 | uint16 | float32, to `size` (h, w); floats may overshoot a little."""
    if image.shape[:2] == size:
        return image
    how = cv2.INTER_AREA if shrinks(image.shape[:2], size) else cv2.INTER_CUBIC
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def shrunk(image: NDArray[Any], longest_side: int) -> NDArray[Any]:
    """HxW or HxWxC, as for `resize`, with no side longer than `longest_side`."""
    height, width = image.shape[:2]
    scale = min(1, longest_side / max(height, width))
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def resize_tensor(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` for float tensors BxCxHxW on any device, to [0, 1]."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    if not shrinks((height, width), size):
        return F.interpolate(images, size=size, mode="bicubic").clamp(0, 1)
    rows, columns = (
        area_weights(large, small, images.device).to(images.dtype)
        for large, small in ((height, size[0]), (width, size[1]))
    )
    return rows @ images @ columns.T


def shrinks(source: Sequence[int], target: Sequence[int]) -> bool:
    """Whether `target` (h, w) has fewer pixels than `source`."""
    return target[0] * target[1] < source[0] * source[1]


def area_weights(source: int, target: int, device: torch.device) -> Tensor:
    """target x source, float32: how much of each source pixel lies in each target pixel; rows sum
    to 1. Made on the device, so that nothing waits for a copy."""
    # In units in which all edges are integers.
    edges = torch.arange(target + 1, device=device) * source
    pixels = torch.arange(source + 1, device=device) * target
    end = torch.minimum(edges[1:, None], pixels[1:])
    begin = torch.maximum(edges[:-1, None], pixels[:-1])
    return (end - begin).clamp(min=0).float() / source


def interpolation(
    pixels: Sequence[int] | NDArray[Any], large: int, small: int
) -> tuple[Tensor, slice]:
    """Of these pixels, ascending, of a line of `large`: the weights of linear interpolation between
    a line of `small`, count x n, and which n they are; pixel centres at halves, ends held. Tensors,
    as NumPy multiplies a matrix by planes several times slower."""
    positions = ((np.asarray(pixels) + 0.5) * (small / large) - 0.5).clip(0, small - 1)
    before = positions.astype(int)
    after, part = np.minimum(before + 1, small - 1), positions - before
    near = slice(int(before[0]), int(after[-1]) + 1)
    weights = np.zeros((len(positions), near.stop - near.start), np.float32)
    row = np.arange(len(positions))
    weights[row, after - near.start] = part
    weights[row, before - near.start] += 1 - part
    return torch.from_numpy(weights), near
