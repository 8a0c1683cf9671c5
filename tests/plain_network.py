"""The network written plainly, module by module, under the author's names for its weights.

Slow and obvious on purpose: explicit softmax attention, every map upsampled and concatenated before
it is convolved, masks made anew in each block. Parity tests hold `portraitmatting.PortraitMatting`
to it at any size, and benchmarks measure against it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portraitmatting.modeling.model import ModelConfig


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        down = rows[:, None] - rows[None, :] + window - 1
        across = columns[:, None] - columns[None, :] + window - 1
        self.register_buffer("relative_position_index", down * (2 * window - 1) + across)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index]
        scores = scores + bias.permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, tokens, tokens) + mask[:, None]
            scores = scores.view(windows, self.heads, tokens, tokens)
        mixed = scores.softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(windows, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def windows_of(x: Tensor, window: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int, ratio: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        window, shift = self.window, self.shift
        y = F.pad(self.norm1(x), (0, 0, 0, -w % window, 0, -h % window))
        rows, columns = y.shape[1:3]
        mask = None
        if shift:
            y = torch.roll(y, (-shift, -shift), dims=(1, 2))
            region, count = torch.zeros(1, rows, columns, 1), 0
            for vertical in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
                for horizontal in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
                    region[:, vertical, horizontal] = count
                    count += 1
            region = windows_of(region, window).squeeze(-1)
            apart = region[:, None] != region[:, :, None]
            mask = torch.zeros(apart.shape).masked_fill(apart, -100.0)
        y = self.attn(windows_of(y, window), mask)
        y = y.view(b, rows // window, columns // window, window, window, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, rows, columns, c)
        if shift:
            y = torch.roll(y, (shift, shift), dims=(1, 2))
        x = x + y[:, :h, :w]
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


class Layer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, c: ModelConfig, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, c.window, c.window // 2 if i % 2 else 0, c.mlp_ratio)
            for i in range(depth)
        )
        if merge:
            self.downsample = Merge(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbed(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(c.stem_channels, c.embed_dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(c.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1).contiguous())


class Swin(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(c)
        dims = [c.embed_dim * 2**i for i in range(4)]
        self.layers = nn.ModuleList(
            Layer(dims[i], c.depths[i], c.heads[i], c, merge=i < 3) for i in range(4)
        )
        for i, dim in enumerate(dims):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.patch_embed(x), []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if i < 3:
                x = layer.downsample(x)
        return maps


class Pyramid(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.comp = nn.Conv2d(c.embed_dim * 8, c.pyramid_reduced, 1)
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AvgPool2d(k, k, (k - 1) // 2, count_include_pad=False),
                nn.Conv2d(c.pyramid_reduced, c.pyramid_branch, 1),
                nn.GroupNorm(c.pyramid_branch // 8, c.pyramid_branch),
                nn.ReLU(),
            )
            for k in c.pyramid_kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        small = self.comp(x)
        size = x.shape[-2:]
        return torch.cat(
            [x]
            + [
                F.interpolate(f(small), size, mode="bilinear", align_corners=False)
                for f in self.features
            ],
            dim=1,
        )


class PlainNetwork(nn.Module):
    """Inference only: stochastic depth is left out."""

    def __init__(self, c: ModelConfig | None = None) -> None:
        super().__init__()
        c = c or ModelConfig()
        s, e, h = c.stem_channels, c.embed_dim, c.head_channels
        self.start_conv = nn.Sequential(
            nn.Conv2d(3, s, 3, stride=2, padding=1),
            nn.PReLU(s),
            nn.Conv2d(s, s, 3, padding=1),
            nn.PReLU(s),
        )
        self.trans = Swin(c)
        self.ppm = Pyramid(c)
        d = c.decoder_channels
        into = (
            8 * e + len(c.pyramid_kernels) * c.pyramid_branch,
            4 * e + d[0],
            2 * e + d[1],
            e + d[2],
        )
        for i in range(4):
            self.add_module(f"conv{i + 1}", nn.Sequential(nn.Conv2d(into[i], d[i], 1)))
            self.add_module(f"tran{i}", Layer(d[i], c.decoder_depth, c.decoder_heads[i], c, False))
        self.convtri = nn.Sequential(
            nn.Conv2d(s + d[3], h, 3, padding=1),
            nn.GroupNorm(h // 4, h),
            nn.GELU(),
            nn.Conv2d(h, h, 1),
            nn.GroupNorm(h // 8, h),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Conv2d(h, 3, 1),
        )
        self.conv5 = nn.Sequential(
            nn.Conv2d(s + d[3], h, 3, padding=1), nn.PReLU(h),
            nn.Conv2d(h, h, 3, padding=1), nn.PReLU(h),
            nn.Conv2d(h, h // 2, 3, padding=1), nn.PReLU(h // 2),
        )  # fmt: skip
        self.convo = nn.Sequential(
            nn.Conv2d(h // 2 + 3, h // 2, 3, padding=1), nn.PReLU(h // 2),
            nn.Conv2d(h // 2, h // 4, 3, padding=1), nn.PReLU(h // 4),
            nn.Conv2d(h // 4, 1, 3, padding=1),
        )  # fmt: skip

    def fuse(self, i: int, x: Tensor) -> Tensor:
        x = getattr(self, f"conv{i + 1}")(x).permute(0, 2, 3, 1).contiguous()
        return getattr(self, f"tran{i}")(x).permute(0, 3, 1, 2).contiguous()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.start_conv(image)
        maps = self.trans(stem)
        x = self.fuse(0, self.ppm(maps[3]))
        for i in (1, 2, 3):
            x = self.fuse(i, torch.cat([maps[3 - i], upsample(x)], dim=1))
        detail = torch.cat([stem, upsample(x)], dim=1)
        trimap_logits = upsample(self.convtri(detail))
        alpha = self.convo(torch.cat([image, upsample(self.conv5(detail))], dim=1))
        return alpha, trimap_logits
