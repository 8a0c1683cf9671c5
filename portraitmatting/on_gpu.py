"""What happens to an image beside the network, on the GPU that holds its pixels.

By the formulas of `to_tensor`, `guided_upsample`, `rgba`, `composite` and `Blur`, strip by strip,
so that memory beside pixels and results hardly grows with the image. Nothing here waits for the GPU
but `download`, which the blur needs for its small image.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.compositing import Blur
from portraitmatting.guided_filter import CERTAIN, fit
from portraitmatting.transforms import area_weights, resize_tensor, shrinks

_STRIP = 2**22
"""Pixels that are floating point at a time: 48 MiB."""
_PEAKS = {torch.uint8: 255, torch.uint16: 65535}
_ALPHA = _PEAKS[torch.uint16]


def to_unit_tensor(pixels: Tensor) -> Tensor:
    """`to_unit` of any shape: uint8 | uint16 | float in [0, 1] -> float32 in [0, 1]."""
    return pixels.to(torch.float32) * (1 / _PEAKS.get(pixels.dtype, 1))


def to_dtype_tensor(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """`to_dtype` of float32 in [0, 1], any shape, rounded to the nearest."""
    return (unit * _PEAKS[dtype]).round().to(dtype) if dtype in _PEAKS else unit.to(dtype)


def bits(pixels: Tensor) -> Tensor:
    """The same memory in a type for which PyTorch has every operator, as it has not for uint16."""
    return pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels


def upload(pixels: NDArray[Any], device: torch.device | str) -> Tensor:
    """HxWxC or HxW to a device; of one colour everywhere just one pixel, 1x1xC."""
    if pixels.ndim == 3 and pixels.strides[:2] == (0, 0):
        pixels = pixels[:1, :1]
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(device)


def download(pixels: Tensor) -> NDArray[Any]:
    """To NumPy; from a GPU through pinned memory, once all that makes the pixels is done."""
    copy = pixels.to("cpu", non_blocking=True)
    if pixels.is_cuda:
        torch.cuda.current_stream(pixels.device).synchronize()
    return copy.numpy()


@torch.inference_mode()
def shrink_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """HxWx3 RGB, uint8 | uint16 | float in [0, 1] -> 3xhxw float32 in [0, 1] of `size`.

    Rounded to the pixels' depth, as `to_tensor` does it.
    """
    height, width = pixels.shape[:2]
    if shrinks((height, width), size):
        images = _shrink((_planes(strip) for strip in pixels.split(_rows(width))), pixels, size)
    else:
        images = resize_tensor(_planes(pixels)[None], size)[0]
    if peak := _PEAKS.get(pixels.dtype):
        images = images.mul(peak).round().div(peak)
    return images.clamp(0, 1)


@torch.inference_mode()
def guided_matte(pixels: Tensor, image: Tensor, coarse: Tensor) -> Tensor:
    """`guided_upsample` of pixels HxWx3 and their matte 1xhxw, float32 in [0, 1], on one device,
    with the image as `shrink_pixels` gives it at the matte's size -> HxW uint16, 65535 for 1."""
    (height, width), size = pixels.shape[:2], coarse.shape[-2:]
    if not shrinks((height, width), size):
        matte = resize_tensor(coarse[None], (height, width))[0, 0]
        return to_dtype_tensor(matte, torch.uint16)
    lines = fit(image[None], coarse[None])[0]
    left, right, part = _between(width, size[1], pixels.device)
    lines = torch.lerp(lines[:, :, left], lines[:, :, right], part)
    alpha = torch.empty(height, width, dtype=torch.uint16, device=pixels.device)
    vertical = _between(height, size[0], pixels.device)
    step = _rows(width)
    for above, below, part, strip, target in zip(
        *(line.split(step) for line in vertical), pixels.split(step), alpha.split(step), strict=True
    ):
        full = torch.lerp(lines[:, above], lines[:, below], part[:, None])
        matte = (full[:3] * _planes(strip)).sum(dim=0) + full[3]
        target.copy_(torch.where(matte > CERTAIN, 1, matte).clamp(0, 1).mul(_ALPHA).round())
    return alpha


@torch.inference_mode()
def cut_out(foreground: Tensor, alpha: Tensor) -> Tensor:
    """`rgba` of HxWx3 and HxW float32 in [0, 1] -> HxWx4 of the foreground's dtype."""
    result = foreground.new_empty(*alpha.shape, 4)
    step = _rows(alpha.shape[1])
    for target, colors, strip in zip(
        *(tensor.split(step) for tensor in (result, foreground, alpha)), strict=True
    ):
        level = bits(to_dtype_tensor(strip[..., None], foreground.dtype))
        torch.cat([bits(colors).masked_fill(level == 0, 0), level], dim=2, out=bits(target))
    return result


@torch.inference_mode()
def blend(foreground: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """`composite` of HxWx3 and HxW float32 in [0, 1] over a background, HxWx3 of the same dtype or
    what expands to that -> HxWx3 of the foreground's dtype."""
    result = torch.empty_like(foreground)
    step = _rows(alpha.shape[1])
    background = background.expand(foreground.shape)
    for target, front, level, back in zip(
        *(tensor.split(step) for tensor in (result, foreground, alpha, background)), strict=True
    ):
        below = to_unit_tensor(back)
        mixed = below + level[..., None] * (to_unit_tensor(front) - below)
        target.copy_(to_dtype_tensor(mixed, foreground.dtype))
    return result


@torch.inference_mode()
def blurred(pixels: Tensor, alpha: Tensor, blur: Blur) -> Tensor:
    """`blur` of an image HxWx3 and its alpha HxW float32 in [0, 1] -> HxWx3 of the image's dtype.

    What is done at the size of the image happens here, the rest, on few pixels, on the CPU.
    """
    height, width = alpha.shape
    size, sigma = blur.small(height, width)
    step = _rows(width)
    absent = ((1 - level) ** 8 for level in alpha.split(step))
    layers = (
        torch.cat([_planes(strip) * weight, weight[None]])
        for strip, weight in zip(pixels.split(step), absent, strict=True)
    )
    small = _shrink(layers, pixels, size).permute(1, 2, 0)
    scene = torch.from_numpy(blur.unfocus(download(small), sigma)).to(pixels.device)
    scene = F.interpolate(scene.permute(2, 0, 1)[None], (height, width), mode="bicubic")[0]
    result = torch.empty_like(pixels)
    for target, strip in zip(result.split(step), scene.permute(1, 2, 0).split(step), strict=True):
        target.copy_(to_dtype_tensor(strip.clamp(0, 1), pixels.dtype))
    return result


def _shrink(strips: Iterable[Tensor], pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Planes of an image HxWx3, one strip after another, to `size` by area averages."""
    height, width = pixels.shape[:2]
    columns = area_weights(width, size[1], pixels.device).T
    narrow = torch.cat([strip @ columns for strip in strips], dim=1)
    return area_weights(height, size[0], pixels.device) @ narrow


def _planes(pixels: Tensor) -> Tensor:
    return to_unit_tensor(pixels.permute(2, 0, 1))


def _rows(width: int) -> int:
    """Of a strip."""
    return max(1, _STRIP // width)


def _between(large: int, small: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel of a line of `large`: between which two of `small` it lies, and where; pixel
    centres at halves, ends held."""
    centres = torch.arange(large, dtype=torch.float64, device=device) + 0.5
    positions = (centres * (small / large) - 0.5).clamp(0, small - 1)
    before = positions.long()
    return before, (before + 1).clamp(max=small - 1), (positions - before).float()
