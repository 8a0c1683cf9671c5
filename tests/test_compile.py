"""The network through torch.compile."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from portraitmatting import ModelConfig, PortraitMatting, PortraitmattingError, Predictor
from portraitmatting.device import check_compiler
from portraitmatting.modeling.swin import SwinBlock


@pytest.fixture(autouse=True)
def nothing_compiled():
    """What one test has compiled would make PyTorch trace the next one's network with open sizes,
    which takes minutes."""
    yield
    torch._dynamo.reset()


def test_compile_captures_the_network_as_one_graph(tiny_model):
    """One graph without breaks; what a backend makes of the graph is torch's business."""
    images = torch.rand(1, 3, 64, 64)
    compiled = torch.compile(tiny_model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).alpha, tiny_model(images).alpha)


def test_the_predictor_runs_what_torch_compile_returns(tiny_model, photo, monkeypatch):
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


def test_compile_without_a_cpp_compiler_is_refused_at_once(tiny_model, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "absent-g++")
    with pytest.raises(PortraitmattingError, match="there is no absent-g"):
        Predictor(tiny_model, 64, compile=True)
    Predictor(tiny_model, 64)


def test_a_compiled_block_equals_the_eager_one():
    """With the real compiler; only one block, because compiling takes long."""
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
