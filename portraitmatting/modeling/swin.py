"""Swin blocks (Liu et al., "Swin Transformer", ICCV 2021), padded as in the author's code.

A map is first padded at the bottom and right to whole windows, then rolled, and the window always
has the same size. timm's block rolls before it pads, and uses smaller windows on small maps, so
that its outputs differ wherever a map is not a multiple of the window.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models.swin_transformer import (
    get_relative_position_index,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`; inference in fp32 on a CPU with AVX512 uses oneDNN instead of MKL.

    PyTorch uses MKL, which runs its AVX512 code only on Intel's processors, so that on others
    oneDNN is faster. On CPUs that have AVX2 only, MKL is faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        if _ONEDNN and _infers_in_fp32_on_cpu(x):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return super().forward(x)


def is_recording() -> bool:
    """Whether a graph is being compiled, exported or traced; its sizes may then be symbols."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _infers_in_fp32_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_recording()
    )


_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with a residual: (B, H, W, C) to the same, any H and W."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float
    ) -> None:
        """
        Args:
            dim: channels.
            heads: of the attention.
            window: side of the windows.
            shift: of the windows to the upper left, 0 for none.
            mlp_ratio: hidden channels of the MLP per channel.
            drop_path: the rate of stochastic depth.
        """
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        """Attention inside each (shifted) window of the map: (B, H, W, C) to the same."""
        _, height, width, _ = x.shape
        window, shift = (self.window, self.window), self.shift
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        _, rows, columns, _ = x.shape
        mask = None
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            mask = (shift_mask if is_recording() else _cached_shift_mask)(
                rows, columns, self.window, shift, x.dtype, x.device
            )
        windows = window_partition(x, window)
        windows = self.attn(windows.flatten(1, 2), mask).view_as(windows)
        x = window_reverse(windows, window, rows, columns)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


class WindowAttention(nn.Module):
    """Multi-head attention with a relative position bias, among the N pixels (tokens) of each
    window: (B * windows, N, C) to the same."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        index = _pad_keys(get_relative_position_index(window, window))
        self.register_buffer("relative_position_index", index, persistent=False)
        _initialise(self.qkv, self.proj)
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is added to the scores, as `shift_mask` gives it: (windows, 1, N, padded N)."""
        count, tokens, dim = x.shape
        qkv = self.qkv(x).view(count, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.position_bias().to(query.dtype)
        if mask is not None:
            bias = bias + mask.to(query.dtype)
            bias = bias.expand(count // mask.shape[0], *bias.shape).flatten(0, 1)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[..., :tokens])
        return self.proj(x.transpose(1, 2).reshape(count, tokens, dim))

    def position_bias(self) -> Tensor:
        """The bias of each pair of tokens, (1, heads, N, padded N), padded by `_pad_keys`."""
        index: Tensor = self.relative_position_index  # type: ignore[assignment]
        bias = self.relative_position_bias_table.t().index_select(1, index.flatten())
        return bias.view(1, self.heads, *index.shape)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them: (..., C) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        _initialise(self.fc1, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def swin_blocks(
    dim: int, heads: int, window: int, mlp_ratio: float, drop_path: Sequence[float]
) -> nn.Sequential:
    """Swin blocks, one per entry of `drop_path`; every second one has its windows shifted by half.

    Args:
        dim: channels.
        heads: of the attention.
        window: side of the windows.
        mlp_ratio: hidden channels of the MLPs per channel.
        drop_path: the rate of stochastic depth of each block.
    """
    return nn.Sequential(
        *(
            SwinBlock(dim, heads, window, window // 2 if i % 2 else 0, mlp_ratio, rate)
            for i, rate in enumerate(drop_path)
        )
    )


def shift_mask(
    rows: int, columns: int, window: int, shift: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The mask that is added to attention scores (Liu et al., section 3.2): -100 between tokens
    that share a window only because the roll moved opposite borders of the map together, else 0.

    Returns (windows, 1, N, padded N), padded by `_pad_keys`.

    Args:
        rows: height of the map, a multiple of the window.
        columns: width of the map, a multiple of the window.
        window: side of the windows.
        shift: of the windows.
        dtype: of the result.
        device: of the result.
    """
    y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
    y = (y >= rows - window).long() + (y >= rows - shift)
    x = (x >= columns - window).long() + (x >= columns - shift)
    region = (3 * y[:, None] + x)[None, :, :, None]
    region = window_partition(region, (window, window)).view(-1, 1, 1, window**2)
    return _pad_keys((region.transpose(2, 3) != region).to(dtype) * -100)


# Made outside inference mode: training could not use cached inference tensors.
_cached_shift_mask = lru_cache(maxsize=32)(torch.inference_mode(False)(shift_mask))


def _pad_keys(x: Tensor) -> Tensor:
    """Pad the last side to a multiple of 8: CUDA's fused attention only takes biases whose rows are
    aligned like that."""
    return F.pad(x, (0, -x.shape[-1] % 8))


def _initialise(*layers: Linear) -> None:
    for layer in layers:
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
