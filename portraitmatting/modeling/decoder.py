"""The decoder: pyramid pooling of the encoder's last map, then the upward path of the U-Net."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portraitmatting.modeling.swin import swin_blocks


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W), bilinear, corners not aligned."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al., CVPR 2017): (B, C, H, W) to (B, `channels`, H, W), the input
    and one pooled branch per kernel.

    Kernels have fixed sizes in pixels of the map, where the paper has fractions of the image: the
    pooled neighbourhoods are the same in small and in large images.
    """

    def __init__(
        self, in_channels: int, reduced: int, branch_channels: int, kernels: Sequence[int]
    ) -> None:
        """
        Args:
            in_channels: of the input.
            reduced: channels that the branches pool.
            branch_channels: channels that each branch adds to the output.
            kernels: the side of each pooling kernel, odd.
        """
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
    """One step up: the coarser map and the encoder's map of the next finer stage, concatenated,
    then a 1x1 convolution and Swin blocks.

    below (B, C, H/2, W/2) and skip (B, S, H, W) to (B, channels, H, W). The first block has no skip
    and keeps the size: below (B, C, H, W) to (B, channels, H, W).
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
        """
        Args:
            in_channels: of below and skip together, C + S.
            channels: of the output.
            heads: of the attention.
            window: side of the attention's windows.
            mlp_ratio: hidden channels of an MLP per channel.
            drop_path: the rate of stochastic depth of each Swin block.
        """
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, 1)
        self.blocks = swin_blocks(channels, heads, window, mlp_ratio, drop_path)

    def forward(self, below: Tensor, skip: Tensor | None = None) -> Tensor:
        x = below if skip is None else torch.cat([skip, upsample(below)], dim=1)
        x = self.project(x).permute(0, 2, 3, 1)
        return self.blocks(x).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """The upward path: the pyramid's map (B, C, H/32, W/32) and the encoder's maps of strides 4, 8
    and 16 to (B, channels[-1], H/4, W/4), for an image HxW."""

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
        """
        Args:
            skips: channels of the encoder's stages from fine to coarse, without the last stage.
            pyramid: channels of the pyramid's map.
            channels: of each block's output, from coarse to fine.
            heads: of each block's attention.
            depth: Swin blocks per block.
            window: side of the attention's windows.
            mlp_ratio: hidden channels of an MLP per channel.
            drop_path: the largest rate of stochastic depth.
        """
        super().__init__()
        blocks = depth * len(channels)
        # Opposite to the encoder: the rate of stochastic depth falls towards the output.
        rates = [drop_path * (blocks - i) / blocks for i in range(blocks)]
        below, skip = [pyramid, *channels[:-1]], [0, *skips[::-1]]
        self.fusions = nn.ModuleList(
            DecoderBlock(
                below[i] + skip[i],
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
