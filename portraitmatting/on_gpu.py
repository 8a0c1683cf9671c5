"""What a prediction does beside the network, on the GPU where the image's pixels are.

By the formulas of `to_tensor` and `guided_upsample`, strip by strip, so that memory beside the
pixels and the matte hardly grows with the image. Nothing here waits for the GPU or copies to it.
"""

import torch
from torch import Tensor

from portraitmatting.guided_filter import CERTAIN, fit
from portraitmatting.transforms import area_weights, resize_tensor, shrinks

_STRIP = 2**22
"""Pixels that are floating point at a time: 48 MiB."""
_PEAKS = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
_ALPHA = _PEAKS[torch.uint16]


@torch.inference_mode()
def shrink_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels HxWx3 RGB, uint8 | uint16 | float32 in [0, 1] -> 3xhxw float32 in [0, 1] of `size`.

    Rounded to the pixels' depth, as `to_tensor` does it.
    """
    height, width = pixels.shape[:2]
    if shrinks((height, width), size):
        columns = area_weights(width, size[1], pixels.device).T
        strips = [_planes(strip) @ columns for strip in pixels.split(_rows(width))]
        images = area_weights(height, size[0], pixels.device) @ torch.cat(strips, dim=1)
    else:
        images = resize_tensor(_planes(pixels)[None], size)[0]
    peak = _PEAKS[pixels.dtype]
    if peak > 1:
        images = images.mul(peak).round().div(peak)
    return images.clamp(0, 1)


@torch.inference_mode()
def guided_matte(pixels: Tensor, image: Tensor, coarse: Tensor) -> Tensor:
    """`guided_upsample` of pixels HxWx3 and their matte 1xhxw, float32 in [0, 1], on one device,
    with the image as `shrink_pixels` gives it at the matte's size -> HxW uint16, 65535 for 1."""
    (height, width), size = pixels.shape[:2], coarse.shape[-2:]
    if not shrinks((height, width), size):
        matte = resize_tensor(coarse[None], (height, width))[0, 0]
        return matte.clamp(0, 1).mul(_ALPHA).round().to(torch.uint16)
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


def _planes(pixels: Tensor) -> Tensor:
    return pixels.permute(2, 0, 1).to(torch.float32) / _PEAKS[pixels.dtype]


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
