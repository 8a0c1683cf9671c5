"""The person's own colours: what a soft edge looks like without the old background in it.

Where alpha lies between 0 and 1 a pixel mixes foreground and background; pasting it elsewhere
shows the old background as a halo. Every method here finds F of image = alpha F + (1 - alpha) B.
"""

import itertools
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.choices import METHODS, check_word
from portraitmatting.compositing import check_alpha
from portraitmatting.device import explain_memory
from portraitmatting.images.pixels import check_range, to_unit
from portraitmatting.on_gpu import (
    bits,
    download,
    shrink_pixels,
    to_dtype_tensor,
    to_unit_tensor,
    upload,
)
from portraitmatting.pymatting_solvers import load_solver
from portraitmatting.torch_solvers import (
    FIT_STEPS,
    blur_fusion,
    fit_colors,
    fusion_windows,
    multi_level,
)
from portraitmatting.transforms import interpolation, resize, resize_tensor

Method = Literal["ml", "cf", "fast", "none"]

MARGIN = 4
"""Pixels around soft ones whose colours are estimated, too: mattes are feathered and resized."""
LARGEST = 2**20
"""Pixels at which a method runs at most."""

_TILE = {"cpu": 256, "cuda": 1024}
"""Side of the parts in which colours are fitted to a large image: what a core's cache holds, and
what keeps a GPU busy within some hundred MiB."""


def estimate_foreground(
    image: NDArray[Any],
    alpha: NDArray[Any],
    method: Method = "ml",
    device: torch.device | str = "cpu",
) -> NDArray[Any]:
    """The colours that a person has without the background behind her.

    They are estimated where alpha lies strictly between 0 and 1 and up to `MARGIN` pixels around;
    all other pixels, and those with alpha 1, keep the image's very values. Where more than
    `LARGEST` pixels have to be looked at, the method runs on a smaller copy, and its colours are
    fitted to the pixels: time and memory hardly grow with the image.

    Args:
        image: HxWx3 RGB, uint8 | uint16 | float in 0..1, any size from 1x1.
        alpha: HxW float in 0..1.
        method: "ml": multi-level (Germer et al., "Fast Multi-Level Foreground Estimation", ICPR
            2020). "cf": closed form (Levin et al., 2008), slow. "fast": blur fusion (Forte,
            "Approximate Fast Foreground Colour Estimation", ICIP 2021). "none": the image itself.
        device: on CUDA all is computed there, and "ml" is PyTorch's instead of pymatting's; any
            other device stands for the CPU.

    Returns HxWx3 of the image's dtype and range. Safe to call from several threads at once. Raises
    PortraitmattingError on wrong shapes, ranges or methods, and where memory is too small.
    """
    weight = check_alpha(image, alpha)
    check_range(image, "image")
    check_word("foreground method", method, METHODS)
    # One pixel has no neighbours to tell foreground from background (and pymatting no levels).
    if method == "none" or weight.size <= 1:
        return image
    way_out = "'none'" if method == "fast" else "'fast' or 'none'"
    with explain_memory(f"not enough memory for foreground method {method!r}: use {way_out}"):
        if torch.device(device).type != "cuda":
            device = "cpu"
        pixels, level = upload(image, device), upload(weight, device)
        return download(foreground_pixels(pixels, level, weight, method))


@torch.inference_mode()
def foreground_pixels(pixels: Tensor, level: Tensor, alpha: NDArray[Any], method: str) -> Tensor:
    """`estimate_foreground` on the device that holds the image; nothing waits for that device.

    Args:
        pixels: HxWx3, more than one of them.
        level: alpha, HxW float32, on the pixels' device.
        alpha: the same in NumPy: which pixels need colours is decided on the CPU.
        method: but for "none".

    Returns HxWx3, of the pixels' dtype, on their device; they themselves if none needs a colour.
    """
    soft = soft_region(alpha)
    if soft is None:
        return pixels
    box, region = soft
    result = pixels.clone()
    part, weight = pixels[box], level[box]
    size = small_size(*region.shape)
    # Windows of "fast" fit the whole image, whatever part of it is looked at.
    scale = size[0] / region.shape[0]
    windows = fusion_windows(*(round(side * scale) for side in alpha.shape))
    small, small_alpha = _shrunk(part, weight, size)
    if method == "fast":
        colors = blur_fusion(small, small_alpha, windows)
    elif method == "ml" and pixels.is_cuda:
        colors = multi_level(small, small_alpha)
    else:
        solve = load_solver(method)
        both = solve(small.permute(1, 2, 0).cpu().numpy(), small_alpha.cpu().numpy())
        colors = torch.from_numpy(np.concatenate(both, axis=2)).to(pixels.device).permute(2, 0, 1)
    if size == region.shape:
        index = torch.from_numpy(np.flatnonzero(region)).to(pixels.device)
        _write(result[box], index, colors[:3].flatten(1)[:, index].T)
    else:
        _fit_tiles(result[box], part, weight, region, colors)
    return result


