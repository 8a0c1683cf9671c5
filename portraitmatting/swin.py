"""Swin blocks (Liu et al., ICCV 2021) padded as Portraitmatting pads them.

Parts come from timm: the attention's parameters, the MLP, stochastic depth and patch merging. Only
the way through a block is ours, since timm rolls a map before it pads it, and shrinks the window on
small maps. Here a map is padded at the bottom and right to whole windows first, then rolled, and
the window never changes; wherever a map is not a multiple of the window the two differ by far more
than rounding.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn


@lru_cache(maxsize=64)
def shift_mask(rows: int, columns: int, window: int, shift: int) -> Tensor:
    """Additive mask (windows, 1, window^2, window^2), float32 on the CPU, of a rolled map.

    `rows` x `columns` is the padded map. Tokens that only the roll has made neighbours get -100:
    they come from opposite borders of the picture (Liu et al., section 3.2).
    """

    def region(length: int) -> Tensor:
        position = torch.arange(length)
        return (position >= length - window).long() + (position >= length - shift).long()

    regions = region(rows)[:, None] * 3 + region(columns)[None, :]
    tokens = regions.view(rows // window, window, columns // window, window)
    tokens = tokens.permute(0, 2, 1, 3).reshape(-1, 1, window * window)
    apart = tokens.unsqueeze(-1) != tokens.unsqueeze(-2)
    return apart.float() * -100.0


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with a residual: (B, H, W, C) to the same, any H and W."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window_size=window)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        for layer in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        """Pad, roll, cut into windows, attend, and all of it back."""
        batch, height, width, dim = x.shape
        window, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = x.shape[1], x.shape[2]
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        x = x.view(batch, rows // window, window, columns // window, window, dim)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, dim)

        bias = self._position_bias()
        if shift:
            mask = shift_mask(rows, columns, window, shift).to(bias)
            bias = (bias + mask).repeat(batch, 1, 1, 1)
        x = self._attention(x, bias)

        x = x.view(batch, rows // window, columns // window, window, window, dim)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, dim)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]

    def _attention(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Multi-head attention inside each window; tokens (windows, window^2, C)."""
        windows, length, dim = tokens.shape
        qkv = self.attn.qkv(tokens).view(windows, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.attn.proj(mixed.transpose(1, 2).reshape(windows, length, dim))

    def _position_bias(self) -> Tensor:
        """Relative position bias, (1, heads, window^2, window^2)."""
        table, index = self.attn.relative_position_bias_table, self.attn.relative_position_index
        return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).unsqueeze(0)


def swin_blocks(
    dim: int, heads: int, window: int, mlp_ratio: float, drop_path: Sequence[float]
) -> nn.Sequential:
    """One block per entry of `drop_path`; every second one is shifted by half a window."""
    return nn.Sequential(
        *(
            SwinBlock(dim, heads, window, window // 2 if i % 2 else 0, mlp_ratio, rate)
            for i, rate in enumerate(drop_path)
        )
    )
