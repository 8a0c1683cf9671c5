"""The person's own colours: what a soft edge looks like without the old background in it.

Where alpha lies between 0 and 1 a pixel mixes foreground and background; pasting it elsewhere
shows the old background as a halo. Every method here finds F of image = alpha F + (1 - alpha) B.
"""

import itertools
import math
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.choices import METHODS, check_word
from portraitmatting.compositing import check_alpha
from portraitmatting.device import explain_memory
from portraitmatting.images.pixels import check_range, to_dtype, to_unit
from portraitmatting.pymatting_solvers import load_solver
from portraitmatting.transforms import interpolation, resize

Method = Literal["ml", "cf", "fast", "none"]

MARGIN = 4
"""Pixels around soft ones whose colours are estimated, too: mattes are feathered and resized."""
LARGEST = 2**20
"""Pixels at which a method runs at most."""

_TILE = 256
_STEPS = 2
_REGULARIZATION = 1e-5
_ZEROS = cv2.BORDER_CONSTANT


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
            2020). "cf": closed form (Levin et al., 2008), slow. "fast": `blur_fusion`. "none": the
            image itself.
        device: where "fast" is computed, and on CUDA also "ml".

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
        return _estimate(image, weight, method, device)


def _estimate(
    image: NDArray[Any], alpha: NDArray[np.float32], method: str, device: torch.device | str
) -> NDArray[Any]:
    soft = ((alpha > 0) & (alpha < 1)).view(np.uint8)
    if not soft.any():
        return image
    box = _surroundings(soft)
    region = cv2.dilate(soft, np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)).view(bool)
    region &= alpha < 1
    part, weight, region = image[box], alpha[box], region[box]
    size = small_size(*weight.shape)
    small, small_alpha = to_unit(resize(part, size)), resize(weight, size).clip(0, 1)
    if method == "fast" or (method == "ml" and torch.device(device).type == "cuda"):
        planes = torch.from_numpy(small).to(device).permute(2, 0, 1)
        matte = torch.from_numpy(small_alpha).to(device)
        # The windows fit the whole image, whatever part of it is looked at.
        scale = size[0] / weight.shape[0]
        windows = fusion_windows(*(round(side * scale) for side in alpha.shape))
        both = _fuse(planes, matte, windows) if method == "fast" else multi_level(planes, matte)
        colors = both.cpu().numpy()
    else:
        front, back = load_solver(method)(small, small_alpha)
        colors = np.concatenate([front, back], axis=2).transpose(2, 0, 1)
    result = image.copy()
    if size == weight.shape:
        front = colors[:3].transpose(1, 2, 0)[region]
        result[box][region] = to_dtype(front, image.dtype)
    else:
        _fit_tiles(result[box], part, weight, region, torch.from_numpy(colors))
    return result


