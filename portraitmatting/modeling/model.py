"""The whole network, Portraitmatting (Q. Liu, 2023), and its configuration."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from portraitmatting.checkpoint.format import CheckpointInfo
from portraitmatting.choices import MULTIPLE
from portraitmatting.errors import CheckpointError, PortraitmattingError
from portraitmatting.hub import OnHub
from portraitmatting.modeling.decoder import Decoder, PyramidPooling, upsample
from portraitmatting.modeling.encoder import Encoder
from portraitmatting.modeling.heads import AlphaHead, TrimapHead


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network; the defaults are the published ones (35.44 M parameters)."""

    # `Encoder`; `window` and `mlp_ratio` are also those of `Decoder`
    stem_channels: int = 32
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.2
    # `PyramidPooling`
    pyramid_reduced: int = 256
    pyramid_branch: int = 128
    pyramid_kernels: tuple[int, ...] = (3, 7, 11, 15)
    # `Decoder`
    decoder_channels: tuple[int, ...] = (256, 256, 192, 128)
    decoder_heads: tuple[int, ...] = (8, 8, 6, 4)
    decoder_depth: int = 3
    decoder_drop_path: float = 0.12
    # `AlphaHead` and `TrimapHead`
    head_channels: int = 64

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The configuration in a checkpoint's metadata, where tuples may be lists. Raises
        `CheckpointError` for unknown names and impossible values."""
        try:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
            config = cls(**fields)
            for name, default in asdict(cls()).items():
                value = getattr(config, name)
                sizes = value if isinstance(default, tuple) else (value,)
                if isinstance(default, float):
                    is_valid = 0 <= value < 1000
                else:
                    is_valid = sizes and all(type(n) is int and 0 < n < 10000 for n in sizes)
                if not is_valid:
                    raise ValueError(f"{name} is {value!r}")
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"its metadata cannot be understood ({error}): made by another version?"
            ) from None
        return config

    @classmethod
    def tiny(cls) -> "ModelConfig":
        """The same network about a thousand times smaller, for tests of the code around it."""
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
    """The outputs of the two heads, float32; `heads.fuse` combines them into a matte."""

    alpha: Tensor
    """(B, 1, H, W), not clamped, and meant only for the trimap's unknown region."""
    trimap_logits: Tensor
    """(B, 3, H, W): background, unknown, foreground."""


class PortraitMatting(nn.Module, OnHub):
    """RGB (B, 3, H, W) in [0, 1], H and W multiples of 32, to alpha and trimap logits.

    The image is not normalised by a mean and standard deviation. Other sizes raise
    `PortraitmattingError`, which names a size to pad to.
    """

    checkpoint: CheckpointInfo | None = None
    """The origin of the weights, and the size and precision to use them at; None for new ones."""

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

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        config: ModelConfig | Mapping[str, Any] | None = None,
        checkpoint: CheckpointInfo | None = None,
    ) -> "PortraitMatting":
        """The network with the weights `state`, on the CPU, in fp32 and eval mode.

        `config` is a configuration or the dict in a checkpoint's metadata; None is the published
        one. Raises `CheckpointError` if it is impossible, or if names, shapes or dtypes of the
        weights are not those of its network.
        """
        if isinstance(config, Mapping):
            config = ModelConfig.from_dict(config)
        try:
            model = cls(config)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"no network can be built of its configuration ({str(error)[:80]!r})"
            ) from None
        _check_fit(state, model.state_dict())
        model.load_state_dict(state)
        model.checkpoint = checkpoint
        return model.eval()

    def at_precision(self, dtype: torch.dtype) -> "PortraitMatting":
        """A copy that computes in `dtype`, with weights that are cast once, not in every pass.

        The last layer of each head and the outputs stay float32: in bf16 alpha would have too few
        levels, and two logits of a pixel might be equal.
        """
        model = copy.deepcopy(self).to(dtype)
        model.alpha_head.fine[-1].float()
        model.trimap_head.layers[-1].float()
        return model

    def forward(self, image: Tensor) -> Prediction:
        if not torch.jit.is_tracing():  # a traced graph is for all sizes
            check_images(image)
        image = image.to(self.encoder.patch_embed.proj.weight.dtype)
        stem, *skips, last = self.encoder(image)
        x = self.decoder(skips, self.ppm(last))
        detail = torch.cat([stem, upsample(x)], dim=1)
        return Prediction(self.alpha_head(detail, image), self.trimap_head(detail))


def check_images(image: Tensor) -> None:
    """Raise `PortraitmattingError` unless `image` is (B, 3, H, W), H and W multiples of 32."""
    if image.ndim != 4 or image.shape[1] != 3:
        shape = "x".join(map(str, image.shape))
        raise PortraitmattingError(f"expected a batch of RGB images, Bx3xHxW, got {shape}")
    height, width = image.shape[-2:]
    if height % MULTIPLE or width % MULTIPLE or not height or not width:
        fits = [max(1, -(-side // MULTIPLE)) * MULTIPLE for side in (height, width)]
        raise PortraitmattingError(
            f"expected height and width to be multiples of {MULTIPLE}, got {height}x{width}: "
            f"pad or resize to {fits[0]}x{fits[1]}"
        )


_WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Dtypes of weights in a state dict. Integers and float8 would load without an error and give a
useless network: weights of 8 bits need the scale that `quantise_int8` stores with them."""


def _has_usable_dtype(value: Tensor, expected: Tensor) -> bool:
    """Whether a stored tensor is an ordinary one whose dtype can be converted to the network's."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    if expected.is_floating_point():
        return value.dtype in _WEIGHTS
    return not value.is_floating_point() and not value.is_complex()


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError`, which lists all problems, unless `state` has the names, shapes and
    kinds of dtypes of `expected`, the network's own state dict, and is finite."""
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unknown": sorted(state.keys() - expected.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
        "of another type": [
            f"{key} {str(state[key].dtype).removeprefix('torch.')}"
            for key in expected
            if key in state and not _has_usable_dtype(state[key], expected[key])
        ],
    }
    if not any(problems.values()):  # tested in float32, in which a large float64 is infinite
        problems["not finite"] = [k for k, v in state.items() if not v.float().isfinite().all()]
    messages = [
        f"{len(keys)} tensors {problem} ({', '.join(keys[:2])}{', ...' if len(keys) > 2 else ''})"
        for problem, keys in problems.items()
        if keys
    ]
    if messages:
        raise CheckpointError(f"does not fit the network: {'; '.join(messages)}")
