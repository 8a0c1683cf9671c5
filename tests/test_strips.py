"""What is worked off in strips, against the same maps as a whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from portraitmatting.modeling import strips
from portraitmatting.modeling.decoder import upsample2
from portraitmatting.modeling.swin import SwinBlock

SIDES = st.integers(1, 9)
ROWS = st.integers(1, 10)


def image(channels: int, height: int, width: int) -> torch.Tensor:
    x = torch.randn(1, channels, height, width)
    return x.contiguous(memory_format=torch.channels_last)


@settings(max_examples=50, deadline=None)
@given(height=SIDES, width=SIDES, rows=ROWS)
def test_layers_in_strips_equal_them_in_one(height, width, rows):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(), nn.Conv2d(4, 2, 3, padding=1))
    x = image(3, height, width)
    with torch.inference_mode():
        parts = list(strips.run(x.split(rows, dim=2), layers))
        assert [part.shape[2] for part in parts] == [part.shape[2] for part in x.split(rows, 2)]
        torch.testing.assert_close(strips.join(parts), layers(x), atol=1e-5, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(height=SIDES, width=SIDES, rows=ROWS)
def test_a_convolution_beside_an_upsampled_map_needs_no_upsampling(height, width, rows):
    torch.manual_seed(0)
    layer = nn.Conv2d(3 + 5, 4, 3, padding=1)
    fine, coarse = image(3, 2 * height, 2 * width), image(5, height, width)
    with torch.inference_mode():
        expected = layer(torch.cat([fine, upsample2(coarse)], dim=1))
        found = strips.convolve_beside_upsampled(
            fine.split(2 * rows, dim=2), coarse.split(rows, dim=2), layer, 3
        )
        torch.testing.assert_close(strips.join(list(found)), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 25),
    width=st.integers(1, 25),
    shift=st.sampled_from([0, 3]),
    windows=st.integers(1, 20),
)
def test_swin_blocks_in_strips_equal_them_in_one(height, width, shift, windows):
    torch.manual_seed(0)
    block = SwinBlock(8, 2, 7, shift, mlp_ratio=2, drop_path=0).eval()
    block.attn.relative_position_bias_table.data.normal_()
    block.attn.qkv.bias.data.normal_()
    x = torch.randn(2, height, width, 8)
    before = x.clone()
    expected = block(x).detach()  # with gradients, in one
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr("portraitmatting.modeling.swin.STRIP", windows * 7**2 * 16)
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


def test_blocks_in_training_mode_drop_paths_with_and_without_gradients():
    block = SwinBlock(8, 2, 7, 0, mlp_ratio=2, drop_path=0.5).train()
    x = torch.randn(64, 3, 3, 8)
    torch.manual_seed(0)
    expected = block(x).detach()
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)
    assert (expected == x).all(dim=(1, 2, 3)).any()  # both paths dropped
