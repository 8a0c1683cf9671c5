"""A matte at working size back to its image's size, with the detail that the image has there.

The fast guided filter (He and Sun, "Fast Guided Filter", arXiv:1505.00996, 2015; He, Sun and Tang,
"Guided Image Filtering", TPAMI 2013) with the colours as its guide: in every window of the small
image the matte is fitted as a linear function of the colours, and these functions, not the
matte, are interpolated and applied to the pixels of the large image. A hair that is too thin for
the working size comes back where its colour differs from what is behind it. Unlike the filter's,
these functions pass through the small matte: where colours tell nothing, it is not blurred.

Colours are RGB in [0, 1], mattes in [0, 1]. Arrays go tile by tile, tensors whole; both by the same
formulas. Where the matte is 0 or 1 for three working pixels around, so is the result, exactly.
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
"""Windows are 3x3 working pixels: wider ones blur mattes that are good to begin with."""
EPSILON = 1e-5
"""Colours that vary by less than its root in a window, 0.8 grey levels, tell nothing."""
TILE = 256
"""Source pixels a side of what is worked on at once: beside the result, memory does not grow with
the image."""

CERTAIN = 1 - 1e-6
"""What is above counts as 1: interpolation of ones may miss it by a bit."""


def guided_upsample(
    image: NDArray[Any], coarse: NDArray[np.float32], tile: int = TILE
) -> NDArray[Any]:
    """Image HxWx3 RGB, uint8 | uint16 | float32 in [0, 1], and its float32 matte hxw in [0, 1] at
    any smaller size -> a new float32 matte HxW in [0, 1].

    An image that has no more pixels than the matte gets their averages.
    """
    size = image.shape[:2]
    if not shrinks(size, coarse.shape):
        return to_source_size(coarse, size)
    small = to_tensor(image, coarse.shape)[None]
    lines = fit(small, torch.from_numpy(coarse)[None, None])[0]
    lines[:3] /= peak(image.dtype)  # the pixels below stay in their own range
    alpha = np.empty(size, np.float32)
    heights, widths = zip(size, coarse.shape, strict=True)
    for top in range(0, size[0], tile):
        rows, near_rows = interpolation(range(top, min(top + tile, size[0])), *heights)
        for left in range(0, size[1], tile):
            span = range(left, min(left + tile, size[1]))
            columns, near_columns = interpolation(span, *widths)
            part = np.s_[top : top + tile, left : left + tile]
            alpha[part] = _apply(lines[:, near_rows, near_columns], rows, columns, image[part])
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
    """Images Bx3xhxw and mattes Bx1xhxw, float32 -> Bx4xhxw: a (3 planes) and b, so that
    a . colour + b is the matte at each pixel, and near it in the windows that hold the pixel.

    Ridge regression in every window; a is the mean over the windows of each pixel. b is what is
    left, not a mean of offsets: of mattes shrunk from the truth, 2.2 times smaller than the
    image, that leaves a mean error of .0038 in the unknown band instead of .0047.
    """
    # Centred before they are multiplied: differences of large means would be rounding errors.
    colours = _windows(images)
    together = (colours * _windows(coarse)).mean(dim=2)
    slope = _solve(
        [[(colours[:, i] * colours[:, j]).mean(dim=1) for j in range(i + 1)] for i in range(3)],
        together.unbind(dim=1),
    )
    slope = F.avg_pool2d(_framed(slope), 2 * RADIUS + 1, stride=1)
    return torch.cat([slope, coarse - (slope * images).sum(dim=1, keepdim=True)], dim=1)


def _windows(planes: Tensor) -> Tensor:
    """BxCxhxw -> BxCx9xhxw: what the window around each pixel holds, less its mean."""
    height, width = planes.shape[-2:]
    framed, side = _framed(planes), 2 * RADIUS + 1
    shifted = [framed[..., y : y + height, x : x + width] for y in range(side) for x in range(side)]
    windows = torch.stack(shifted, dim=2)
    return windows - windows.mean(dim=2, keepdim=True)


def _framed(planes: Tensor) -> Tensor:
    return F.pad(planes, (RADIUS,) * 4, mode="replicate")


def _solve(covariance: list[list[Tensor]], together: tuple[Tensor, ...]) -> Tensor:
    """(covariance + EPSILON) a = together at each pixel, by Cholesky's decomposition written out:
    grey images are nearly singular, which determinants in float32 would not survive."""
    (c00,), (c10, c11), (c20, c21, c22) = covariance
    l00 = (c00 + EPSILON).sqrt()
    l10, l20 = c10 / l00, c20 / l00
    l11 = (c11 - l10 * l10 + EPSILON).sqrt()
    l21 = (c21 - l20 * l10) / l11
    l22 = (c22 - l20 * l20 - l21 * l21 + EPSILON).sqrt()
    y0 = together[0] / l00
    y1 = (together[1] - l10 * y0) / l11
    y2 = (together[2] - l20 * y0 - l21 * y1) / l22
    a2 = y2 / l22
    a1 = (y1 - l21 * a2) / l11
    a0 = (y0 - l10 * a1 - l20 * a2) / l00
    return torch.stack([a0, a1, a2], dim=1)


def _apply(
    lines: Tensor, rows: Tensor, columns: Tensor, pixels: NDArray[Any]
) -> NDArray[np.float32] | float:
    if not lines[:3].any() and lines[3].min() == lines[3].max():
        return lines[3, 0, 0].item()  # nothing but background, or person: most of a large image
    full = (rows @ lines @ columns.T).numpy()
    alpha = full[3]
    for channel in range(3):
        alpha += full[channel] * pixels[..., channel]
    alpha[alpha > CERTAIN] = 1
    return alpha.clip(0, 1)