def soft_region(
    alpha: NDArray[np.float32],
) -> tuple[tuple[slice, slice], NDArray[np.bool_]] | None:
    """What needs colours: the part (rows, columns) of the image that is looked at, soft pixels and
    enough around them to tell the colours on both sides; and which pixels of that part. None if no
    pixel is soft."""
    soft = ((alpha > 0) & (alpha < 1)).view(np.uint8)
    left, top, width, height = cv2.boundingRect(soft)
    if not width:
        return None
    around = max(32, min(alpha.shape) // 8)
    box = (
        slice(max(0, top - around), top + height + around),
        slice(max(0, left - around), left + width + around),
    )
    region = cv2.dilate(soft[box], np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)).view(bool)
    return box, region & (alpha[box] < 1)


def small_size(height: int, width: int) -> tuple[int, int]:
    """The size (h, w) at which a method runs: the same, or one of about `LARGEST` pixels."""
    scale = min(1, (LARGEST / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _shrunk(pixels: Tensor, alpha: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """HxWx3 and HxW -> 3xhxw and hxw float32 in 0..1 of `size`."""
    if pixels.is_cuda:
        return shrink_pixels(pixels, size), resize_tensor(alpha[None, None], size)[0, 0]
    small = torch.from_numpy(to_unit(resize(pixels.numpy(), size)))
    return small.permute(2, 0, 1), torch.from_numpy(resize(alpha.numpy(), size)).clamp(0, 1)


def _fit_tiles(
    result: Tensor, image: Tensor, alpha: Tensor, region: NDArray[np.bool_], colors: Tensor
) -> None:
    """Bring colours 6xhxw (foreground above background) to the pixels of `region` in `result`."""
    device = image.device
    height, width = region.shape
    side = _TILE[device.type]
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        if not region[top : top + side, left : left + side].any():
            continue
        # Each step reads the pixels around, so that a tile needs one more of them for each.
        rows, columns = (
            np.arange(start - FIT_STEPS, min(start + side, end) + FIT_STEPS).clip(0, end - 1)
            for start, end in ((top, height), (left, width))
        )
        vertical, near_rows = interpolation(rows, height, colors.shape[1])
        horizontal, near_columns = interpolation(columns, width, colors.shape[2])
        first = vertical.to(device) @ colors[:, near_rows, near_columns] @ horizontal.T.to(device)
        wanted = region[np.ix_(rows, columns)]
        wanted[[0, -1]] = wanted[:, [0, -1]] = False
        inner = np.zeros_like(wanted)
        inner[FIT_STEPS:-FIT_STEPS, FIT_STEPS:-FIT_STEPS] = True
        flat = np.flatnonzero(wanted)
        y, x = rows[flat // len(columns)], columns[flat % len(columns)]
        index, own, place, down, right = (
            torch.from_numpy(array).to(device)
            for array in (flat, np.flatnonzero(inner.ravel()[flat]), y * width + x, rows, columns)
        )
        pixels = to_unit_tensor(bits(image)[place // width, place % width].view(image.dtype))
        fitted = fit_colors(pixels, alpha[down[:, None], right], first, index)
        _write(result, place[own], fitted[own, :3])


def _write(result: Tensor, index: Tensor, colors: Tensor) -> None:
    """Colours Nx3 float32 in 0..1 to the pixels at N flat indices of `result`, HxWx3."""
    width = result.shape[1]
    bits(result)[index // width, index % width] = bits(to_dtype_tensor(colors, result.dtype))
