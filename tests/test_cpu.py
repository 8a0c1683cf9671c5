"""Linear layers of both ways against PyTorch's plain ones, and when they are taken."""

import pytest
import torch
from torch import nn

from portraitmatting.modeling import cpu


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("shape", [(5, 8), (3, 4, 6, 8)])
def test_linear_equals_the_plain_layer(monkeypatch, onednn, shape):
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(cpu, "_ONEDNN", onednn)
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 12), torch.randn(shape)
    plain = layer(x).detach()
    with torch.inference_mode():
        found = cpu.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
        without = cpu.linear(x, layer.weight)
        torch.testing.assert_close(without, plain - layer.bias, atol=1e-5, rtol=1e-5)
        sums = torch.ones_like(plain).flatten(0, -2)
        cpu.add_linear_(sums, x.flatten(0, -2), layer)
        torch.testing.assert_close(sums, 1 + plain.flatten(0, -2), atol=1e-5, rtol=1e-5)


def test_what_needs_gradients_other_types_or_plain_operators_is_left_to_pytorch():
    x = torch.ones(2, 2)
    assert not cpu.infers_on_cpu(x)
    with torch.no_grad():
        assert cpu.infers_on_cpu(x)
        assert not cpu.infers_on_cpu(x.bfloat16())
        assert not cpu.infers_on_cpu(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not cpu.infers_on_cpu(x)
        said = []
        torch.jit.trace(lambda y: (said.append(cpu.infers_on_cpu(y)), y + 1)[1], x)
        assert said[0] is False
