"""The predictor: images of any size and dtype to mattes of their size."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from portraitmatting import (
    PRESETS,
    ModelConfig,
    PortraitMatting,
    PortraitmattingError,
    Predictor,
    estimate_foreground,
)
from portraitmatting.checkpoint.format import CheckpointInfo
from portraitmatting.device import describe_device
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.images.pixels import to_dtype
from portraitmatting.modeling.heads import fuse
from portraitmatting.predictor import Matte
from portraitmatting.transforms import network_size, to_tensor


@pytest.fixture(scope="module")
def lively_model() -> PortraitMatting:
    """A tiny network whose mattes depend on the image and contain 0, 1 and values between them."""
    torch.manual_seed(0)
    tiny_model = PortraitMatting(ModelConfig.tiny()).eval()
    with torch.no_grad():
        outputs = tiny_model(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
        alpha, trimap = tiny_model.alpha_head.fine[-1], tiny_model.trimap_head.layers[-1]
        scale = 0.3 / outputs.alpha.std()
        alpha.weight.mul_(scale)
        alpha.bias.sub_(outputs.alpha.mean()).mul_(scale).add_(0.5)
        spread, mean = outputs.trimap_logits.std((0, 2, 3)), outputs.trimap_logits.mean((0, 2, 3))
        trimap.weight.div_(spread[:, None, None, None])
        trimap.bias.sub_(mean).div_(spread).add_(torch.tensor([-1.0, 0.5, -1.0]))
    return tiny_model


@pytest.fixture
def model(lively_model) -> PortraitMatting:
    return copy.deepcopy(lively_model)


@pytest.fixture
def predictor(model) -> Predictor:
    return Predictor(model, short_side=64)


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def check(matte: Matte, height: int, width: int) -> None:
    assert matte.alpha.shape == matte.trimap.shape == matte.image.shape[:2] == (height, width)
    assert matte.alpha.dtype == np.float32
    assert matte.trimap.dtype == np.uint8
    assert matte.alpha.min() >= 0
    assert matte.alpha.max() <= 1
    assert set(np.unique(matte.trimap)) <= {0, 128, 255}


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (8, 8), (15, 300), (300, 15), (1, 3000), (120, 90), (90, 120), (64, 96), (3000, 4000)],
)
def test_a_matte_has_its_images_size(predictor, rng, height, width):
    check(predictor.predict(rng.integers(0, 256, (height, width, 3), np.uint8)), height, width)


def test_a_matte_is_the_networks_output_after_the_guided_filter(predictor, photo):
    """The whole path, step by step."""
    size = network_size(90, 120, 64)
    with torch.inference_mode():
        outputs = predictor.model(to_tensor(photo, size)[None])
    expected = guided_upsample(photo, fuse(*outputs)[0, 0].numpy())
    matte = predictor.predict(photo)
    np.testing.assert_allclose(matte.alpha, expected, atol=1e-6)
    assert 0.1 < matte.alpha.std() < 0.5  # the network's output depends on the image
    assert set(np.unique(matte.trimap)) == {0, 128, 255}
    classes = outputs.trimap_logits.argmax(dim=1)[0].numpy()
    for row, column in [(0, 0), (45, 60), (89, 119), (10, 100)]:
        there = classes[int((row + 0.5) * size[0] / 90), int((column + 0.5) * size[1] / 120)]
        assert matte.trimap[row, column] == [0, 128, 255][there]


def test_all_dtypes_of_an_image_give_nearly_the_same_matte(predictor, photo):
    expected = predictor.predict(photo).alpha
    for image in (
        photo.astype(np.uint16) * 257,
        photo.astype(np.float32) / 255,
        photo.astype(np.float64) / 255,
    ):
        matte = predictor.predict(image)
        assert matte.image.dtype == (np.float32 if image.dtype.kind == "f" else image.dtype)
        # At the border of two trimap regions rounding may decide for one or the other.
        assert np.abs(matte.alpha - expected).mean() < 5e-3


def test_grey_images_are_rgb_with_equal_channels(predictor, photo):
    grey = photo[:, :, 0]
    expected = predictor.predict(np.dstack([grey] * 3)).alpha
    np.testing.assert_array_equal(predictor.predict(grey).alpha, expected)
    np.testing.assert_array_equal(predictor.predict(grey[:, :, None]).alpha, expected)


def test_views_and_read_only_images_are_accepted(predictor, photo):
    view = photo[::-1, ::2]
    view.setflags(write=False)
    outputs = predictor.predict(view)
    np.testing.assert_array_equal(outputs.alpha, predictor.predict(view.copy()).alpha)
    np.testing.assert_array_equal(outputs.image, view)


def test_images_are_not_changed(predictor, photo):
    for image in (photo[:64, :96], (photo[:64, :96] / 255).astype(np.float32)):
        before = image.copy()
        predictor.predict(image)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shape", [(5, 6, 5), (3, 5, 6), (0, 6, 3)])
def test_arrays_of_other_shapes_are_refused(predictor, shape):
    with pytest.raises(PortraitmattingError, match="got " + "x".join(map(str, shape))):
        predictor.predict(np.zeros(shape, np.uint8))


def test_a_batch_of_mixed_sizes_gives_the_mattes_of_single_images_in_order(predictor, rng):
    shapes = [(90, 120), (120, 90), (60, 80), (8, 8), (90, 120), (200, 10)]
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    mattes = predictor.predict_batch(images)
    for image, matte in zip(images, mattes, strict=True):
        assert matte.image is image
        np.testing.assert_allclose(matte.alpha, predictor.predict(image).alpha, atol=1e-4)
    assert predictor.predict_batch([]) == []


def count_batches(model: PortraitMatting, monkeypatch, limit: int = 1000) -> list[int]:
    """The sizes of the batches that the network gets from now on; above `limit` it runs out of
    memory."""
    batches: list[int] = []
    forward = model.forward

    def counting(batch):
        batches.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")
        return forward(batch)

    monkeypatch.setattr(model, "forward", counting)
    return batches


def test_images_of_one_working_size_run_together(predictor, rng, monkeypatch):
    batches = count_batches(predictor.model, monkeypatch)
    shapes = [(90, 120), (120, 90), (60, 80), (90, 120)]  # 90x120 and 60x80 both become 64x96
    predictor.predict_batch([np.zeros((*shape, 3), np.uint8) for shape in shapes])
    assert sorted(batches) == [1, 3]


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_out_of_memory_halves_the_batch_and_goes_on(predictor, rng, monkeypatch, limit):
    images = [rng.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(5)]
    expected = predictor.predict_batch(images)
    batches = count_batches(predictor.model, monkeypatch, limit)
    outputs = predictor.predict_batch(images)
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(one.alpha, other.alpha, atol=1e-4)
    assert batches[0] == 5
    assert max(batches[2:]) <= limit
    batches.clear()
    predictor.predict_batch(images)
    assert max(batches) <= limit  # the predictor remembers what fits


def test_out_of_memory_in_the_tensor_path_halves_too(predictor, rng, monkeypatch):
    images = torch.from_numpy(rng.random((4, 3, 60, 80), np.float32))
    expected = predictor.predict_tensor(images)
    batches = count_batches(predictor.model, monkeypatch, limit=1)
    torch.testing.assert_close(predictor.predict_tensor(images), expected, atol=1e-4, rtol=0)
    assert batches == [4, 2, 1, 1, 1, 1]


def test_the_error_for_an_image_too_large_for_memory_names_a_short_side_to_try(
    model, photo, monkeypatch
):
    predictor = Predictor(model, short_side=640)
    count_batches(model, monkeypatch, limit=0)
    with pytest.raises(PortraitmattingError, match="640x864: try a short side of 480") as caught:
        predictor.predict(photo)
    assert "\n" not in str(caught.value)
    # A context would keep the tensors alive that filled the memory.
    assert caught.value.__context__ is None


def test_other_errors_of_the_network_are_raised_as_they_are(predictor, photo, monkeypatch):
    def broken(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(predictor.model, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        predictor.predict(photo)


@pytest.mark.parametrize("shape", [(90, 120), (41, 37), (64, 96), (15, 300)])
def test_the_tensor_path_gives_the_same_matte(predictor, rng, shape):
    image = rng.random((*shape, 3), np.float32)
    outputs = predictor.predict_tensor(as_batch(image))
    assert outputs.shape == (1, 1, *shape)
    assert outputs.dtype == torch.float32
    np.testing.assert_allclose(outputs[0, 0], predictor.predict(image).alpha, atol=1e-4)


def test_the_tensor_path_gives_nearly_the_same_matte_for_8_bit_images(predictor, photo):
    outputs = predictor.predict_tensor(as_batch(photo) / 255)[0, 0].numpy()
    assert np.abs(outputs - predictor.predict(photo).alpha).mean() < 5e-3


def test_the_tensor_path_takes_float16_and_gives_tensors_that_training_can_use(predictor, rng):
    images = torch.from_numpy(rng.random((2, 3, 64, 64), np.float32)).half().requires_grad_()
    mattes = predictor.predict_tensor(images)
    assert mattes.dtype == torch.float32
    assert not mattes.requires_grad
    mattes.mul_(2)  # inference tensors would allow neither this nor the next line
    (mattes * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "got 3x8x8"),
        (torch.zeros(1, 8, 8, 3), "got 1x8x8x3"),
        (torch.zeros(0, 3, 8, 8), "got 0x3x8x8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 8, 8), 200.0), "200..200: divide"),
        (torch.full((1, 3, 8, 8), torch.nan), "nan"),
    ],
)
def test_other_tensors_are_refused(predictor, images, message):
    with pytest.raises(PortraitmattingError, match=message):
        predictor.predict_tensor(images)


def test_bf16_is_close_to_fp32(model, photo):
    expected = Predictor(model, 64, "fp32").predict(photo).alpha
    predictor = Predictor(model, 64, "bf16")
    outputs = predictor.predict(photo).alpha
    assert outputs.dtype == np.float32
    assert 0 < np.abs(outputs - expected).mean() < 0.02
    assert "bf16" in str(predictor)


@pytest.fixture
def overflowing(model) -> Predictor:
    """A predictor in fp16 whose first layer overflows, so that its outputs are NaN."""
    with torch.no_grad():
        model.encoder.stem[0].weight.mul_(1e6)
        model.encoder.stem[2].weight.div_(1e6)
    predictor = Predictor(model, short_side=64)
    predictor._network = model.at_precision(torch.float16)
    predictor.dtype = torch.float16
    return predictor


def test_an_image_that_overflows_in_fp16_is_run_again_in_fp32(overflowing, photo):
    expected = Predictor(overflowing.model, 64).predict(photo)
    matte = overflowing.predict(photo)
    np.testing.assert_array_equal(matte.alpha, expected.alpha)
    np.testing.assert_array_equal(matte.trimap, expected.trimap)
    images = as_batch(photo) / 255
    assert overflowing.predict_tensor(images).equal(
        Predictor(overflowing.model, 64).predict_tensor(images)
    )


def test_outputs_that_are_not_finite_in_fp32_either_are_an_error(overflowing, photo):
    with torch.no_grad():
        overflowing.model.encoder.stem[0].weight.fill_(float("inf"))
    for attempt in (
        lambda: overflowing.predict(photo),
        lambda: overflowing.predict_tensor(as_batch(photo) / 255),
        lambda: Predictor(overflowing.model, 64).predict(photo),
    ):
        with pytest.raises(PortraitmattingError, match=r"not finite.*verify"):
            attempt()


def test_size_and_precision_come_from_the_checkpoint_by_default(model):
    model.checkpoint = CheckpointInfo("test", "free", working_short_side=96, precision="bf16")
    predictor = Predictor(model)
    assert predictor.short_side == 96
    assert predictor.dtype == torch.bfloat16
    predictor = Predictor(model, short_side=64, precision="fp32")
    assert predictor.short_side == 64
    assert predictor.dtype == torch.float32


def test_without_a_checkpoint_the_size_must_be_given(model):
    with pytest.raises(PortraitmattingError, match="give short_side"):
        Predictor(model)


def test_a_mistake_in_a_call_is_one_line_that_names_it(model, matte, tmp_path):
    predictor = Predictor(model, 64)
    image = matte.image
    for call, says in (
        (lambda: Predictor(model, "64"), "short side '64': expected an integer"),
        (lambda: predictor.predict_batch("photo.jpg"), "expected a list of images, got str"),
        (lambda: predictor.predict_batch(image), "expected a list of images, got ndarray"),
        (lambda: predictor.predict_batch(None), "expected a list of images, got NoneType"),
        (lambda: predictor.predict_tensor(image), "expected a tensor Bx3xHxW, got ndarray"),
        (lambda: matte.crop(None), "crop margin None: use 0 to 100"),
        (lambda: matte.crop(-1), "crop margin -1: use 0 to 100"),
        (lambda: matte.save(None), "expected an image file's path, got None"),
        (lambda: matte.save(""), "expected an image file's path, got ''"),
        (lambda: predictor.predict(None), "expected an image"),
    ):
        with pytest.raises(PortraitmattingError, match=says) as caught:
            call()
        assert str(caught.value).isprintable()
    assert len(predictor.predict_batch(np.stack([image, image]))) == 2


def test_a_preset_scales_the_short_side(model):
    model.checkpoint = CheckpointInfo("test", "free", working_short_side=320)
    sides = {name: Predictor(model, preset=name).short_side for name in PRESETS}
    assert sides == {"live": 128, "fast": 192, "balanced": 256, "quality": 320}
    assert Predictor(model, short_side=640, preset="balanced").short_side == 512
    assert len({Predictor(model, preset=name).settings for name in PRESETS}) == 4
    predictor = Predictor(model)
    assert [predictor.at_preset(name).short_side for name in PRESETS] == [128, 192, 256, 320]
    assert predictor.at_short_side(96).short_side == 96 and predictor.short_side == 320
    with pytest.raises(
        PortraitmattingError, match="preset 'best': use live, fast, balanced, quality"
    ):
        Predictor(model, preset="best")


@pytest.mark.parametrize("short_side", [0, 100, -32])
def test_a_wrong_short_side_is_refused_at_once(model, short_side):
    with pytest.raises(PortraitmattingError, match="multiple of 32"):
        Predictor(model, short_side=short_side)


def test_a_missing_device_is_refused_at_once(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", torch.device("cuda", 0)):
        with pytest.raises(PortraitmattingError, match="device 'cuda"):
            Predictor(model, 64, device=device)


def test_the_model_is_moved_and_put_into_eval_mode():
    moves = []

    class Watched(PortraitMatting):
        def to(self, *args, **kwargs):
            moves.append(args)
            return super().to(*args, **kwargs)

    model = Watched(ModelConfig.tiny()).train()
    predictor = Predictor(model, 64, device="cpu")
    assert (torch.device("cpu"),) in moves
    assert not predictor.model.training
    assert predictor.device == torch.device("cpu")


def test_a_predictor_says_what_it_runs_on(predictor):
    assert str(predictor) == f"{describe_device(torch.device('cpu'))}, fp32, short side 64"


def test_settings_differ_between_predictors(model):
    def settings(**changes):
        return Predictor(model, **{"short_side": 64, **changes}).settings

    before = settings()
    assert before == settings()
    assert len({before, settings(short_side=96), settings(precision="bf16")}) == 3
    with torch.no_grad():
        model.alpha_head.fine[-1].bias.add_(1e-4)
    assert settings() != before


@pytest.mark.parametrize("model", ["portraitmatting_swint", 1, torch.nn.Linear(1, 1)])
def test_other_objects_than_models_are_refused(model):
    with pytest.raises(PortraitmattingError, match="expected a model, got"):
        Predictor(model, short_side=64)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("grey", [True, False])
def test_the_matte_of_a_transparent_image_is_transparent_too(predictor, photo, dtype, grey):
    own = np.zeros((90, 120), np.float32)
    own[10:80, 20:100] = np.linspace(0.2, 1, 80)
    colours = to_dtype(photo[..., :1] if grey else photo, dtype)
    matte = predictor.predict(np.dstack([colours, to_dtype(own, dtype)]))
    assert (matte.alpha <= own + 0.5 / 255).all() and matte.alpha.max() > 0.5
    assert (matte.image[own == 0] == to_dtype(np.ones(1, np.float32), dtype)).all()  # over white
    assert (matte.trimap[own == 0] == 0).all() and (matte.trimap[own < 0.99] < 255).all()
    whole = predictor.predict(matte.image)  # the same image without transparency
    np.testing.assert_allclose(matte.alpha, np.minimum(whole.alpha, own), atol=0.5 / 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_and_not_the_models_dtype_decides(lively_model, photo, dtype):
    expected = Predictor(copy.deepcopy(lively_model), 64, "fp32").predict(photo).alpha
    alpha = Predictor(copy.deepcopy(lively_model).to(dtype), 64, "fp32").predict(photo).alpha
    assert np.abs(alpha - expected).mean() < 0.01


def test_without_a_model_the_default_checkpoint_is_used(model, monkeypatch):
    model.checkpoint = CheckpointInfo("test", "free", working_short_side=96)
    monkeypatch.setattr("portraitmatting.predictor.load_model", lambda: model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    predictor = Predictor()
    assert predictor.short_side == 96 and predictor.device == torch.device("cpu")


def test_one_predictor_serves_several_threads(predictor, rng):
    images = [rng.integers(0, 256, (40 + 9 * i, 70, 3), np.uint8) for i in range(8)]
    expected = [predictor.predict(image).rgba() for image in images]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(predictor.predict, images), expected, strict=True):
            np.testing.assert_allclose(one.rgba().astype(int), other, atol=1)


def test_too_little_memory_is_an_error_of_one_line(predictor, photo, monkeypatch):
    def fail(*_):
        raise MemoryError

    for step in ("to_tensor", "guided_upsample"):
        with monkeypatch.context() as patch:
            patch.setattr(f"portraitmatting.predictor.{step}", fail)
            with pytest.raises(PortraitmattingError, match="120x90 pixels: scale"):
                predictor.predict(photo)


def test_the_three_steps_together_give_what_predict_gives(tiny_predictor, photo):
    expected = tiny_predictor.predict(photo)
    prepared = tiny_predictor.prepare(photo)
    assert prepared.tensor.shape == (3, *tiny_predictor.network_size(photo))
    (estimate,) = tiny_predictor.estimate([prepared])
    matte = tiny_predictor.finish(estimate)
    assert matte.image is photo
    np.testing.assert_array_equal(matte.alpha, expected.alpha)
    np.testing.assert_array_equal(matte.trimap, expected.trimap)


def test_copies_are_complete_at_once_on_other_devices_than_cuda(tiny_predictor, photo, monkeypatch):
    """An unfinished copy that nothing waits for would be read as a matte."""
    plain_to, asked = torch.Tensor.to, []

    def to(tensor, *args, **options):
        asked.append(options.get("non_blocking", False))
        return plain_to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    (estimate,) = tiny_predictor.estimate([tiny_predictor.prepare(photo)])
    assert asked
    assert not any(asked)
    assert estimate.arrived is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_says_that_it_lacks_threads_instead_of_waiting_for_them():
    """Whatever it computes; with one thread it needs no other."""
    code = """if True:
        import os, signal
        import numpy as np, torch
        from portraitmatting import *
        torch.set_num_threads(2)
        image = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
        alpha = (np.mgrid[:900, :1200].sum(axis=0) / 2100).astype(np.float32)
        predictor = Predictor(PortraitMatting(ModelConfig.tiny()), 64)
        predictor.predict(image)
        matte, images = Matte(image, alpha, None), torch.zeros(1, 3, 900, 1200)
        def run(threads, work):
            signal.alarm(60)
            torch.set_num_threads(threads)
            try: work()
            except PortraitmattingError as error: os._exit(10 + ("spawn" in str(error)))
            os._exit(0)
        def code(threads, work):
            if not (child := os.fork()): run(threads, work)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        calls = (
            lambda: estimate_foreground(image, alpha, "fast"),
            lambda: matte.result("rgba", method="fast"),
            lambda: predictor.predict_tensor(images),
        )
        print([code(threads, call) for threads in (2, 1) for call in calls])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[11, 11, 11, 0, 0, 0]\n", done.stderr


def test_autocast_of_the_caller_changes_nothing(tiny_predictor, rng):
    image = rng.integers(0, 256, (300, 400, 3), np.uint8)
    tensor = torch.rand(1, 3, 200, 300)
    alpha = (np.mgrid[:300, :400].sum(axis=0) / 700).astype(np.float32)

    def results():
        matte = tiny_predictor.predict(image)
        colours = estimate_foreground(image, alpha, "fast"), estimate_foreground(image, alpha)
        return matte.alpha, *colours, tiny_predictor.predict_tensor(tensor).numpy()

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(np.array_equal, results(), expected))
        assert torch.is_autocast_enabled("cpu")
