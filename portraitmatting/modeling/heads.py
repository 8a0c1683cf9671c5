"""The two heads, and `fuse`, which makes one matte of what they say."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from portraitmatting.modeling.cpu import STRIP
from portraitmatting.modeling.decoder import upsample2
from portraitmatting.modeling.strips import convolve_beside_upsampled, join, run

BACKGROUND, UNKNOWN, FOREGROUND = 0, 1, 2
"""The trimap's classes, in the order of its logits."""


class TrimapHead(nn.Module):
    """Detail map (B, C, H/2, W/2) to trimap logits (B, 3, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.GroupNorm(channels // 4, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
            nn.GroupNorm(channels // 8, channels),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Conv2d(channels, 3, 1),
        )

    def forward(self, detail: Tensor) -> Tensor:
        return upsample2(self.layers(detail))

    def by_strips(self, stem: Tensor, below: Tensor) -> Tensor:
        """The same for inference on a CPU, of what the detail map is made of: stem (1, S, H/2, W/2)
        and below (1, D, H/4, W/4)."""
        first, *rest = self.layers
        x = join(_convolve(stem, below, first))
        for layer in rest:  # the normalisations need it whole
            x = torch.ops.aten.gelu_(x) if isinstance(layer, nn.GELU) else layer(x)
        return upsample2(x)


class AlphaHead(nn.Module):
    """Detail map (B, C, H/2, W/2) and image (B, 3, H, W) to raw alpha (B, 1, H, W), unclamped."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.coarse = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.PReLU(channels),
            nn.Conv2d(channels, half, 3, padding=1),
            nn.PReLU(half),
        )
        self.fine = nn.Sequential(
            nn.Conv2d(3 + half, half, 3, padding=1),
            nn.PReLU(half),
            nn.Conv2d(half, quarter, 3, padding=1),
            nn.PReLU(quarter),
            nn.Conv2d(quarter, 1, 3, padding=1),
        )

    def forward(self, detail: Tensor, image: Tensor) -> Tensor:
        return self.fine(torch.cat([image, upsample2(self.coarse(detail))], dim=1))

    def by_strips(self, stem: Tensor, below: Tensor, image: Tensor) -> Tensor:
        """The same for inference on a CPU, of the image and the detail map's parts, as above."""
        first, *rest = self.coarse
        x = run(_convolve(stem, below, first), rest)
        first, *rest = self.fine
        images = image.split(4 * _rows(below), dim=2)
        x = convolve_beside_upsampled(images, x, cast(nn.Conv2d, first), image.shape[1])
        return join(run(x, rest))


def _convolve(stem: Tensor, below: Tensor, layer: nn.Module) -> Iterator[Tensor]:
    """A head's first layer."""
    rows = _rows(below)
    stems, halves = stem.split(2 * rows, dim=2), below.split(rows, dim=2)
    return convolve_beside_upsampled(stems, halves, cast(nn.Conv2d, layer), stem.shape[1])


def _rows(below: Tensor) -> int:
    """Of `below` in a strip: what is made of them is about twice as much."""
    _, channels, _, width = below.shape
    return max(1, STRIP // (2 * channels * width))


def fuse(alpha: Tensor, trimap_logits: Tensor) -> Tensor:
    """Raw alpha (B, 1, H, W) and trimap logits (B, 3, H, W) to a matte in [0, 1], float32.

    The clamped alpha where the trimap says unknown, exactly 1 in its foreground, exactly 0 in its
    background.
    """
    trimap = trimap_logits.argmax(dim=1, keepdim=True)
    matte = alpha.float().clamp(0, 1)
    return torch.where(trimap == UNKNOWN, matte, (trimap == FOREGROUND).to(matte))
