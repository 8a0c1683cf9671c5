"""The decoder: pyramid pooling of the last map, and the way up the U."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portraitmatting.modeling.swin import swin_blocks


def upsample(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear, corners not aligned."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """(B, C, H, W) to (B, `channels`, H, W): the input, then one branch per pooling kernel
    (Zhao et al., CVPR 2017).

    The kernels are fixed (3, 7, 11, 15 cells of the map), not fractions of the image as in the
    paper, so a wide image is pooled in the same neighbourhoods as a small one.
    """

    def __init__(
        self, in_channels: int, reduced: int, branch_channels: int, kernels: Sequence[int]
    ) -> None:
        super().__init__()
        self.channels = in_channels + branch_channels * len(kernels)
        self.reduce = nn.Conv2d(in_channels, reduced, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AvgPool2d(kernel, kernel, (kernel - 1) // 2, count_include_pad=False),
                nn.Conv2d(reduced, branch_channels, 1),
                nn.GroupNorm(branch_channels // 8, branch_channels),
                nn.ReLU(),
            )
            for kernel in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        pooled = [
            F.interpolate(branch(reduced), size=x.shape[-2:], mode="bilinear", align_corners=False)
            for branch in self.branches
        ]
        return torch.cat([x, *pooled], dim=1)


class DecoderBlock(nn.Module):
    """The map from below beside the encoder's, through a 1x1 convolution and Swin blocks.

    below (B, C, H/2, W/2) and skip (B, S, H, W) to (B, channels, H, W); at the bottom of the U,
    where there is no skip, below is (B, C, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        drop_path: Sequence[float],
    ) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, 1)
        self.blocks = swin_blocks(channels, heads, window, mlp_ratio, drop_path)

    def forward(self, below: Tensor, skip: Tensor | None = None) -> Tensor:
        x = below if skip is None else torch.cat([skip, upsample(below)], dim=1)
        x = self.project(x).permute(0, 2, 3, 1)
        return self.blocks(x).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """The encoder's maps, the pyramid's in place of the last, to (B, channels[-1], H/4, W/4)."""

    def __init__(
        self,
        skips: Sequence[int],
        pyramid: int,
        channels: Sequence[int],
        heads: Sequence[int],
        depth: int,
        window: int,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        """`skips` are the channels of the encoder's stages, from fine to coarse, but the last's."""
        super().__init__()
        blocks = depth * len(channels)
        # The mirror image of the encoder's rule: stochastic depth fades towards the output.
        rates = [drop_path * (blocks - i) / blocks for i in range(blocks)]
        below, beside = [pyramid, *channels[:-1]], [0, *skips[::-1]]
        self.fusions = nn.ModuleList(
            DecoderBlock(
                below[i] + beside[i],
                channels[i],
                heads[i],
                window,
                mlp_ratio,
                rates[i * depth : (i + 1) * depth],
            )
            for i in range(len(channels))
        )

    def forward(self, skips: Sequence[Tensor], pyramid: Tensor) -> Tensor:
        x = self.fusions[0](pyramid)
        for block, skip in zip(self.fusions[1:], reversed(skips), strict=True):
            x = block(x, skip)
        return x
