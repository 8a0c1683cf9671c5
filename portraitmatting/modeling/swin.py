"""Swin blocks (Liu et al., ICCV 2021) padded as Portraitmatting pads them.

Parts come from timm: the attention's parameters, the MLP, stochastic depth and patch merging. Only
the way through a block is ours, since timm rolls a map before it pads it, and shrinks the window on
small maps. Here a map is padded at the bottom and right to whole windows first, then rolled, and
the window never changes; wherever a map is not a multiple of the window the two differ by far more
than rounding.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from portraitmatting.modeling.cpu import STRIP, add_linear_, infers_on_cpu, is_recording, linear


class WindowLayout(NamedTuple):
    """Where the tokens of a map go when it is cut into windows, and how they come back."""

    order: Tensor | None
    """(windows * window^2,): for each place in a window the token there; the token after the map's
    last one stands for padding. None: the tokens are given in this order, and none is padding."""
    back: Tensor | None
    """(H * W,): for each token its place in the windows; None likewise."""
    mask: Tensor | None
    """(windows, 1, window^2, window^2): -100 between tokens that only the roll has made neighbours,
    which come from opposite borders of the image (Liu et al., section 3.2); None unshifted."""


def window_layout(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> WindowLayout:
    """Pad to whole windows, roll by `shift`, cut: all as one rearrangement."""
    rows, columns = ((side + window - 1) // window * window for side in (height, width))
    down, across = rows // window, columns // window

    def cut(grid: Tensor) -> Tensor:
        grid = grid.view(down, window, across, window)
        return grid.permute(0, 2, 1, 3).reshape(down * across, window * window)

    y = (torch.arange(rows, device=device) + shift) % rows
    x = (torch.arange(columns, device=device) + shift) % columns
    inside = (y < height)[:, None] & (x < width)
    order = cut(torch.where(inside, y[:, None] * width + x, height * width))

    # Never below zero, where torch.compile cannot follow remainders.
    y = (torch.arange(height, device=device) + (rows - shift)) % rows
    x = (torch.arange(width, device=device) + (columns - shift)) % columns
    whole = (y // window)[:, None] * across + x // window
    back = whole * window**2 + (y % window)[:, None] * window + x % window

    mask = None
    if shift:
        y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
        y = (y >= rows - window).long() + (y >= rows - shift)
        x = (x >= columns - window).long() + (x >= columns - shift)
        region = cut(y[:, None] * 3 + x)
        mask = (region[:, None, :, None] != region[:, None, None, :]).float() * -100
    return WindowLayout(order.flatten(), back.flatten(), mask)


class WindowStrips(NamedTuple):
    """A map's tokens in another order, so that some windows at a time are a strip of them."""

    tokens: Tensor
    """(H * W,): which token comes where."""
    back: Tensor
    """(H * W,): where each token is."""
    sizes: list[int]
    """Tokens per strip."""
    layouts: list[WindowLayout]
    """Of the tokens of each strip."""


def window_strips(
    height: int, width: int, window: int, shift: int, windows: int, device: torch.device
) -> WindowStrips:
    """`window_layout` in strips of up to `windows` windows."""
    order, _, mask = window_layout(height, width, window, shift, device)
    assert order is not None
    order = order.view(-1, window**2)
    outside = order == height * width
    edge = outside.any(1) if mask is None else outside.any(1) | mask.flatten(1).any(1)

    tokens, layouts = [], []
    for chosen in _split(edge.logical_not().nonzero().flatten(), windows):
        tokens.append(order[chosen].flatten())
        layouts.append(WindowLayout(None, None, None))
    for chosen in _split(edge.nonzero().flatten(), windows):
        places = outside[chosen].logical_not().flatten().nonzero().flatten()
        tokens.append(order[chosen].flatten()[places])
        numbers = torch.full((len(chosen) * window**2,), len(places), device=device)
        numbers[places] = torch.arange(len(places), device=device)
        layouts.append(WindowLayout(numbers, places, None if mask is None else mask[chosen]))
    together = torch.cat(tokens)
    return WindowStrips(together, together.argsort(), [len(part) for part in tokens], layouts)


def _split(x: Tensor, most: int) -> Sequence[Tensor]:
    return x.tensor_split(-(-len(x) // most)) if len(x) else ()


# Not as inference tensors, or else training could not use what an inference has cached.
_cached_layout = lru_cache(maxsize=64)(torch.inference_mode(False)(window_layout))
_cached_strips = lru_cache(maxsize=256)(torch.inference_mode(False)(window_strips))


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
            assert layer.bias is not None  # asked for, by default
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        size = height, width, self.window, self.shift
        bias = self._position_bias()
        x = x.reshape(batch, height * width, dim)
        if infers_on_cpu(x) and not self.training:
            windows = max(1, STRIP // (self.window**2 * len(self.mlp.fc1.weight)))
            strips = _cached_strips(*size, windows, x.device)
            x = x.index_select(1, strips.tokens)
            for one in x:
                for part, layout in zip(one.split(strips.sizes), strips.layouts, strict=True):
                    self._transform_(part, layout, bias)
            x = x.index_select(1, strips.back)
        else:
            layout = (window_layout if is_recording() else _cached_layout)(*size, x.device)
            x = x + self.drop_path(self.attn.proj(self._attend(self.norm1(x), layout, bias)))
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.view(batch, height, width, dim)

    def _transform_(self, x: Tensor, layout: WindowLayout, bias: Tensor) -> None:
        """The whole block for some windows, in place: x (N, C)."""
        mixed = self._attend(self.norm1(x).unsqueeze(0), layout, bias).squeeze(0)
        add_linear_(x, mixed, self.attn.proj)
        up, down = cast(nn.Linear, self.mlp.fc1), cast(nn.Linear, self.mlp.fc2)
        hidden = linear(self.norm2(x), up.weight, up.bias)
        add_linear_(x, torch.ops.aten.gelu_(hidden), down)

    def _attend(self, x: Tensor, layout: WindowLayout, bias: Tensor) -> Tensor:
        """Attention inside each window, up to the projection: (B, N, C) to the same."""
        batch, _, dim = x.shape
        if layout.order is not None:
            x = F.pad(x, (0, 0, 0, 1)).index_select(1, layout.order)
        qkv = linear(x, self.attn.qkv.weight, self.attn.qkv.bias)
        qkv = qkv.view(-1, self.window**2, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)

        bias = bias.to(query.dtype)
        if layout.mask is not None:
            bias = bias + layout.mask.to(query.dtype)
            bias = bias.repeat(batch, 1, 1, 1) if is_recording() or batch != 1 else bias
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(batch, -1, dim)
        return mixed if layout.back is None else mixed.index_select(1, layout.back)

    def _position_bias(self) -> Tensor:
        """Relative position bias, (1, heads, window^2, window^2)."""
        table = self.attn.relative_position_bias_table
        index = cast(Tensor, self.attn.relative_position_index)
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
