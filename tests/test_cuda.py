"""The network as a GPU gets it, on fake CUDA tensors: types, layouts, launches, no waiting."""

import collections

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from portraitmatting import ModelConfig, PortraitMatting, Predictor
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.images.decode import DecodedImage
from portraitmatting.modeling import swin
from portraitmatting.modeling.heads import fuse
from portraitmatting.on_gpu import guided_matte, shrink_pixels
from portraitmatting.predictor import Prepared
from portraitmatting.transforms import to_tensor

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


PEAKS = {np.uint8: 255, np.uint16: 65535, np.float32: 1}


@pytest.mark.parametrize("dtype", PEAKS, ids=lambda dtype: dtype.__name__)
def test_from_pixels_to_pixels_everything_but_the_network_happens_there(monkeypatch, dtype):
    """Pixels go up once and as they are; at working size two copies come back, at full size 16
    bits a pixel; and in between the GPU is never waited for."""
    predictor = Predictor(PortraitMatting(ModelConfig.tiny()), 64)
    half = predictor.model.at_precision(torch.float16)
    monkeypatch.setattr(swin, "_cached_shift_mask", swin.lru_cache(swin.shift_mask))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream())
    image = DecodedImage(np.zeros((150, 200, 3), dtype))
    predictor.device, predictor.dtype = torch.device("cuda", 0), torch.float16
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        on_fake_cuda(predictor.model)
        predictor._network = on_fake_cuda(half)
        tensor = torch.empty(image.pixels.shape, dtype=torch.from_numpy(image.pixels).dtype)
        batch = [Prepared(image, (64, 96), tensor)] * 3
        predictor.estimate(batch)
        with Recorder() as recorder:
            estimates = predictor.estimate(batch)
            mattes = [guided_matte(*estimate.there) for estimate in estimates]
    names = {name for name, _, _ in recorder.calls}
    assert not names & {"_local_scalar_dense", "nonzero", "item"}
    copies = [
        (args[0].dtype, output.device.type)
        for name, args, output in recorder.calls
        if name == "_to_copy" and args[0].device != output.device
    ]
    back = [(torch.float32, "cpu"), (torch.uint8, "cpu")]
    assert copies == [(tensor.dtype, "cuda")] * 3 + back
    for estimate, matte in zip(estimates, mattes, strict=True):
        assert {x.device.type for x in estimate.there} == {"cuda"}
        assert (matte.dtype, matte.shape) == (torch.uint16, (150, 200))


class FakeStream:
    def record_event(self):
        return None


@pytest.mark.parametrize("side", [(150, 230), (700, 500), (20, 30)], ids=str)
@pytest.mark.parametrize("dtype", PEAKS, ids=lambda dtype: dtype.__name__)
def test_there_comes_out_what_comes_out_here(rng, monkeypatch, dtype, side):
    """One grey level where rounding decides at working size, 1e-4 in the matte."""
    monkeypatch.setattr("portraitmatting.on_gpu._STRIP", 7777)
    rows, columns = np.mgrid[0 : side[0], 0 : side[1]] / 60
    shades = [np.sin(rows + k) * np.cos(columns - k) / 2.1 + 0.5 for k in range(3)]
    pixels = np.dstack(shades) + 0.02 * rng.random((*side, 1))
    pixels = (pixels.clip(0, 1) * PEAKS[dtype]).astype(dtype)
    coarse = (np.sin(np.mgrid[0:64, 0:96].sum(axis=0) / 9) + 0.5).clip(0, 1).astype(np.float32)
    here = to_tensor(pixels, (64, 96))
    there = shrink_pixels(torch.from_numpy(pixels), (64, 96))
    assert there.dtype == torch.float32
    difference = (here - there).abs()
    level = 1 / PEAKS[dtype] if dtype != np.float32 else 0
    assert difference.max() < level + 1e-5
    assert (difference > 1e-5).float().mean() < 0.01
    matte = guided_matte(torch.from_numpy(pixels), here, torch.from_numpy(coarse)[None])
    expected = guided_upsample(pixels, coarse)
    np.testing.assert_allclose(matte.numpy() / 65535, expected, atol=1e-4)
    assert ((matte.numpy() == 65535) == (expected > 1 - 0.5 / 65535)).mean() > 0.99
