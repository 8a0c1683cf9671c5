"""Foreground colours: the colours of the person, without those of the background.

Where alpha is between 0 and 1, a pixel mixes foreground and background; over a new background the
old one would show as a halo. Every method estimates F in image = alpha F + (1 - alpha) B.
"""

import itertools
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.choices import METHODS, Method, check_word
from portraitmatting.compositing import check_alpha
from portraitmatting.device import check_process, choose_device, explain_memory, without_autocast
from portraitmatting.images.pixels import check_range, to_unit
from portraitmatting.on_gpu import (
    as_int16,
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

MARGIN = 4
"""Colours are also estimated this many pixels around soft ones, for mattes feathered later."""
LARGEST = 2**20
"""The most pixels that a method runs on; larger images are shrunk for it."""

_TILE = {"cpu": 256, "cuda": 1024}
"""Side of the tiles in which colours are fitted to a large image: on the CPU they fit into a core's
cache, on CUDA they keep the GPU busy with a few hundred MiB of memory."""


@without_autocast()
def estimate_foreground(
    image: NDArray[Any],
    alpha: NDArray[Any],
    method: Method = "ml",
    device: torch.device | str = "cpu",
) -> NDArray[Any]:
    """The colours of the person without the background: HxWx3 of the image's dtype and range.

    They are estimated where alpha is strictly between 0 and 1, and up to `MARGIN` pixels around.
    All other pixels, and those with alpha 1, keep the image's exact values. If the part of the
    image that a method needs has more than `LARGEST` pixels, the method runs on a smaller copy and
    its colours are fitted to the pixels, so that time and memory grow little with the image.

    May be called from several threads at once. Raises PortraitmattingError for wrong shapes,
    ranges, methods or devices, if memory is too small, and in a process that was forked from one
    that has computed already.

    Args:
        image: HxWx3 RGB, uint8 | uint16 | float in 0..1, any size from 1x1.
        alpha: HxW float in 0..1.
        method: "ml": multi-level (Germer et al., "Fast Multi-Level Foreground Estimation", ICPR
            2020). "cf": closed form (Levin et al., 2008), slow. "fast": blur fusion (Forte,
            "Approximate Fast Foreground Colour Estimation", ICIP 2021). "none": the image itself.
        device: what `choose_device` takes. A CUDA device computes everything but "cf", with
            PyTorch's version of "ml" instead of pymatting's. Any other device means the CPU.
    """
    alpha = check_alpha(image, alpha)
    check_range(image, "image")
    check_word("foreground method", method, METHODS)
    chosen = choose_device(str(device))
    if chosen.type != "cuda":
        chosen = torch.device("cpu")
    # A single pixel has no neighbours that would tell foreground from background.
    if method == "none" or alpha.size <= 1:
        return image
    check_process()
    others = "'none'" if method == "fast" else "'fast' or 'none'"
    with explain_memory(f"not enough memory for foreground method {method!r}: use {others}"):
        pixels = foreground_pixels(upload(image, chosen), upload(alpha, chosen), alpha, method)
        return download(pixels).astype(image.dtype, copy=False)


@torch.inference_mode()
def foreground_pixels(
    pixels: Tensor, alpha: Tensor, cpu_alpha: NDArray[np.float32], method: str
) -> Tensor:
    """`estimate_foreground` on the device that holds the image.

    "ml" and "fast" wait for a GPU only to copy lists of pixels to it. Returns HxWx3 of the pixels'
    dtype, on their device; `pixels` itself if no pixel needs a colour.

    Args:
        pixels: the image HxWx3, uint8 | uint16 | float in 0..1, of two pixels or more.
        alpha: HxW float32 in 0..1, on the same device.
        cpu_alpha: the same as an array, from which the CPU finds the pixels that need colours.
        method: "ml", "cf" or "fast".
    """
    soft = soft_region(cpu_alpha)
    if soft is None:
        return pixels
    box, region = soft
    result = pixels.clone()
    part, part_alpha = pixels[box], alpha[box]
    size = _method_size(*region.shape)
    small, small_alpha = _shrink(part, part_alpha, size)
    if method == "fast":
        # Windows depend on the size of the whole image, also if only a part of it is read.
        scale = size[0] / region.shape[0]
        windows = fusion_windows(*(round(side * scale) for side in alpha.shape))
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
        _fit_tiles(result[box], part, part_alpha, region, colors)
    return result


def soft_region(
    alpha: NDArray[np.float32],
) -> tuple[tuple[slice, slice], NDArray[np.bool_]] | None:
    """Where alpha HxW needs foreground colours; None if no pixel is strictly between 0 and 1.

    First the box (rows, columns) that a method has to read: the soft pixels and enough around them
    to see pure foreground and background. Then the pixels to estimate, a mask of the box's size.
    """
    soft = ((alpha > 0) & (alpha < 1)).view(np.uint8)
    left, top, width, height = cv2.boundingRect(soft)
    if not width:
        return None
    border = max(32, min(alpha.shape) // 8)
    box = (
        slice(max(0, top - border), top + height + border),
        slice(max(0, left - border), left + width + border),
    )
    region = cv2.dilate(soft[box], np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)).view(bool)
    return box, region & (alpha[box] < 1)


def _method_size(height: int, width: int) -> tuple[int, int]:
    """The size (h, w) at which a method runs: the same, or smaller, of about `LARGEST` pixels."""
    scale = min(1, (LARGEST / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _shrink(pixels: Tensor, alpha: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixels HxWx3 and alpha HxW -> 3xhxw and hxw, both float32 in 0..1, of `size` (h, w)."""
    if pixels.is_cuda:
        return shrink_pixels(pixels, size), resize_tensor(alpha[None, None], size)[0, 0]
    small = torch.from_numpy(to_unit(resize(pixels.numpy(), size)))
    return small.permute(2, 0, 1), torch.from_numpy(resize(alpha.numpy(), size)).clamp(0, 1)


def _fit_tiles(
    result: Tensor, image: Tensor, alpha: Tensor, region: NDArray[np.bool_], colors: Tensor
) -> None:
    """Fit colours that were estimated on a smaller copy to the image, and write them to `result`.

    Args:
        result: HxWx3 of the image's dtype; written where `region` is True.
        image: HxWx3.
        alpha: HxW float32 in 0..1.
        region: HxW, on the CPU.
        colors: 6xhxw float32 in 0..1, foreground, then background.
    """
    device = image.device
    height, width = region.shape
    side = _TILE[device.type]
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        if not region[top : top + side, left : left + side].any():
            continue
        # Each step reads the pixels next to a pixel, so a tile grows by one pixel for each.
        rows, columns = (
            np.arange(start - FIT_STEPS, min(start + side, end) + FIT_STEPS).clip(0, end - 1)
            for start, end in ((top, height), (left, width))
        )
        vertical, small_rows = interpolation(rows, height, colors.shape[1])
        horizontal, small_columns = interpolation(columns, width, colors.shape[2])
        coarse = colors[:, small_rows, small_columns]
        first = vertical.to(device) @ coarse @ horizontal.T.to(device)
        fitted = region[np.ix_(rows, columns)]
        fitted[[0, -1]] = fitted[:, [0, -1]] = False
        inner = np.zeros_like(fitted)
        inner[FIT_STEPS:-FIT_STEPS, FIT_STEPS:-FIT_STEPS] = True
        in_tile = np.flatnonzero(fitted)
        y, x = rows[in_tile // len(columns)], columns[in_tile % len(columns)]
        kept = np.flatnonzero(inner.ravel()[in_tile])  # not the pixels that the tile grew by
        index, own, place, down, right = (
            torch.from_numpy(array).to(device)
            for array in (in_tile, kept, y * width + x, rows, columns)
        )
        pixels = to_unit_tensor(as_int16(image)[place // width, place % width].view(image.dtype))
        result_colors = fit_colors(pixels, alpha[down[:, None], right], first, index)
        _write(result, place[own], result_colors[own, :3])


def _write(result: Tensor, index: Tensor, colors: Tensor) -> None:
    """Write colours Nx3 float32 in 0..1 to the pixels at N flat indices of `result` HxWx3."""
    width = result.shape[1]
    pixels = as_int16(to_dtype_tensor(colors, result.dtype))
    as_int16(result)[index // width, index % width] = pixels
