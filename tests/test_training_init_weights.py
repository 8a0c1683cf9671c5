"""timm's Swin-T inside our encoder: the stem's rewrite, then the features of every stage."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from portraitmatting.errors import CheckpointError, PortraitmattingError
from portraitmatting.modeling.encoder import Encoder
from portraitmatting.training.init_weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    encoder_from_timm,
    is_timm_swin,
    stem_from_patch_convolution,
)


def encoder() -> Encoder:
    return Encoder(32, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 4.0, 0.2).eval()


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


@settings(max_examples=10, deadline=None)
@given(
    height=st.integers(1, 12).map(lambda n: 4 * n),
    width=st.integers(1, 12).map(lambda n: 4 * n),
    stem_channels=st.integers(27, 40),
    seed=st.integers(0, 2**31),
)
def test_the_stem_equals_the_patch_convolution(height, width, stem_channels, seed):
    torch.manual_seed(seed)
    ours = Encoder(stem_channels, 96, (1,), (3,), 7, 4.0, 0.0)
    patch = nn.Conv2d(3, 96, 4, stride=4)
    state = {k: v for k, v in ours.state_dict().items() if k.startswith(("stem.0", "stem.2"))}
    rewritten = stem_from_patch_convolution(patch.weight.data, patch.bias.data, state)
    ours.load_state_dict(ours.state_dict() | rewritten)
    image = torch.rand(2, 3, height, width)
    with torch.no_grad():
        got, expected = ours.patch_embed.proj(ours.stem(image)), patch(normalised(image))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_the_rewritten_stem_can_learn_in_all_its_channels():
    torch.manual_seed(0)
    ours, patch = encoder(), nn.Conv2d(3, 96, 4, stride=4)
    state = {k: v for k, v in ours.state_dict().items() if k.startswith(("stem.0", "stem.2"))}
    rewritten = stem_from_patch_convolution(patch.weight.data, patch.bias.data, state)
    ours.load_state_dict(ours.state_dict() | rewritten)
    ours.patch_embed.proj(ours.stem(torch.rand(2, 3, 32, 32))).square().sum().backward()
    gradient = ours.patch_embed.proj.weight.grad
    assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all()


def test_a_stem_too_narrow_for_27_values_is_refused():
    stem = {"stem.0.weight": torch.zeros(16, 3, 3, 3)}
    with pytest.raises(PortraitmattingError, match="27 channels"):
        stem_from_patch_convolution(torch.zeros(8, 3, 4, 4), torch.zeros(8), stem)


@pytest.fixture(scope="module")
def swin() -> nn.Module:
    """timm's network with every weight away from the values where a mix-up would not show."""
    torch.manual_seed(1)
    # Without always_partition timm drops the shift in the last stage, whose map is one window.
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, always_partition=True
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, float("norm" in name and "weight" in name), 0.1)
        if "position" in name:
            nn.init.normal_(parameter, 0, 0.5)
    return model.eval()


def test_every_stage_gives_timms_features(swin):
    ours = encoder()
    ours.load_state_dict(encoder_from_timm(swin.state_dict(), ours.state_dict()))
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps = ours(image)[1:]
        features = swin.patch_embed(normalised(image))
        for layer, norm, got in zip(swin.layers, ours.norms, maps, strict=True):
            features = layer(features)
            expected = norm(features).permute(0, 3, 1, 2)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_recognises_timm_and_nothing_else(swin):
    assert is_timm_swin(swin.state_dict())
    assert not is_timm_swin(encoder().state_dict())


def test_unknown_missing_and_misshapen_entries_are_named(swin):
    fresh, state = encoder().state_dict(), swin.state_dict()
    with pytest.raises(CheckpointError, match=r"unknown entry 'layers\.0\.blocks\.9\.extra'"):
        encoder_from_timm(state | {"layers.0.blocks.9.extra": torch.zeros(1)}, fresh)
    name = "layers.2.blocks.3.attn.qkv.weight"
    with pytest.raises(CheckpointError, match=r"missing.*stages\.2\.3\.attn\.qkv\.weight"):
        encoder_from_timm({k: v for k, v in state.items() if k != name}, fresh)
    with pytest.raises(CheckpointError, match=r"qkv\.weight is \(3, 3\)"):
        encoder_from_timm(state | {name: torch.zeros(3, 3)}, fresh)
