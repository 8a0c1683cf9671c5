"""From a picture to what the network reads, and from its mattes back to the picture's size."""

import cv2
import numpy as np
import torch
from torch import Tensor

from portraitmatting.depth import peak, to_unit
from portraitmatting.errors import PortraitmattingError

MULTIPLE = 32
_LONGEST_ASPECT = 4
"""Beyond 4:1 the working size shrinks: its area never exceeds 4 short sides squared."""


def network_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Working (height, width), multiples of 32, of a picture of `height` x `width`.

    The short side becomes `short_side`, the long side is scaled alike and rounded up (the author's
    rule); strips longer than 4:1 are scaled down further, so that memory stays bounded.
    Raises `PortraitmattingError` for a `short_side` that is not a positive multiple of 32.
    """
    if short_side < MULTIPLE or short_side % MULTIPLE:
        near = max(MULTIPLE, round(short_side / MULTIPLE) * MULTIPLE)
        raise PortraitmattingError(
            f"short side {short_side}: expected a multiple of {MULTIPLE}, for instance {near}"
        )
    short, long = sorted((height, width))
    area = _LONGEST_ASPECT * short_side**2
    if long > _LONGEST_ASPECT * short:
        shrunk = (area * short / long) ** 0.5
        short_side = max(MULTIPLE, round(shrunk / MULTIPLE) * MULTIPLE)
    long_side = -(-long * short_side // (short * MULTIPLE)) * MULTIPLE
    long_side = min(long_side, area // short_side // MULTIPLE * MULTIPLE)
    return (short_side, long_side) if height <= width else (long_side, short_side)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """`image` as HxWx3 of its own dtype: uint8, uint16, or float32 in [0, 1] (any float comes in).

    Takes HxW and HxWx1 grey and HxWx3 RGB; raises `PortraitmattingError` for anything else.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        hint = ": drop its alpha channel" if image.ndim == 3 and image.shape[2] == 4 else ""
        shape = "x".join(map(str, image.shape))
        raise PortraitmattingError(f"expected an RGB (HxWx3) or grey (HxW) image, got {shape}{hint}")
    return to_unit(image, "the image") if peak(image.dtype) == 1 else image


def to_tensor(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """HxWx3 as `as_rgb` gives it, to a float32 tensor 3xhxw in [0, 1] of `size` (h, w)."""
    resized = _resize(image, size)
    tensor = torch.from_numpy(np.require(resized, requirements="CW")).permute(2, 0, 1)
    return tensor.to(torch.float32).div_(peak(image.dtype)).clamp_(0, 1)


def to_source_size(matte: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A float32 matte hxw in [0, 1] to the source's `size` (H, W), still in [0, 1]."""
    return _resize(matte, size).clip(0, 1)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area average to shrink (cubic would alias fine hair), cubic to enlarge."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (size[1], size[0]), interpolation=how)
