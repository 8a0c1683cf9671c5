"""The two heads, and `fuse`, which combines their outputs into a matte."""

import torch
from torch import Tensor, nn

from portraitmatting.modeling.decoder import upsample
from portraitmatting.trimap import FOREGROUND, UNKNOWN


class TrimapHead(nn.Module):
    """Detail map (B, C, H/2, W/2) to trimap logits (B, 3, H, W), in the classes' order."""

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
        *layers, logits = self.layers  # the last may be float32 in a network of fewer bits
        x = nn.Sequential(*layers)(detail)
        return upsample(logits(x.to(logits.weight.dtype)))


class AlphaHead(nn.Module):
    """Detail map (B, C, H/2, W/2) and image (B, 3, H, W) to alpha (B, 1, H, W), not clamped."""

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
        *layers, alpha = self.fine  # the last may be float32 in a network of fewer bits
        x = nn.Sequential(*layers)(torch.cat([image, upsample(self.coarse(detail))], dim=1))
        return alpha(x.to(alpha.weight.dtype))


def fuse(alpha: Tensor, trimap_logits: Tensor) -> Tensor:
    """Alpha (B, 1, H, W) and trimap logits (B, 3, H, W) to mattes (B, 1, H, W), float32 in [0, 1].

    In the trimap's unknown region the matte is alpha, clamped; it is exactly 1 in the foreground
    and exactly 0 in the background. If any output of an image is not finite, because a sum
    overflowed, all of its matte is NaN.
    """
    trimap = trimap_logits.argmax(dim=1, keepdim=True)
    matte = alpha.float().clamp(0, 1)
    matte = torch.where(trimap == UNKNOWN, matte, (trimap == FOREGROUND).to(matte))
    finite = torch.cat([alpha, trimap_logits], dim=1).isfinite().all(dim=(1, 2, 3), keepdim=True)
    return matte.where(finite, torch.nan)
