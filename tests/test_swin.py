"""A Swin block against a slow reference, and its linear layers against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from portraitmatting.modeling import swin
from portraitmatting.modeling.swin import SwinBlock

SIDES = st.integers(1, 8)


def attend_window_by_window(block: SwinBlock, x: torch.Tensor) -> torch.Tensor:
    """Pad to whole windows, roll, and let each token attend to those of its window that were at the
    same distance before."""
    _, height, width, dim = x.shape
    size, shift, attn = block.window, block.shift, block.attn
    rows, columns = -(-height // size) * size, -(-width // size) * size
    padded = torch.zeros(x.shape[0], rows, columns, dim)
    padded[:, :height, :width] = x
    out = torch.zeros_like(padded)
    for top in range(0, rows, size):
        for left in range(0, columns, size):
            places = [
                ((top + i + shift) % rows, (left + j + shift) % columns, i, j)
                for i in range(size)
                for j in range(size)
            ]
            ys, xs = [p[0] for p in places], [p[1] for p in places]
            qkv = attn.qkv(padded[:, ys, xs]).unflatten(2, (3, attn.heads, dim // attn.heads))
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            score = query @ key.transpose(-1, -2) / (dim // attn.heads) ** 0.5
            for a, (ya, xa, ia, ja) in enumerate(places):
                for b, (yb, xb, ib, jb) in enumerate(places):
                    index = (ia - ib + size - 1) * (2 * size - 1) + ja - jb + size - 1
                    score[:, :, a, b] += attn.relative_position_bias_table[index]
                    if (ya - yb, xa - xb) != (ia - ib, ja - jb):
                        score[:, :, a, b] -= 100
            mixed = score.softmax(-1) @ value
            out[:, ys, xs] = attn.proj(mixed.transpose(1, 2).flatten(2))
    return out[:, :height, :width]


@settings(max_examples=15, deadline=None)
@given(height=SIDES, width=SIDES, shift=st.sampled_from([0, 1]), batch=st.integers(1, 2))
def test_a_block_equals_a_slow_reference_at_any_size(height, width, shift, batch):
    torch.manual_seed(0)
    block = SwinBlock(8, 2, window=3, shift=shift, mlp_ratio=2, drop_path=0).eval()
    block.attn.relative_position_bias_table.data.normal_()
    block.attn.qkv.bias.data.normal_()
    x = torch.randn(batch, height, width, 8)
    with torch.inference_mode():
        expected = x + attend_window_by_window(block, block.norm1(x))
        expected = expected + block.mlp(block.norm2(expected))
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_paths_are_dropped_in_training_only():
    torch.manual_seed(0)
    block, x = SwinBlock(8, 2, 7, 0, mlp_ratio=2, drop_path=0.5), torch.randn(64, 3, 3, 8)
    with torch.no_grad():
        assert (block.train()(x) == x).all(dim=(1, 2, 3)).any()  # both paths
        assert not (block.eval()(x) == x).all(dim=(1, 2, 3)).any()


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_equal_pytorchs(monkeypatch, onednn, bias):
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(swin, "_ONEDNN", onednn)
    torch.manual_seed(0)
    layer, x = swin.Linear(8, 12, bias=bias), torch.randn(3, 4, 6, 8)
    for cast in (torch.float32, torch.bfloat16):  # what is not fp32 is left to PyTorch
        layer, x = layer.to(cast), x.to(cast)
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert isinstance(layer, nn.Linear)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
