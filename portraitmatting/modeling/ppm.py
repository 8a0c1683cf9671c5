"""Pyramid pooling (Zhao et al., CVPR 2017): the scene at four scales beside the last map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PyramidPooling(nn.Module):
    """(B, C, H, W) to (B, `channels`, H, W): the input, then one branch per pooling kernel.

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
