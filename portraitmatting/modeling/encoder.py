"""The encoder: a convolutional stem, then the four stages of Swin-T."""

from collections.abc import Sequence
from itertools import islice

from timm.models.swin_transformer import PatchMerging as TimmPatchMerging
from torch import Tensor, nn

from portraitmatting.modeling.swin import Linear, swin_blocks


class PatchEmbed(nn.Module):
    """Convolution 3x3 stride 2 and LayerNorm: (B, C, H, W) to (B, H/2, W/2, D)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(TimmPatchMerging):
    """Half the height and width, twice the channels: (B, H, W, C) to (B, H/2, W/2, 2C).

    An odd side is padded with zeros.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)


class Encoder(nn.Module):
    """RGB (B, 3, H, W) in [0, 1] to five maps (B, channels[i], H/strides[i], W/strides[i]).

    The first map is the stem's, the others are those of the stages. The decoder gets a normalised
    copy of a stage's map; the next stage reads the map without normalisation.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(
        self,
        stem_channels: int,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        """
        Args:
            stem_channels: of the stem.
            embed_dim: channels of the first stage; each later one has twice as many.
            depths: Swin blocks of each stage.
            heads: of each stage's attention.
            window: side of the attention's windows.
            mlp_ratio: hidden channels of an MLP per channel.
            drop_path: the largest rate of stochastic depth.
        """
        super().__init__()
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self.channels = (stem_channels, *dims)
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem_channels, 3, stride=2, padding=1),
            nn.PReLU(stem_channels),
            nn.Conv2d(stem_channels, stem_channels, 3, padding=1),
            nn.PReLU(stem_channels),
        )
        self.patch_embed = PatchEmbed(stem_channels, embed_dim)
        # Stochastic depth grows linearly over the blocks (Huang et al., ECCV 2016).
        rate = (drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
        self.stages = nn.ModuleList(
            swin_blocks(dim, head, window, mlp_ratio, list(islice(rate, depth)))
            for dim, head, depth in zip(dims, heads, depths, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(dim) for dim in dims[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, image: Tensor) -> list[Tensor]:
        stem = self.stem(image)
        x = self.patch_embed(stem)
        maps = [stem]
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if i > 0:
                x = self.merges[i - 1](x)
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps
