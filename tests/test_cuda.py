"""What runs on a GPU, tested without one: dtypes, layouts, kernels, copies and waits on fake CUDA
tensors, and the values that the same code computes on the CPU."""

import collections
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from portraitmatting import Matte, ModelConfig, PortraitMatting, PortraitmattingError, Predictor
from portraitmatting.device import has_cuda
from portraitmatting.foreground import foreground_pixels
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.images.decode import DecodedImage
from portraitmatting.modeling import swin
from portraitmatting.modeling.heads import fuse
from portraitmatting.on_gpu import ONE_IMAGE, guided_matte, shrink_pixels
from portraitmatting.predictor import Prepared
from portraitmatting.transforms import to_tensor

LAUNCHES = 620
"""The most kernels that a pass of the published network may start."""


class Recorder(TorchDispatchMode):
    """Records the operators that start a kernel, in order: all but views."""

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
    """Replace the model's tensors by fake ones on CUDA."""
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
    """A pass of the published network in fp16, recorded after a first pass that fills caches."""

    def attend(query, key, value, attn_mask):
        attention.append((query, key, value, attn_mask))
        return torch.empty_like(query)  # one kernel; fake tensors would use the slow path

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


def test_a_pass_runs_fused_attention_and_few_kernels_and_never_waits(recorder):
    """The masks of all blocks meet the conditions of PyTorch's memory-efficient attention
    (`check_last_dim_stride_equals_1_dense` in sdp_utils, `aligned_tensor` in attention.cpp);
    others are refused, or copied each time. Weights are not cast, convolutions read channels_last,
    and nothing waits for a value."""
    assert len(recorder.attention) == 24
    for tensors in recorder.attention:
        query, *_, mask = tensors
        assert {x.dtype for x in tensors} == {torch.float16}
        assert {x.stride(-1) for x in tensors} == {1}
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
        assert mask.shape[-1] == query.shape[-2] == 49

    names = [name for name, _, _ in recorder.calls]
    assert names.count("_to_copy") <= 6  # the image, and the inputs of the last layers and `fuse`
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
def test_images_are_copied_once_and_resized_and_filtered_on_the_gpu(monkeypatch, dtype):
    """Pixels are copied to the GPU once, in their own dtype. Alpha and trimap come back at working
    size, the matte at full size with 16 bits per pixel. Until then nothing waits for the GPU."""
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
            mattes = [guided_matte(*estimate.on_gpu) for estimate in estimates]
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
        assert {x.device.type for x in estimate.on_gpu} == {"cuda"}
        assert (matte.dtype, matte.shape) == (torch.uint16, (150, 200))


class FakeStream:
    def record_event(self):
        return None


RESULT_LAUNCHES = {"fast": 120, "ml": 3000}
"""The most kernels that a result may start: of a frame of 1280x720 pixels with "fast", of a photo
of 4 megapixels with "ml"."""


@pytest.mark.parametrize("dtype", PEAKS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    ("kind", "background", "method", "side"),
    [
        ("foreground", "white", "fast", (720, 1280)),
        ("composite", "teal", "fast", (720, 1280)),
        ("composite", "checkerboard", "none", (720, 1280)),
        ("rgba", "white", "ml", (1600, 2400)),
    ],
)
def test_a_result_is_computed_on_the_gpu_and_copied_once(
    monkeypatch, rng, kind, background, method, side, dtype
):
    """Image and alpha are copied to the GPU, then only small lists of indices of soft pixels; one
    copy comes back, of the result's dtype. Nothing waits for the GPU before."""
    downloads, made = [], np.empty(0, dtype)
    monkeypatch.setattr("portraitmatting.matte.has_cuda", lambda device: device == "cuda:0")
    monkeypatch.setattr("portraitmatting.matte.download", lambda x: downloads.append(x) or made)
    image, alpha = soft_scene(rng, *side, dtype)
    matte = Matte(image, alpha, np.zeros(alpha.shape, np.uint8), "cuda:0")
    with FakeTensorMode(allow_non_fake_inputs=True), Recorder() as recorder:
        assert matte.result(kind, background, method) is made
    names = [name for name, _, _ in recorder.calls]
    assert not set(names) & {"_local_scalar_dense", "nonzero", "item"}
    assert len(names) <= RESULT_LAUNCHES.get(method, 20), collections.Counter(names)
    (result,) = downloads
    assert result.device.type == "cuda"
    assert result.dtype == torch.from_numpy(image).dtype
    assert result.shape == (*side, 4 if kind == "rgba" else 3)


