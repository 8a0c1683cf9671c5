"""Linear layers, alone and by blocks, against PyTorch's plain ones."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn

from portraitmatting import linear as linear_module
from portraitmatting.linear import add_mlp, linear


@pytest.mark.parametrize("shape", [(1, 5, 8), (3, 4, 6, 8)])
def test_linear_equals_the_plain_layer(shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(12, 8), torch.randn(12)
    residual = torch.randn(*shape[:-1], 12)
    plain = F.linear(x, weight, bias)
    for inference in (True, False):
        with torch.inference_mode(inference):
            torch.testing.assert_close(linear(x, weight, bias), plain, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                linear(x, weight, bias, residual=residual), residual + plain, atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(linear(x, weight), plain - bias, atol=1e-5, rtol=1e-5)


@pytest.fixture
def layers() -> tuple[nn.LayerNorm, Mlp]:
    torch.manual_seed(1)
    return nn.LayerNorm(8), Mlp(8, 20)


@pytest.mark.parametrize("hidden", [1, 70, 2**20])  # blocks of 1 row, of 3, and all 26 in one
def test_an_mlp_by_blocks_equals_it_in_one(layers, monkeypatch, hidden):
    monkeypatch.setattr(linear_module, "_HIDDEN", hidden)
    norm, mlp = layers
    x = torch.randn(2, 13, 8)
    expected = x + mlp(norm(x))
    with torch.inference_mode():
        found = add_mlp(x.clone(), norm, mlp)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_with_gradients_nothing_is_overwritten(layers):
    norm, mlp = layers
    x = torch.randn(2, 13, 8, requires_grad=True)
    before = x.detach().clone()
    add_mlp(x, norm, mlp).square().sum().backward()
    torch.testing.assert_close(x.detach(), before)
    assert x.grad is not None
    assert mlp.fc1.weight.grad is not None
