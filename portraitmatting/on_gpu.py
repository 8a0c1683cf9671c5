"""The steps before and after the network in PyTorch, on the GPU that holds the image's pixels.

`shrink_pixels`, `guided_matte`, `cut_out`, `blend` and `blurred` compute what `to_tensor`,
`guided_upsample`, `rgba`, `composite` and `Blur` compute on the CPU. They work on strips of rows,
so that memory other than for the image and the result grows little with the image. Only copies from
and to the CPU wait for the GPU: `upload`, `download`, and `blurred`, which needs both.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.compositing import Blur
from portraitmatting.guided_filter import CERTAIN, fit
from portraitmatting.transforms import area_weights, resize_tensor, shrinks

ONE_IMAGE = threading.RLock()
"""For work on images of full size on a GPU: one at a time. Many threads at once would fill its
memory and gain nothing, as its kernels run one after another."""

_STRIP = 2**22
"""Pixels of a strip, which take 48 MiB in floating point."""
_PEAKS = {torch.uint8: 255, torch.uint16: 65535}
_ALPHA = _PEAKS[torch.uint16]


def to_unit_tensor(pixels: Tensor) -> Tensor:
    """`to_unit` of any shape: uint8 | uint16 | float in [0, 1] -> float32 in [0, 1]."""
    return pixels.to(torch.float32) * (1 / _PEAKS.get(pixels.dtype, 1))


def to_dtype_tensor(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """`to_dtype` of any shape: float32 in [0, 1] -> `dtype`, rounded to the nearest."""
    return (unit * _PEAKS[dtype]).round().to(dtype) if dtype in _PEAKS else unit.to(dtype)


def as_int16(pixels: Tensor) -> Tensor:
    """uint16 as int16 in the same memory, for operators that only move or compare values: PyTorch
    lacks many of them for uint16. Other dtypes as they are."""
    return pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels


def upload(pixels: NDArray[Any], device: torch.device | str) -> Tensor:
    """To a device: the same shape and type, in the byte order of this machine."""
    native = pixels.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(pixels, native, ["C", "W"])).to(device)


def download(pixels: Tensor) -> NDArray[Any]:
    """A tensor as an array; waits until the GPU has computed it."""
    copy = pixels.to("cpu", non_blocking=True)
    if pixels.is_cuda:
        torch.cuda.current_stream(pixels.device).synchronize()
    return copy.numpy()


@torch.inference_mode()
def shrink_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """HxWx3 RGB, uint8 | uint16 | float in [0, 1] -> 3xhxw float32 in [0, 1] of `size`.

    Of integers the small image is rounded to their levels, as in `to_tensor`.
    """
    height, width = pixels.shape[:2]
    if shrinks((height, width), size):
        images = _shrink((_planes(*strip) for strip in _strips(pixels)), pixels, size)
    else:
        images = resize_tensor(_planes(pixels)[None], size)[0]
    if peak := _PEAKS.get(pixels.dtype):
        images = images.mul(peak).round().div(peak)
    return images.clamp(0, 1)


@torch.inference_mode()
def guided_matte(pixels: Tensor, image: Tensor, coarse: Tensor) -> Tensor:
    """`guided_upsample` with all tensors on one device -> HxW uint16, 65535 for 1.

    `pixels` is the image HxWx3, uint8 | uint16 | float in [0, 1], `image` the same 3xhxw at the
    matte's size, from `shrink_pixels`, and `coarse` the matte 1xhxw float32 in [0, 1].
    """
    (height, width), size = pixels.shape[:2], coarse.shape[-2:]
    if not shrinks((height, width), size):
        matte = resize_tensor(coarse[None], (height, width))[0, 0]
        return to_dtype_tensor(matte, torch.uint16)
    lines = fit(image[None], coarse[None])[0]
    left, right, fraction = _interpolation(width, size[1], pixels.device)
    lines = torch.lerp(lines[:, :, left], lines[:, :, right], fraction)
    alpha = torch.empty(height, width, dtype=torch.uint16, device=pixels.device)
    vertical = _interpolation(height, size[0], pixels.device)
    for above, below, fraction, strip, target in _strips(*vertical, pixels, alpha):
        full = torch.lerp(lines[:, above], lines[:, below], fraction[:, None])
        matte = (full[:3] * _planes(strip)).sum(dim=0) + full[3]
        target.copy_(torch.where(matte > CERTAIN, 1, matte).clamp(0, 1).mul(_ALPHA).round())
    return alpha


@torch.inference_mode()
def cut_out(foreground: Tensor, alpha: Tensor) -> Tensor:
    """`rgba` of a foreground HxWx3 and its alpha HxW float32 in [0, 1] -> HxWx4 of the foreground's
    dtype."""
    result = foreground.new_empty(*alpha.shape, 4)
    for target, colours, strip in _strips(result, foreground, alpha):
        levels = as_int16(to_dtype_tensor(strip[..., None], foreground.dtype))
        visible = as_int16(colours).masked_fill(levels == 0, 0)
        torch.cat([visible, levels], dim=2, out=as_int16(target))
    return result


@torch.inference_mode()
def blend(foreground: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """`composite` of a foreground HxWx3 and its alpha HxW float32 in [0, 1] over a background HxWx3
    or 1x1x3 of the same dtype -> HxWx3 of the foreground's dtype."""
    result = torch.empty_like(foreground)
    background = background.expand(foreground.shape)
    for target, front, weight, back in _strips(result, foreground, alpha, background):
        below = to_unit_tensor(back)
        mixed = below + weight[..., None] * (to_unit_tensor(front) - below)
        target.copy_(to_dtype_tensor(mixed, foreground.dtype))
    return result


