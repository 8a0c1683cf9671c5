"""From an image to the network's input, and from mattes to other sizes.

Images and mattes shrink by area averages (cubic interpolation would alias fine hair) and grow by
cubic interpolation, arrays with OpenCV, tensors with PyTorch by the same formulas. Mattes of images
larger than the working size grow by `guided_filter.guided_upsample` instead, which also uses the
image.
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
"""The largest area of a working size, as a multiple of the short side squared: images longer than
4:1 run at a smaller short side."""


def network_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The working size (h, w), multiples of 32, of an image of `height` x `width`.

    The short side becomes `short_side`, the long side is scaled by the same factor and rounded up,
    as in the author's code. Images longer than 4:1 become smaller, so that memory stays bounded.
    Raises `PortraitmattingError` for a `short_side` that is not a multiple of 32 up to 8192.
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
    """An image HxWx3, uint8 | uint16 | float32 in [0, 1] -> a new float32 tensor 3xhxw in [0, 1] of
    `size` (h, w)."""
    resized = np.array(resize(image, size), np.float32, order="C")
    return torch.from_numpy(resized).permute(2, 0, 1).div_(peak(image.dtype)).clamp_(0, 1)


def to_source_size(matte: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A float32 matte hxw in [0, 1] -> a new one, in [0, 1], of the image's `size` (H, W)."""
    return resize(matte, size).clip(0, 1)


def resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """HxW or HxWxC, uint8 | uint16 | float32 -> the same of `size` (h, w). Floats that grow may
    leave the range of the input a little. An image of that size is returned itself."""
    if image.shape[:2] == size:
        return image
    method = cv2.INTER_AREA if shrinks(image.shape[:2], size) else cv2.INTER_CUBIC
    return cv2.resize(image, size[::-1], interpolation=method)


def shrunk(image: NDArray[Any], longest_side: int) -> NDArray[Any]:
    """HxW or HxWxC, uint8 | uint16 | float32 -> the same, resized so that no side is longer than
    `longest_side`."""
    height, width = image.shape[:2]
    scale = min(1, longest_side / max(height, width))
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def resize_tensor(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` for float tensors BxCxHxW in [0, 1] on any device; the result is in [0, 1]."""
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
    """The weights that shrink a line of `source` pixels to `target` pixels: a float32 matrix of
    target x source, whose entries are the overlaps of the pixels and whose rows sum to 1. Made on
    the device, so that nothing waits for a copy."""
    # In units of 1 / (source * target) of the line, all edges of pixels are integers.
    targets = torch.arange(target + 1, device=device) * source
    sources = torch.arange(source + 1, device=device) * target
    end = torch.minimum(targets[1:, None], sources[1:])
    begin = torch.maximum(targets[:-1, None], sources[:-1])
    return (end - begin).clamp(min=0).float() / source


def interpolation(
    pixels: Sequence[int] | NDArray[Any], large: int, small: int
) -> tuple[Tensor, slice]:
    """Linear interpolation of a line of `small` pixels to some pixels of a line of `large`.

    The weights as a float32 matrix of len(pixels) x n, and a slice: the n small pixels that they
    belong to. Pixel centres are at halves; beyond the outermost ones the value stays the same. The
    weights are a tensor because NumPy takes several times as long to multiply them by planes.

    Args:
        pixels: indices of pixels of the large line, ascending.
        large: the length of the large line in pixels.
        small: the length of the small line in pixels.
    """
    positions = ((np.asarray(pixels) + 0.5) * (small / large) - 0.5).clip(0, small - 1)
    before = positions.astype(int)
    after, fraction = np.minimum(before + 1, small - 1), positions - before
    used = slice(int(before[0]), int(after[-1]) + 1)
    weights = np.zeros((len(positions), used.stop - used.start), np.float32)
    row = np.arange(len(positions))
    weights[row, after - used.start] = fraction
    weights[row, before - used.start] += 1 - fraction
    return torch.from_numpy(weights), used