def _surroundings(region: NDArray[np.uint8]) -> tuple[slice, slice]:
    """What holds the region, and around it enough to tell the colours on both sides."""
    around = max(32, min(region.shape) // 8)
    left, top, width, height = cv2.boundingRect(region)
    rows = slice(max(0, top - around), top + height + around)
    return rows, slice(max(0, left - around), left + width + around)


def small_size(height: int, width: int) -> tuple[int, int]:
    """The size (h, w) at which a method runs: the same, or one of about `LARGEST` pixels."""
    scale = min(1, (LARGEST / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _fit_tiles(
    result: NDArray[Any],
    image: NDArray[Any],
    alpha: NDArray[np.float32],
    region: NDArray[np.bool_],
    colors: Tensor,
) -> None:
    """Bring colours 6xhxw (foreground above background) to the pixels of `region` in `result`."""
    for top, left in itertools.product(*(range(0, side, _TILE) for side in alpha.shape)):
        inner = np.s_[top : top + _TILE, left : left + _TILE]
        if not region[inner].any():
            continue
        # Each step reads the pixels around, so that a tile needs one more of them for each.
        rows, columns = (
            np.arange(start - _STEPS, min(start + _TILE, end) + _STEPS).clip(0, end - 1)
            for start, end in zip((top, left), alpha.shape, strict=True)
        )
        outer = np.ix_(rows, columns)
        vertical, near_rows = interpolation(rows, alpha.shape[0], colors.shape[1])
        horizontal, near_columns = interpolation(columns, alpha.shape[1], colors.shape[2])
        first = vertical @ colors[:, near_rows, near_columns] @ horizontal.T
        wanted = region[outer]
        wanted[[0, -1]] = wanted[:, [0, -1]] = False
        index = torch.from_numpy(np.flatnonzero(wanted))
        pixels, levels = to_unit(image[outer]), alpha[outer]
        known = torch.from_numpy(pixels), torch.from_numpy(levels)
        fitted = fit_colors(known[0], known[1], first, index).numpy()
        pixels.reshape(-1, 3)[index.numpy()] = fitted[:, :3]
        front = pixels[_STEPS:-_STEPS, _STEPS:-_STEPS][region[inner]]
        result[inner][region[inner]] = to_dtype(front, image.dtype)


@torch.no_grad()
def fit_colors(image: Tensor, alpha: Tensor, colors: Tensor, index: Tensor) -> Tensor:
    """Two steps of the multi-level method's finest level, from estimates of a coarser one.

    Args:
        image: HxWx3 float32 in 0..1.
        alpha: HxW float32 in 0..1.
        colors: 6xHxW float32 in 0..1, estimates of foreground above background.
        index: N flat indices of the pixels to fit, none of them on the frame.

    Returns Nx6 float32 in 0..1, none of which depends on pixels more than two away.
    """
    width = alpha.shape[1]
    state, levels = colors.flatten(1).T.contiguous(), alpha.flatten()
    pixels, level = image.reshape(-1, 3)[index], levels[index, None]
    around = [index + step for step in (-1, 1, -width, width)]
    weights = [_REGULARIZATION + (level - levels[pixel, None]).abs() for pixel in around]
    total = torch.stack(weights).sum(dim=0)
    for _ in range(_STEPS):
        means = sum(w * state[p] for w, p in zip(weights, around, strict=True)) / total
        front, back = _unmix(pixels, level, means[:, :3], means[:, 3:], total)
        state[index] = torch.cat([front, back], dim=1)
    return state[index]


def _unmix(
    image: Tensor, alpha: Tensor, front: Tensor, back: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """The colours that mix to the image and are near `front` and `back`, weighted by `total`:
    equation 4 of the multi-level paper, solved for one pixel, whose neighbours' means they are."""
    rest = image - alpha * front - (1 - alpha) * back
    rest = rest / (alpha**2 + (1 - alpha) ** 2 + total)
    return (front + alpha * rest).clamp(0, 1), (back + (1 - alpha) * rest).clamp(0, 1)


@torch.no_grad()
def multi_level(image: Tensor, alpha: Tensor) -> Tensor:
    """ "ml" in PyTorch, for devices other than the CPU, where pymatting has it.

    image 3xHxW and alpha HxW float32 in 0..1 -> 6xHxW, foreground above background. As
    `pymatting.estimate_foreground_ml`, except that a sweep updates every second pixel, as on a
    checkerboard, and then the others, where pymatting goes pixel by pixel.
    """
    height, width = alpha.shape
    masks = (alpha > 0.9).float(), (alpha < 0.1).float()
    means = [(image * mask).sum(dim=(1, 2)) / (mask.sum() + 1e-5) for mask in masks]
    state = torch.cat(means)[:, None, None]
    levels = max(1, math.ceil(math.log2(max(height, width))))
    for level in range(levels + 1):
        size = tuple(round(side ** (level / levels)) for side in (height, width))
        pixels, matte = _nearest(image, size), _nearest(alpha[None], size)
        state = _nearest(state, size)
        weights = [_REGULARIZATION + (matte - other).abs() for other in _neighbours(matte)]
        total = torch.stack(weights).sum(dim=0)
        rows, columns = (torch.arange(side, device=image.device) for side in size)
        odd = ((rows[:, None] + columns) % 2).bool()
        for sweep in range(2 * (10 if max(size) <= 32 else 2)):
            near = zip(weights, _neighbours(state), strict=True)
            smooth = sum(weight * other for weight, other in near) / total
            both = torch.cat(_unmix(pixels, matte, smooth[:3], smooth[3:], total))
            state = torch.where(odd ^ bool(sweep % 2), state, both)
    return state


def _nearest(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    rows, columns = (
        torch.arange(new, device=planes.device) * old // new
        for new, old in zip(size, planes.shape[1:], strict=True)
    )
    return planes[:, rows][:, :, columns]


def _neighbours(planes: Tensor) -> list[Tensor]:
    """The pixels left, right, above and below of CxHxW, those on the border being their own."""
    framed = F.pad(planes[None], (1, 1, 1, 1), mode="replicate")[0]
    middle = framed[:, 1:-1], framed[:, :, 1:-1]
    return [middle[0][..., :-2], middle[0][..., 2:], middle[1][:, :-2], middle[1][:, 2:]]


@torch.no_grad()
def blur_fusion(image: Tensor, alpha: Tensor) -> Tensor:
    """image BCHW and alpha B1HW, float in [0, 1] -> foreground colours BCHW of the image's dtype,
    device and size, any size from 1x1; without gradients.

    Blur fusion (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021): the mean
    colours of foreground and background in a window, corrected so that they mix to the image
    again; once with a wide window, then with a narrow one. Computed in float32 whatever comes in.
    """
    windows = fusion_windows(*image.shape[-2:])
    both = [_fuse(*one, windows) for one in zip(image.float(), alpha[:, 0].float(), strict=True)]
    return torch.stack(both)[:, :3].to(image.dtype)


@torch.no_grad()
def _fuse(scene: Tensor, matte: Tensor, windows: tuple[int, int]) -> Tensor:
    """3xHxW and HxW float32 -> 6xHxW, foreground above background."""
    scene, matte = scene[None], matte[None, None]
    front = back = scene
    for window in windows:
        front_mean = _weighted_mean(front, matte, window)
        back = _weighted_mean(back, 1 - matte, window)
        # F^ + a (I - a F^ - (1 - a) B^)
        mixed = torch.lerp(back, front_mean, matte)
        front = torch.addcmul(front_mean, matte, scene - mixed).clamp_(0, 1)
    return torch.cat([front, back], dim=1)[0]


def fusion_windows(height: int, width: int) -> tuple[int, int]:
    """The wide and the narrow window for an image of this size: odd, in pixels.

    The paper has 90 and 6 at any size. Windows that grow with the image do better: on 10
    cut-outs with known colours, 420 pixels high, the mean error at the edges falls from 8.6 grey
    levels to 8.1, and from 11.0 to 9.2 if these edges are out of focus ("ml": 8.5 and 7.1).
    """
    short = min(height, width)
    return max(7, short // 8 // 2 * 2 + 1), max(3, short // 56 // 2 * 2 + 1)


def _weighted_mean(colours: Tensor, weight: Tensor, window: int) -> Tensor:
    """Where nothing in the window has weight, the colour itself."""
    tiny = 1e-5
    total = _box(colours * weight, window)
    return total.add_(colours, alpha=tiny).div_(_box(weight, window).add_(tiny))


def _box(planes: Tensor, window: int) -> Tensor:
    """BCHW float32 -> means over window x window pixels, zeros outside."""
    if planes.device.type == "cpu":
        # OpenCV's running sums: four times as fast as anything torch has for the CPU.
        means = torch.empty_like(planes, memory_format=torch.contiguous_format)
        for source, target in zip(planes.flatten(0, 1), means.flatten(0, 1), strict=True):
            cv2.blur(source.numpy(), (window, window), target.numpy(), borderType=_ZEROS)
        return means
    return _box_by_sums(planes, window)


def _box_by_sums(planes: Tensor, window: int) -> Tensor:
    return _window_sums(_window_sums(planes, window, 3), window, 2) / window**2


def _window_sums(planes: Tensor, window: int, axis: int) -> Tensor:
    """Sums of `window` neighbours along an axis, by adding sums of 1, 2, 4, ... of them: few
    steps, and without the rounding errors of differences of cumulative sums."""
    before = window // 2
    pad = (before, before, 0, 0) if axis == 3 else (0, 0, before, before)
    run, length = F.pad(planes, pad), planes.shape[axis]
    sums, done, width = torch.zeros_like(planes), 0, 1
    while width <= window:
        if window & width:
            sums = sums + run.narrow(axis, done, length)
            done += width
        rest = run.shape[axis] - width
        if rest > 0:
            run = run.narrow(axis, 0, rest) + run.narrow(axis, width, rest)
        width *= 2
    return sums
