"""From a matte at working size to one of the image's size, with the details of the image.

This is the fast guided filter (He and Sun, "Fast Guided Filter", arXiv:1505.00996, 2015; He, Sun
and Tang, "Guided Image Filtering", TPAMI 2013), guided by the image's colours. In every window of
the small image, the small matte is fitted as a linear function of the colours. These functions,
not the matte, are interpolated and applied to the pixels of the large image, so that a hair that
is too thin for the working size returns where its colour differs from the background's. One thing
differs from the papers: each function reproduces the small matte at its own pixel, so that the
matte is not blurred where the colours say nothing about it.

Colours are RGB in [0, 1], mattes in [0, 1]. Arrays are computed tile by tile, tensors at once, by
the same formulas. Where the small matte is exactly 0 or exactly 1 within three pixels, the result
is too.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.images.pixels import peak
from portraitmatting.transforms import (
    interpolation,
    resize_tensor,
    shrinks,
    to_source_size,
    to_tensor,
)

RADIUS = 1
"""Windows are 3x3 pixels of the small image: wider ones blur mattes that were sharp before."""
EPSILON = 1e-5
"""Regularisation: colours that vary in a window by less than its square root, 0.8 grey levels, have
no influence."""
TILE = 256
"""Side of a tile in pixels of the large image. Thanks to tiles, only the memory for the result
grows with the image."""

CERTAIN = 1 - 1e-6
"""Values above this become 1: rounding errors may bring interpolated ones slightly below 1."""


def guided_upsample(
    image: NDArray[Any], coarse: NDArray[np.float32], tile: int = TILE
) -> NDArray[Any]:
    """The matte at the image's size: a new array HxW, float32 in [0, 1].

    If the image has no more pixels than the matte, the matte is only resized.

    Args:
        image: HxWx3 RGB, uint8 | uint16 | float32 in [0, 1].
        coarse: the matte at working size, hxw float32 in [0, 1].
        tile: the side of the tiles, for tests.
    """
    size = image.shape[:2]
    if not shrinks(size, coarse.shape):
        return to_source_size(coarse, size)
    small = to_tensor(image, coarse.shape)[None]
    lines = fit(small, torch.from_numpy(coarse)[None, None])[0]
    lines[:3] /= peak(image.dtype)  # so that the tiles' pixels need no conversion
    alpha = np.empty(size, np.float32)
    heights, widths = zip(size, coarse.shape, strict=True)
    for top in range(0, size[0], tile):
        rows, coarse_rows = interpolation(range(top, min(top + tile, size[0])), *heights)
        for left in range(0, size[1], tile):
            span = range(left, min(left + tile, size[1]))
            columns, coarse_columns = interpolation(span, *widths)
            part = np.s_[top : top + tile, left : left + tile]
            alpha[part] = _apply(lines[:, coarse_rows, coarse_columns], rows, columns, image[part])
    return alpha


def guided_upsample_tensor(images: Tensor, coarse: Tensor) -> Tensor:
    """`guided_upsample` for float32 tensors on one device: Bx3xHxW and Bx1xhxw -> Bx1xHxW."""
    size = images.shape[-2:]
    if not shrinks(size, coarse.shape[-2:]):
        return resize_tensor(coarse, (size[0], size[1]))
    lines = fit(resize_tensor(images, (coarse.shape[-2], coarse.shape[-1])), coarse)
    lines = F.interpolate(lines, size=size, mode="bilinear")
    alpha = (lines[:, :3] * images).sum(dim=1, keepdim=True) + lines[:, 3:]
    return torch.where(alpha > CERTAIN, 1, alpha).clamp(0, 1)


def fit(images: Tensor, coarse: Tensor) -> Tensor:
    """The linear functions: images Bx3xhxw and mattes Bx1xhxw, float32 in [0, 1] -> Bx4xhxw.

    The first three planes are a, the last is b. a . colour + b equals the matte at each pixel, and
    is close to it in the windows around the pixel. a is found by ridge regression in every window,
    and averaged over the windows that contain a pixel. b is the rest, matte - a . colour, where the
    papers average it, too: with ground-truth mattes shrunk 2.2 times, the mean error in the unknown
    band is .0038 instead of .0047.
    """
    # Means are subtracted before the product: mean(x y) - mean(x) mean(y) would be mostly rounding
    # errors.
    colors = _windows(images)
    covariance = [
        [(colors[:, i] * colors[:, j]).mean(dim=1) for j in range(i + 1)] for i in range(3)
    ]
    with_matte = (colors * _windows(coarse)).mean(dim=2)
    slope = _solve(covariance, with_matte.unbind(dim=1))
    slope = F.avg_pool2d(_padded(slope), 2 * RADIUS + 1, stride=1)
    return torch.cat([slope, coarse - (slope * images).sum(dim=1, keepdim=True)], dim=1)


def _windows(planes: Tensor) -> Tensor:
    """BxCxhxw -> BxCx9xhxw: the values in the window around each pixel, minus their mean."""
    height, width = planes.shape[-2:]
    padded, side = _padded(planes), 2 * RADIUS + 1
    shifted = [padded[..., y : y + height, x : x + width] for y in range(side) for x in range(side)]
    windows = torch.stack(shifted, dim=2)
    return windows - windows.mean(dim=2, keepdim=True)


def _padded(planes: Tensor) -> Tensor:
    return F.pad(planes, (RADIUS,) * 4, mode="replicate")


def _solve(covariance: list[list[Tensor]], with_matte: tuple[Tensor, ...]) -> Tensor:
    """Solve (covariance + EPSILON * identity) a = with_matte at each pixel -> a, Bx3xhxw.

    `covariance` is the lower triangle of that of the colours, `with_matte` the covariance of each
    colour with the matte, all Bxhxw. Solved by a Cholesky decomposition: the matrices of grey
    images are nearly singular, and an inverse by determinants would not be exact enough in float32.
    """
    (c00,), (c10, c11), (c20, c21, c22) = covariance
    l00 = (c00 + EPSILON).sqrt()
    l10, l20 = c10 / l00, c20 / l00
    l11 = (c11 - l10 * l10 + EPSILON).sqrt()
    l21 = (c21 - l20 * l10) / l11
    l22 = (c22 - l20 * l20 - l21 * l21 + EPSILON).sqrt()
    y0 = with_matte[0] / l00
    y1 = (with_matte[1] - l10 * y0) / l11
    y2 = (with_matte[2] - l20 * y0 - l21 * y1) / l22
    a2 = y2 / l22
    a1 = (y1 - l21 * a2) / l11
    a0 = (y0 - l10 * a1 - l20 * a2) / l00
    return torch.stack([a0, a1, a2], dim=1)


def _apply(
    lines: Tensor, rows: Tensor, columns: Tensor, pixels: NDArray[Any]
) -> NDArray[np.float32] | float:
    """The matte of a tile: its linear functions 4xhxw, enlarged by the weights `rows` (H x h) and
    `columns` (W x w), applied to its pixels HxWx3 -> HxW; a number if all values are the same."""
    if not lines[:3].any() and lines[3].min() == lines[3].max():
        return lines[3, 0, 0].item()  # only background, or only person: most tiles of large images
    full = (rows @ lines @ columns.T).numpy()
    alpha = full[3]
    for channel in range(3):
        alpha += full[channel] * pixels[..., channel]
    alpha[alpha > CERTAIN] = 1
    return alpha.clip(0, 1)
