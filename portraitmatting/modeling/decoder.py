"""The decoder: from the pyramid's map up the U, one fusion stage per encoder stage."""

from collections.abc import Sequence

from torch import Tensor, nn

from portraitmatting.modeling.cpu import linear
from portraitmatting.modeling.swin import swin_blocks


def upsample2(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear, corners not aligned."""
    return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class DecoderBlock(nn.Module):
    """A skip beside the map from below, through a 1x1 convolution and Swin blocks.

    skip (B, S, H, W), absent at the bottom of the U, and below (B, C, H/2, W/2) (at the bottom
    H x W) to (B, channels, H, W).
    """

    def __init__(
        self,
        skip_channels: int,
        below_channels: int,
        channels: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        drop_path: Sequence[float],
    ) -> None:
        super().__init__()
        self.skip_channels = skip_channels
        self.project = nn.Conv2d(skip_channels + below_channels, channels, 1)
        self.blocks = swin_blocks(channels, heads, window, mlp_ratio, drop_path)

    def forward(self, below: Tensor, skip: Tensor | None = None) -> Tensor:
        weight, bias = self.project.weight[:, :, 0, 0], self.project.bias
        below = below.permute(0, 2, 3, 1)
        if skip is None:
            x = linear(below, weight, bias)
        else:
            # A 1x1 convolution over both side by side is the sum of one over each, and commutes
            # with interpolation: below, it costs a quarter, and nothing has to be concatenated.
            for_skip, for_below = weight.split([self.skip_channels, below.shape[-1]], dim=1)
            x = linear(below, for_below.contiguous()).permute(0, 3, 1, 2)
            x = upsample2(x).permute(0, 2, 3, 1)
            x = x + linear(skip.permute(0, 2, 3, 1), for_skip.contiguous(), bias)
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
        beside, below = [0, *skips[::-1]], [pyramid, *channels[:-1]]
        self.fusions = nn.ModuleList(
            DecoderBlock(*sizes, window, mlp_ratio, rates[i * depth : (i + 1) * depth])
            for i, sizes in enumerate(zip(beside, below, channels, heads, strict=True))
        )

    def forward(self, skips: Sequence[Tensor], pyramid: Tensor) -> Tensor:
        x = self.fusions[0](pyramid)
        for fusion, skip in zip(self.fusions[1:], reversed(skips), strict=True):
            x = fusion(x, skip)
        return x
