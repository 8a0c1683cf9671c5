"""The network, whole: Portraitmatting (Q. Liu, 2023)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from portraitmatting.errors import PortraitmattingError
from portraitmatting.hub import OnHub
from portraitmatting.modeling.cpu import infers_on_cpu
from portraitmatting.modeling.decoder import Decoder, upsample2
from portraitmatting.modeling.encoder import Encoder
from portraitmatting.modeling.heads import AlphaHead, TrimapHead
from portraitmatting.modeling.ppm import PyramidPooling

if TYPE_CHECKING:
    from portraitmatting.checkpoint import CheckpointInfo


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network; the defaults are the published ones (35.44 M parameters)."""

    stem_channels: int = 32
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.2
    pyramid_reduced: int = 256
    pyramid_branch: int = 128
    pyramid_kernels: tuple[int, ...] = (3, 7, 11, 15)
    decoder_channels: tuple[int, ...] = (256, 256, 192, 128)
    decoder_heads: tuple[int, ...] = (8, 8, 6, 4)
    decoder_depth: int = 3
    decoder_drop_path: float = 0.12
    head_channels: int = 64

    @classmethod
    def tiny(cls) -> "ModelConfig":
        """The same network about a thousand times smaller, for tests of everything around it."""
        return cls(
            stem_channels=8,
            embed_dim=8,
            depths=(1, 1, 2, 1),
            heads=(1, 1, 2, 2),
            mlp_ratio=2.0,
            drop_path=0.0,
            pyramid_reduced=16,
            pyramid_branch=8,
            decoder_channels=(16, 16, 16, 16),
            decoder_heads=(2, 2, 2, 2),
            decoder_depth=2,
            decoder_drop_path=0.0,
            head_channels=16,
        )


class Prediction(NamedTuple):
    """What the two heads say; `heads.fuse` makes a matte of it."""

    alpha: Tensor
    """(B, 1, H, W), raw: not clamped, and only meant for the trimap's unknown region."""
    trimap_logits: Tensor
    """(B, 3, H, W): background, unknown, foreground."""


class PortraitMatting(nn.Module, OnHub):
    """RGB (B, 3, H, W) in [0, 1], H and W multiples of 32, to raw alpha and trimap logits.

    No mean and standard deviation are subtracted. Any other size raises `PortraitmattingError`,
    which says what to pad to.
    """

    checkpoint: "CheckpointInfo | None" = None
    """Where the weights come from and how they are meant to be used; None for fresh ones."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or ModelConfig()
        self.encoder = Encoder(
            c.stem_channels, c.embed_dim, c.depths, c.heads, c.window, c.mlp_ratio, c.drop_path
        )
        stem, *skips, last = self.encoder.channels
        self.ppm = PyramidPooling(last, c.pyramid_reduced, c.pyramid_branch, c.pyramid_kernels)
        self.decoder = Decoder(
            skips,
            self.ppm.channels,
            c.decoder_channels,
            c.decoder_heads,
            c.decoder_depth,
            c.window,
            c.mlp_ratio,
            c.decoder_drop_path,
        )
        detail = stem + c.decoder_channels[-1]
        self.trimap_head = TrimapHead(detail, c.head_channels)
        self.alpha_head = AlphaHead(detail, c.head_channels)

    def forward(self, image: Tensor) -> Prediction:
        if not torch.jit.is_tracing():  # there sizes are symbols, and the graph is for all
            check_images(image)
        if infers_on_cpu(image) and not self.training:
            # One by one: a batch is no faster there, and pushes itself out of the cache.
            found = [self._by_strips(picture) for picture in image.split(1)]
            return Prediction(*map(torch.cat, zip(*found, strict=True)))
        stem, below = self._trunk(image)
        detail = torch.cat([stem, upsample2(below)], dim=1)
        return Prediction(self.alpha_head(detail, image), self.trimap_head(detail))

    def _trunk(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What both heads read: the stem's map at half the image's size, and the decoder's at a
        quarter."""
        stem, *skips, last = self.encoder(image)
        return stem, self.decoder(skips, self.ppm(last))

    def _by_strips(self, image: Tensor) -> Prediction:
        stem, below = self._trunk(image)
        alpha = self.alpha_head.by_strips(stem, below, image)
        return Prediction(alpha, self.trimap_head.by_strips(stem, below))


def check_images(image: Tensor) -> None:
    """Raise `PortraitmattingError` unless `image` is what the network takes, or say what would."""
    if image.ndim != 4 or image.shape[1] != 3:
        shape = "x".join(map(str, image.shape))
        raise PortraitmattingError(f"expected a batch of RGB images, Bx3xHxW, got {shape}")
    height, width = image.shape[-2:]
    multiple = Encoder.strides[-1]
    if height % multiple or width % multiple or not height or not width:
        fits = [max(1, -(-side // multiple)) * multiple for side in (height, width)]
        raise PortraitmattingError(
            f"expected height and width to be multiples of {multiple}, got {height}x{width}: "
            f"pad or resize to {fits[0]}x{fits[1]}"
        )
