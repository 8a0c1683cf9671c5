"""The steps of a prediction between threads and devices, and torch.compile."""

import shutil
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from portraitmatting import ModelConfig, PortraitMatting, PortraitmattingError, Predictor
from portraitmatting.device import check_compiler
from portraitmatting.folder.job import matte_folder
from portraitmatting.folder.plan import plan_folder
from portraitmatting.folder.results import ResultOptions
from portraitmatting.images.files import write_image
from portraitmatting.modeling.swin import SwinBlock


def test_the_three_steps_are_what_predict_does(tiny_predictor, photo):
    expected = tiny_predictor.predict(photo)
    prepared = tiny_predictor.prepare(photo)
    assert prepared.tensor.shape == (3, *tiny_predictor.network_size(photo))
    (estimate,) = tiny_predictor.estimate([prepared])
    matte = tiny_predictor.finish(estimate)
    assert matte.image is photo
    np.testing.assert_array_equal(matte.alpha, expected.alpha)
    np.testing.assert_array_equal(matte.trimap, expected.trimap)


class PretendCuda:
    """`Predictor.device` as on a GPU, while everything stays on the CPU; notes what was asked."""

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


def test_on_cuda_nothing_waits_before_finish(tiny_predictor, photo, monkeypatch):
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


def test_elsewhere_copies_wait(tiny_predictor, photo, monkeypatch):
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


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_folder_job_has_a_thread_for_each_image_and_one_for_batches(
    tiny_predictor, photo, tmp_path, monkeypatch, batch_size
):
    threads: dict[str, set[str]] = {}
    for step in ("prepare", "estimate", "finish"):
        original = getattr(Predictor, step)

        def watched(self, item, step=step, original=original):
            threads.setdefault(step, set()).add(threading.current_thread().name)
            return original(self, item)

        monkeypatch.setattr(Predictor, step, watched)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        write_image(tmp_path / "photos" / f"{number}.png", photo)
    plan = plan_folder(tmp_path / "photos", tmp_path / "mattes", ["alpha"])
    options = ResultOptions(foreground="none")
    assert matte_folder(plan, tiny_predictor, options, batch_size, workers=2).done == 3
    assert threads["prepare"] == threads["finish"]
    if batch_size == 1:
        assert threads["estimate"] == threads["prepare"]
    else:
        assert len(threads["estimate"]) == 1
        assert not threads["estimate"] & threads["prepare"]


def test_compile_runs_what_torch_compile_gives(tiny_model, photo, monkeypatch):
    expected = Predictor(tiny_model, 64).predict(photo).alpha
    compiled = []

    def fake(model):
        compiled.append(model)
        return lambda batch: model(batch)

    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    predictor = Predictor(tiny_model, 64, compile=True)
    assert compiled == [tiny_model]
    np.testing.assert_array_equal(predictor.predict(photo).alpha, expected)


def test_compile_without_a_compiler_is_refused_at_once(tiny_model, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "absent-g++")
    with pytest.raises(PortraitmattingError, match="there is no absent-g"):
        Predictor(tiny_model, 64, compile=True)
    Predictor(tiny_model, 64)


def test_a_compiled_block_equals_the_eager_one():
    """Through the real compiler; one block of Swin for the time's sake."""
    try:
        check_compiler()
    except PortraitmattingError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    block = SwinBlock(8, 2, window=7, shift=3, mlp_ratio=2.0, drop_path=0.0).eval()
    x = torch.randn(1, 9, 15, 8)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(block)(x), block(x), atol=1e-5, rtol=1e-5)


def test_one_compilation_serves_batches_of_any_length(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    config = replace(ModelConfig.tiny(), depths=(1, 1, 1, 1), decoder_depth=1)
    model = PortraitMatting(config)
    predictor, plain = Predictor(model, 64, compile=True), Predictor(model, 64)
    prepared = plain.prepare(np.full((64, 96, 3), 99, np.uint8))
    for count in (2, 3, 4):
        expected = plain.estimate([prepared] * count)[0].alpha
        torch.testing.assert_close(predictor.estimate([prepared] * count)[0].alpha, expected)
    assert counter.frame_count == 1
