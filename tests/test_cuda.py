"""The network as a GPU gets it, on fake CUDA tensors: types, layouts, launches, no waiting."""

import collections

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from portraitmatting import ModelConfig, PortraitMatting
from portraitmatting.modeling import swin
from portraitmatting.modeling.heads import fuse

LAUNCHES = 620
"""Most operators of a pass of the published network that start a kernel."""


class Recorder(TorchDispatchMode):
    """Operators that compute something, in order; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple, object]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        returns = function._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not is_view and function.namespace == "aten":
            self.calls.append((function.overloadpacket.__name__, args, output))
        return output


def on_fake_cuda(model: PortraitMatting) -> PortraitMatting:
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = torch.empty_like(tensor, device="cuda")
                    tensors[name] = (
                        nn.Parameter(moved, False) if tensor.is_floating_point() else moved
                    )
    return model


@pytest.fixture(params=[1, 3], ids=lambda batch: f"batch {batch}")
def recorder(request, monkeypatch):
    """Of a pass of the published network in fp16, after one that fills its caches."""

    def attend(query, key, value, attn_mask):
        attention.append((query, key, value, attn_mask))
        return torch.empty_like(query)  # one kernel, where fake tensors would take the slow way

    attention = []
    monkeypatch.setattr(swin.F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(swin, "_cached_shift_mask", swin.lru_cache(swin.shift_mask))
    model = PortraitMatting(ModelConfig()).eval().at_precision(torch.float16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        on_fake_cuda(model.to(memory_format=torch.channels_last))
        images = torch.empty(request.param, 3, 384, 512, device="cuda")
        images = images.contiguous(memory_format=torch.channels_last)
        fuse(*model(images))
        attention.clear()
        with Recorder() as recorder:
            matte = fuse(*model(images))
    assert matte.dtype == torch.float32
    assert matte.device.type == "cuda"
    recorder.attention = attention
    return recorder


def test_a_pass_is_what_a_gpu_likes(recorder):
    """Fused attention in each block: the conditions of PyTorch's memory-efficient kernel on a mask
    (`check_last_dim_stride_equals_1_dense` in sdp_utils, `aligned_tensor` in attention.cpp), else
    it is refused, or copied each time. Weights are not cast, convolutions read channels_last,
    nothing waits for a value, and launches stay in their budget."""
    assert len(recorder.attention) == 24
    for tensors in recorder.attention:
        query, *_, mask = tensors
        assert {x.dtype for x in tensors} == {torch.float16}
        assert {x.stride(-1) for x in tensors} == {1}
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
        assert mask.shape[-1] == query.shape[-2] == 49

    names = [name for name, _, _ in recorder.calls]
    assert names.count("_to_copy") <= 6  # the image, and what the last layers and `fuse` read
    layers = [a for n, a, _ in recorder.calls if n in ("convolution", "addmm", "mm", "bmm")]
    assert [args[1].dtype for args in layers].count(torch.float32) == 2
    for name, args, output in recorder.calls:
        if name == "convolution" and args[1].shape[-1] > 1:
            assert args[0].is_contiguous(memory_format=torch.channels_last)
            assert output.is_contiguous(memory_format=torch.channels_last)
    assert not set(names) & {"_local_scalar_dense", "nonzero"}
    assert {x.device.type for _, _, x in recorder.calls if isinstance(x, torch.Tensor)} == {"cuda"}
    assert len(names) <= LAUNCHES, collections.Counter(names)