@pytest.mark.parametrize("dtype", PEAKS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("method", ["ml", "fast", "none"])
def test_results_of_the_gpu_equal_those_of_the_cpu(monkeypatch, rng, dtype, method):
    """The GPU's code, run on the CPU, to one level."""
    monkeypatch.setattr("portraitmatting.on_gpu._STRIP", 77777)
    image, alpha = soft_scene(rng, 150, 230, dtype)
    matte = Matte(image, alpha, np.zeros(alpha.shape, np.uint8))
    for kind, background in (
        ("foreground", "white"),
        ("rgba", "white"),
        ("composite", "teal"),
        ("composite", "checkerboard"),
        ("composite", "blur:0.05"),
        ("composite", image[::-1]),
        ("composite", lambda image, alpha: image // 2 if dtype != np.float32 else image / 2),
    ):
        expected = matte.result(kind, background, method)
        result = matte._on_gpu(kind, image, background, method)
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        level = 1 if dtype != np.float32 else 1e-5
        difference = np.abs(result.astype(np.float64) - expected)
        assert difference.max() <= level, (kind, background)


def soft_scene(rng, height, width, dtype):
    """An image of smooth colours with noise, and an alpha with a wide soft edge."""
    rows, columns = np.mgrid[0:height, 0:width] / np.float32(min(height, width))
    far = np.hypot(rows - 0.6, columns - 0.5) + 0.05 * np.sin(40 * columns)
    alpha = ((0.45 - far) / 0.1).clip(0, 1).astype(np.float32)
    shades = np.dstack([np.sin(3 * rows + k) * np.cos(4 * columns - k) / 2 + 0.5 for k in range(3)])
    pixels = (shades + 0.02 * rng.random(shades.shape)).clip(0, 1) * PEAKS[dtype]
    return pixels.astype(dtype), alpha


def no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def test_the_cpu_does_what_does_not_fit_into_the_gpus_memory(monkeypatch, rng):
    image, alpha = soft_scene(rng, 90, 120, np.uint8)
    trimap = np.zeros(alpha.shape, np.uint8)
    on_gpu, on_cpu = Matte(image, alpha, trimap, "cuda:0"), Matte(image, alpha, trimap)
    monkeypatch.setattr("portraitmatting.matte.upload", no_memory)
    monkeypatch.setattr("portraitmatting.matte.has_cuda", lambda device: device == "cuda:0")
    np.testing.assert_array_equal(on_gpu.rgba(), on_cpu.rgba())

    predictor = Predictor(PortraitMatting(ModelConfig.tiny()), 64)
    prepared = predictor.prepare(image)
    (estimate,) = predictor.estimate([prepared])
    expected = predictor.finish(estimate)
    pixels = torch.from_numpy(image)
    monkeypatch.setattr("portraitmatting.predictor.guided_matte", no_memory)
    kept = pixels, prepared.tensor, estimate.alpha
    matte = predictor.finish(estimate._replace(on_gpu=kept))
    np.testing.assert_array_equal(matte.alpha, expected.alpha)

    monkeypatch.setattr("portraitmatting.predictor.shrink_pixels", no_memory)
    monkeypatch.setattr(predictor, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    kept, small = predictor._upload(prepared._replace(tensor=pixels))
    assert kept is None
    assert small.equal(prepared.tensor)


@pytest.mark.parametrize("side", [(150, 230), (700, 500), (20, 30)], ids=str)
@pytest.mark.parametrize("dtype", PEAKS, ids=lambda dtype: dtype.__name__)
def test_resized_images_and_mattes_of_the_gpu_equal_those_of_the_cpu(rng, monkeypatch, dtype, side):
    """To one level in the resized image, where rounding may differ, and to 1e-4 in the matte."""
    monkeypatch.setattr("portraitmatting.on_gpu._STRIP", 7777)
    rows, columns = np.mgrid[0 : side[0], 0 : side[1]] / 60
    shades = [np.sin(rows + k) * np.cos(columns - k) / 2.1 + 0.5 for k in range(3)]
    pixels = np.dstack(shades) + 0.02 * rng.random((*side, 1))
    pixels = (pixels.clip(0, 1) * PEAKS[dtype]).astype(dtype)
    coarse = (np.sin(np.mgrid[0:64, 0:96].sum(axis=0) / 9) + 0.5).clip(0, 1).astype(np.float32)
    on_cpu = to_tensor(pixels, (64, 96))
    on_gpu = shrink_pixels(torch.from_numpy(pixels), (64, 96))
    assert on_gpu.dtype == torch.float32
    difference = (on_cpu - on_gpu).abs()
    level = 1 / PEAKS[dtype] if dtype != np.float32 else 0
    assert difference.max() < level + 1e-5
    assert (difference > 1e-5).float().mean() < 0.01
    matte = guided_matte(torch.from_numpy(pixels), on_cpu, torch.from_numpy(coarse)[None])
    expected = guided_upsample(pixels, coarse)
    np.testing.assert_allclose(matte.numpy() / 65535, expected, atol=1e-4)
    assert ((matte.numpy() == 65535) == (expected > 1 - 0.5 / 65535)).mean() > 0.99


class PretendCuda:
    """Makes a predictor believe that it runs on CUDA while all tensors stay on the CPU, and records
    the copies and waits that it asks for."""

    def __init__(self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.waited = 0
        plain_to, cuda = torch.Tensor.to, torch.device("cuda", 0)

        def to(tensor, *args, **options):
            copy = "in" if cuda in args else "out" if "cpu" in args else ""
            if copy:
                self.asked.append(f"{copy} {options['non_blocking']}")
                return tensor
            return plain_to(tensor, *args, **options)

        def pin(tensor):
            self.asked.append("pin")
            return tensor

        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        predictor.device, predictor.dtype = cuda, torch.float32

    def record_event(self) -> "PretendCuda":
        self.asked.append("event")
        return self

    def synchronize(self) -> None:
        self.waited += 1


def test_only_finish_waits_for_the_gpu(tiny_predictor, photo, monkeypatch):
    expected = tiny_predictor.predict(photo)
    gpu = PretendCuda(tiny_predictor, monkeypatch)
    batch = [tiny_predictor.prepare(photo) for _ in range(2)]
    assert gpu.asked == ["pin", "pin"]
    estimates = tiny_predictor.estimate(batch)
    assert gpu.asked[2:] == ["in True"] * 2 + ["out True"] * 2 + ["event"]
    assert gpu.waited == 0
    for number, estimate in enumerate(estimates, start=1):
        np.testing.assert_allclose(tiny_predictor.finish(estimate).alpha, expected.alpha, atol=1e-5)
        assert gpu.waited == number


def test_an_image_of_one_pixel_seen_everywhere_is_an_image(rng):
    """NumPy's way to say one colour: no memory but that of one pixel."""
    _, alpha = soft_scene(rng, 60, 80, np.uint8)
    image = np.broadcast_to(np.uint8([200, 90, 10]), (60, 80, 3))
    trimap = np.zeros(alpha.shape, np.uint8)
    here, whole = Matte(image, alpha, trimap), Matte(image.copy(), alpha, trimap)
    for kind in ("foreground", "rgba", "composite"):
        for method in ("ml", "fast", "none"):
            expected = whole.result(kind, "teal", method)
            np.testing.assert_array_equal(here.result(kind, "teal", method), expected)
            result = here._on_gpu(kind, image, "teal", method)
            np.testing.assert_allclose(result.astype(int), expected, atol=1)


def test_a_matte_of_another_machine_gives_its_results_here(rng, monkeypatch):
    """As after a pickle, on a machine that has no GPU, or fewer, or in a forked process."""
    image, alpha = soft_scene(rng, 60, 80, np.uint8)
    trimap = np.zeros(alpha.shape, np.uint8)
    expected = Matte(image, alpha, trimap).rgba()
    for forked, count in ((False, 0), (False, 2), (True, 8)):
        monkeypatch.setattr("portraitmatting.device._forked", forked)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert not has_cuda("cuda:2")
        np.testing.assert_array_equal(Matte(image, alpha, trimap, "cuda:2").rgba(), expected)
    monkeypatch.setattr("portraitmatting.device._forked", False)
    assert has_cuda("cuda:2") and has_cuda(torch.device("cuda"))
    assert not has_cuda("cuda:8") and not has_cuda("mps")
    with pytest.raises(PortraitmattingError, match="unknown device 'gpu'"):
        Matte(image, alpha, trimap, "gpu").rgba()


def test_many_threads_take_turns_with_images_of_full_size(rng, monkeypatch):
    image, alpha = soft_scene(rng, 60, 80, np.uint8)
    matte = Matte(image, alpha, np.zeros(alpha.shape, np.uint8))
    expected = matte.composite("teal")
    lock, inside, most = threading.Lock(), 0, 0
    plain = foreground_pixels

    def count(*args):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1
        return plain(*args)

    monkeypatch.setattr("portraitmatting.matte.foreground_pixels", count)
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda _: matte._on_gpu("composite", image, "teal", "ml"), range(4))
        )
    assert most == 1
    for result in results:
        np.testing.assert_allclose(result.astype(int), expected, atol=1)


def test_an_image_for_which_there_is_no_memory_waits_for_other_images(
    tiny_predictor, photo, monkeypatch
):
    """A result that another thread makes may fill the memory for a moment."""
    expected = tiny_predictor.predict(photo)
    prepared = tiny_predictor.prepare(photo)
    monkeypatch.setattr(tiny_predictor, "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    begun, done = threading.Event(), threading.Event()
    plain = tiny_predictor._forward

    def forward(*args):
        if not done.is_set():
            no_memory()
        return plain(*args)

    def other_image():
        with ONE_IMAGE:
            begun.set()
            time.sleep(0.1)
            done.set()

    monkeypatch.setattr(tiny_predictor, "_forward", forward)
    thread = threading.Thread(target=other_image)
    thread.start()
    begun.wait()
    matte, _ = tiny_predictor._in_parts(prepared.tensor[None], tiny_predictor._network)
    thread.join()
    np.testing.assert_allclose(
        guided_upsample(photo, matte[0, 0].numpy()), expected.alpha, atol=1e-5
    )
