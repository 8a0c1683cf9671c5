"""Conversions between uint8 (0..255), uint16 (0..65535) and float pixels (0..1).

Arithmetic happens in float32; rounding and clamping happen once, at the end.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from portraitmatting.errors import PortraitmattingError

FLOAT_SLACK = 0.01  # resampling overshoots a little; an image in 0..255 overshoots a lot


def peak(dtype: DTypeLike) -> int:
    """The value that stands for full intensity: 255, 65535, or 1 for floating point."""
    kind = np.dtype(dtype)
    if kind == np.uint8 or kind == np.uint16:
        return int(np.iinfo(kind).max)
    if kind.kind == "f" and kind.itemsize <= 8:  # OpenCV and PyTorch know none that is wider
        return 1
    raise PortraitmattingError(
        f"pixels of type {kind} are not supported: use uint8, uint16 or float in 0..1"
    )


def to_unit(pixels: NDArray[Any], what: str = "pixels") -> NDArray[np.float32]:
    """Any shape, uint8 | uint16 | float -> float32 in [0, 1], same shape, always C-contiguous;
    the array itself where it is all that already.

    Floats slightly outside 0..1 are clamped. Others, and NaN, raise PortraitmattingError: an image
    in 0..255 taken as one in 0..1 would give wrong results without an error. `what` names the array
    in the message.
    """
    check_range(pixels, what)
    full = peak(pixels.dtype)
    unit = np.ascontiguousarray(pixels, dtype=np.float32)
    if full != 1:
        return unit * np.float32(1 / full)
    if unit.size and (unit.min() < 0 or unit.max() > 1):
        return np.clip(unit, 0, 1)
    return unit


def check_range(pixels: NDArray[Any], what: str = "pixels") -> None:
    """Raise what `to_unit` raises; takes no time for integers."""
    if peak(pixels.dtype) != 1 or not pixels.size:
        return
    low, high = pixels.min(), pixels.max()
    if not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):
        raise PortraitmattingError(
            f"{what} of floating point must be in 0..1, got {low:.4g}..{high:.4g}: "
            "divide by the largest possible value (255 for 8 bits) first"
        )


def to_dtype(pixels: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Any shape, uint8 | uint16 | float -> the same pixels as `dtype`, rounded to the nearest.

    From 8 bits to more and back gives the same values. Errors as in `to_unit`.
    """
    kind = np.dtype(dtype)
    full = peak(kind)
    if pixels.dtype == kind and full != 1:
        return pixels
    if pixels.dtype == np.uint8 and kind == np.uint16:
        return pixels.astype(np.uint16) * np.uint16(257)
    unit = to_unit(pixels)
    if full == 1:
        return unit.astype(kind, copy=False)
    return np.rint(unit * np.float32(full)).astype(kind)


def from_levels(samples: NDArray[Any], largest: int, dtype: DTypeLike = np.uint16) -> NDArray[Any]:
    """Integers in 0..`largest` -> the same pixels as uint8 | uint16, rounded to the nearest."""
    full = peak(dtype)
    levels = np.arange(largest + 1, dtype=np.int64)
    table = ((levels * full + largest // 2) // largest).astype(dtype)
    return np.asarray(table[samples.clip(0, largest)])
