"""The two heads, and `fuse`, which makes one matte of their outputs."""

import torch
from torch import Tensor, nn

from portraitmatting.modeling.decoder import upsample
from portraitmatting.trimap import FOREGROUND, UNKNOWN


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
        *layers, logits = self.layers
        x = nn.Sequential(*layers)(detail)
        return upsample(logits(x.to(logits.weight.dtype)))


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
        *layers, alpha = self.fine
        x = nn.Sequential(*layers)(torch.cat([image, upsample(self.coarse(detail))], dim=1))
        return alpha(x.to(alpha.weight.dtype))


def fuse(alpha: Tensor, trimap_logits: Tensor) -> Tensor:
    """Raw alpha (B, 1, H, W) and trimap logits (B, 3, H, W) to a matte in [0, 1], float32.

    The clamped alpha where the trimap says unknown, exactly 1 in its foreground, exactly 0 in its
    background. NaN throughout an image of which any output is not finite: a sum that overflowed.
    """
    trimap = trimap_logits.argmax(dim=1, keepdim=True)
    matte = alpha.float().clamp(0, 1)
    matte = torch.where(trimap == UNKNOWN, matte, (trimap == FOREGROUND).to(matte))
    finite = torch.cat([alpha, trimap_logits], dim=1).isfinite().all(dim=(1, 2, 3), keepdim=True)
    return matte.where(finite, torch.nan)
