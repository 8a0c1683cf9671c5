"""The decoder: from the pyramid's map up the U, one fusion stage per encoder stage."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from portraitmatting.swin import swin_blocks


def upsample2(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear, corners not aligned."""
    return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Fusion(nn.Module):
    """Maps side by side through a 1x1 convolution and Swin blocks: to (B, channels, H, W)."""

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

    def forward(self, *maps: Tensor) -> Tensor:
        x = self.project(torch.cat(maps, dim=1)).permute(0, 2, 3, 1)
        return self.blocks(x).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """The encoder's maps, the pyramid's in place of the last, to (B, `channels`, H/2, W/2)."""

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
        """`skips` are the encoder's channels from fine to coarse, without its last map."""
        super().__init__()
        blocks = depth * len(channels)
        # The mirror image of the encoder's rule: stochastic depth fades towards the output.
        rates = [drop_path * (blocks - i) / blocks for i in range(blocks)]
        beside = [pyramid] + [s + c for s, c in zip(skips[:0:-1], channels[:-1], strict=True)]
        self.fusions = nn.ModuleList(
            Fusion(into, out, head, window, mlp_ratio, rates[i * depth : (i + 1) * depth])
            for i, (into, out, head) in enumerate(zip(beside, channels, heads, strict=True))
        )
        self.channels = skips[0] + channels[-1]

    def forward(self, skips: Sequence[Tensor], pyramid: Tensor) -> Tensor:
        stem, *stages = skips
        x = self.fusions[0](pyramid)
        for fusion, skip in zip(self.fusions[1:], reversed(stages), strict=True):
            x = fusion(skip, upsample2(x))
        return torch.cat([stem, upsample2(x)], dim=1)