@torch.inference_mode()
def blurred(pixels: Tensor, alpha: Tensor, blur: Blur) -> Tensor:
    """`blur` of an image HxWx3 and its alpha HxW float32 in [0, 1] -> HxWx3 of the image's dtype.

    Shrinking and enlarging happen on the GPU; the small image between them is blurred on the CPU.
    """
    height, width = alpha.shape
    size, sigma = blur.small(height, width)
    strips = ((_planes(strip), (1 - weight) ** 8) for strip, weight in _strips(pixels, alpha))
    layers = (torch.cat([planes * absent, absent[None]]) for planes, absent in strips)
    small = _shrink(layers, pixels, size).permute(1, 2, 0)
    scene = torch.from_numpy(blur.unfocus(download(small), sigma)).to(pixels.device)
    scene = F.interpolate(scene.permute(2, 0, 1)[None], (height, width), mode="bicubic")[0]
    result = torch.empty_like(pixels)
    for target, strip in _strips(result, scene.permute(1, 2, 0)):
        target.copy_(to_dtype_tensor(strip.clamp(0, 1), pixels.dtype))
    return result


def _shrink(strips: Iterable[Tensor], pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Strips CxhxW that together are `pixels` HxWx3 in another form -> Cxhxw of `size`, by area
    averages."""
    height, width = pixels.shape[:2]
    columns = area_weights(width, size[1], pixels.device).T
    narrow = torch.cat([strip @ columns for strip in strips], dim=1)
    return area_weights(height, size[0], pixels.device) @ narrow


def _planes(pixels: Tensor) -> Tensor:
    """HxWx3 -> 3xHxW float32 in [0, 1]."""
    return to_unit_tensor(pixels.permute(2, 0, 1))


def _strips(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Strips of rows of tensors that have one height, in parallel."""
    rows = max(1, _STRIP // tensors[-1].shape[1])
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _interpolation(large: int, small: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Linear interpolation of a line of `small` pixels to one of `large`: for each pixel of the
    large one the indices of the two small ones that it is between, and its distance from the first
    as a fraction. Pixel centres are at halves; beyond the outermost ones the value stays the same.
    """
    centres = torch.arange(large, dtype=torch.float64, device=device) + 0.5
    positions = (centres * (small / large) - 0.5).clamp(0, small - 1)
    before = positions.long()
    return before, (before + 1).clamp(max=small - 1), (positions - before).float()
