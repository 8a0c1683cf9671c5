"""ONNX files: equal to the network at any batch and size, run by a Predictor, or refused."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import eval_image_folder
from conftest import ROOT
from portraitmatting import (
    ModelConfig,
    PortraitMatting,
    PortraitmattingError,
    Predictor,
    load_model,
    read_image,
    write_image,
)
from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.checkpoint.load import load_network
from portraitmatting.modeling.model import Prediction
from portraitmatting.onnx_export import export_onnx
from portraitmatting.onnx_model import OnnxModel, _device_of_tensors, choose_providers

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

INFO = CheckpointInfo("a test", "free", working_short_side=64, facts={"seed": 0})
SMALL = ModelConfig(**{**vars(ModelConfig.tiny()), "depths": (1, 2, 1, 1), "decoder_depth": 1})
"""Every kind of block once: each is seconds of tracing."""


@pytest.fixture(scope="module")
def model() -> PortraitMatting:
    torch.manual_seed(0)
    model = PortraitMatting(SMALL).eval()
    model.checkpoint = INFO
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    assert export_onnx(path, model) < 1e-4
    return path


@pytest.fixture(scope="module")
def onnx_model(exported) -> OnnxModel:
    return load_model(exported)


@pytest.mark.parametrize(
    "shape",
    [(1, 64, 96), (3, 224, 224), (1, 256, 320), (2, 416, 320), (1, 32, 32), (2, 32, 480)],
    ids=str,
)
def test_the_file_equals_the_network_at_sizes_it_was_not_traced_at(model, onnx_model, rng, shape):
    batch, *size = shape
    image = torch.from_numpy(rng.random((batch, 3, *size), np.float32))
    with torch.inference_mode():
        expected = model(image)
    for mine, theirs in zip(onnx_model(image), expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_the_file_of_the_default_checkpoint_equals_its_network(tmp_path):
    model = load_network()
    path = tmp_path / "default.onnx"
    export_onnx(path, model)
    image = torch.from_numpy(read_image(ROOT / "examples/astronaut.jpg").pixels / np.float32(255))
    image = interpolate(image.permute(2, 0, 1)[None], (160, 128), mode="area")
    with torch.inference_mode():
        expected = model(image)
    for mine, theirs in zip(load_model(path)(image), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)


def test_the_file_is_valid_and_has_the_checkpoints_metadata(exported):
    graph = onnx.load(exported)
    onnx.checker.check_model(graph, full_check=True)
    for end in (*graph.graph.input, *graph.graph.output):
        names = [dim.dim_param for dim in end.type.tensor_type.shape.dim]
        assert (names[0], *names[2:]) == ("batch", "height", "width")
    model = load_model(exported)
    assert model.config == SMALL
    assert (model.checkpoint.licence, model.checkpoint.facts) == ("free", {"seed": 0})


def test_a_file_in_fp16_is_close_and_half_as_large(model, exported, tmp_path, rng):
    path = tmp_path / "half.onnx"
    export_onnx(path, model, "fp16")
    half = load_model(path)
    assert half.dtype == torch.float16
    image = torch.from_numpy(rng.random((1, 3, 96, 64), np.float32))
    with torch.inference_mode():
        expected = model(image)
    for mine, theirs in zip(half(image), expected, strict=True):
        assert mine.dtype == torch.float32
        assert 0 < (mine - theirs).abs().max() < 0.02
    weights = sum(p.numel() for p in model.parameters())
    assert exported.stat().st_size - path.stat().st_size > 1.8 * weights
    assert "fp16" in str(Predictor(half))


def test_a_predictor_runs_the_file_like_the_network(model, onnx_model, photo, rng):
    ours, theirs = Predictor(onnx_model), Predictor(copy.deepcopy(model))
    assert ours.short_side == 64
    images = [photo, rng.integers(0, 256, (100, 70, 3), np.uint8), photo]
    for mine, other in zip(ours.predict_batch(images), theirs.predict_batch(images), strict=True):
        assert mine.alpha.shape == other.alpha.shape
        # A pixel at the border of two trimap regions may fall to either side.
        assert np.abs(mine.alpha - other.alpha).mean() < 1e-4
    batch = torch.from_numpy(rng.random((2, 3, 60, 80), np.float32))
    difference = ours.predict_tensor(batch) - theirs.predict_tensor(batch)
    assert difference.abs().mean() < 1e-4


def test_a_predictor_names_onnxruntime_and_its_settings_name_the_file(onnx_model, model, tmp_path):
    predictor = Predictor(onnx_model)
    assert str(predictor).startswith("onnxruntime on cpu (")
    assert predictor.settings == Predictor(load_model(onnx_model._path)).settings
    assert predictor.settings != Predictor(copy.deepcopy(model)).settings
    assert predictor.settings != Predictor(onnx_model, short_side=96).settings


def test_the_folder_job_takes_the_file_as_a_checkpoint(exported, photo, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.png", photo)
    call = [str(tmp_path / "in"), str(tmp_path / "out"), "--checkpoint", str(exported)]
    assert eval_image_folder.main([*call, "--output", "alpha"]) == 0
    assert "onnxruntime on cpu" in capsys.readouterr().err
    outputs = read_image(tmp_path / "out/alpha/a.png").pixels
    expected = Predictor(load_model(exported)).predict(photo).alpha
    assert np.abs(outputs[..., 0] / 255 - expected).max() <= 0.51 / 255


def test_running_out_of_memory_halves_the_batch(onnx_model, photo, monkeypatch):
    batches = []

    class Session:
        def run(self, names, feed):
            batches.append(len(feed["image"]))
            if len(feed["image"]) > 1:
                raise Exception("BFCArena::AllocateRawInternal Failed to allocate memory for 9 B")
            return real.run(names, feed)

    real = onnx_model._session
    monkeypatch.setattr(onnx_model, "_session", Session())
    assert len(Predictor(onnx_model).predict_batch([photo] * 2)) == 2
    assert batches == [2, 1, 1]


class WrongInside(PortraitMatting):
    """Whose graph holds at one size only."""

    def forward(self, image):
        outputs = super().forward(image)
        if not torch.jit.is_tracing():
            return outputs
        return Prediction(interpolate(outputs.alpha, size=(64, 96)), outputs.trimap_logits)


class WrongValues(PortraitMatting):
    def forward(self, image):
        outputs = super().forward(image)
        if not torch.jit.is_tracing():
            return outputs
        return Prediction(outputs.alpha + 0.01, outputs.trimap_logits)


@pytest.mark.parametrize(("kind", "message"), [(WrongInside, "by 1"), (WrongValues, "by 0.01")])
def test_a_file_that_fails_its_check_does_not_replace_an_earlier_one(tmp_path, kind, message):
    config = {**vars(SMALL), "depths": (1, 1, 1, 1)}
    wrong = kind(ModelConfig(**config)).eval()
    wrong.checkpoint = INFO
    before = tmp_path / "x.onnx"
    before.write_bytes(b"an earlier one")
    with pytest.raises(PortraitmattingError, match=f"another alpha.*{message}"):
        export_onnx(before, wrong, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert before.read_bytes() == b"an earlier one"


def test_wrong_calls_are_refused_before_any_work(model, tmp_path):
    there = tmp_path / "there.onnx"
    there.touch()
    for message, call in {
        "ends in .onnx": (tmp_path / "x.pt", model),
        "--overwrite": (there, model),
        "in fp32, fp16": (tmp_path / "x.onnx", model, "int8"),
        "no checkpoint": (tmp_path / "x.onnx", PortraitMatting(SMALL)),
        "cannot be written": (tmp_path / "no" / "x.onnx", model),
    }.items():
        with pytest.raises(PortraitmattingError, match=message):
            export_onnx(*call)
    assert list(tmp_path.iterdir()) == [there]


def foreign(path: Path) -> None:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(made, path)


def unlabelled(path: Path, exported: Path, text: str | None = None) -> None:
    graph = onnx.load(exported)
    onnx.helper.set_model_props(graph, {"portraitmatting": text} if text else {})
    onnx.save(graph, path)


def test_other_files_are_refused(exported, tmp_path):
    path = tmp_path / "x.onnx"
    for write, message in [
        (lambda: None, "no such file"),
        (lambda: path.write_bytes(b""), "not an ONNX file"),
        (lambda: path.write_bytes(b"<html>not found</html>"), "not an ONNX file"),
        (lambda: path.write_bytes(exported.read_bytes()[:100_000]), "damaged"),
        (lambda: foreign(path), "takes x and gives y"),
        (lambda: unlabelled(path, exported), "not of `portraitmatting export`"),
        (lambda: unlabelled(path, exported, "{}"), "cannot be understood"),
    ]:
        write()
        with pytest.raises(PortraitmattingError, match=message) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_an_onnx_file_cannot_be_loaded_as_a_network(exported):
    with pytest.raises(PortraitmattingError, match="holds no PyTorch weights"):
        load_network(exported)


def test_other_sizes_are_refused_as_by_the_network(onnx_model):
    with pytest.raises(PortraitmattingError, match="pad or resize to 256x320"):
        onnx_model(torch.zeros(1, 3, 250, 320))


def test_device_and_precision_are_those_of_the_file(onnx_model, exported):
    Predictor(onnx_model, precision="fp32", device="cpu")
    Predictor(onnx_model, precision="auto", device="auto")
    with pytest.raises(PortraitmattingError, match="computes in fp32"):
        Predictor(onnx_model, precision="bf16")
    with pytest.raises(PortraitmattingError, match="chosen as it is loaded"):
        Predictor(onnx_model, device="cuda")
    with pytest.raises(PortraitmattingError, match="unknown device 'gpu'"):
        load_model(exported, "gpu")


CPU, CUDA, DML = "CPUExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider"
COREML = "CoreMLExecutionProvider"


@pytest.mark.parametrize(
    ("device", "available", "name", "first"),
    [
        ("auto", [CPU], "cpu", CPU),
        ("auto", [COREML, CPU], "cpu", CPU),
        ("auto", [CUDA, CPU], "cuda", CUDA),
        ("auto", [DML, CPU], "directml", DML),
        ("cpu", [CUDA, CPU], "cpu", CPU),
        ("cuda:1", [CUDA, CPU], "cuda:1", (CUDA, {"device_id": "1"})),
        ("coreml", [COREML, CPU], "coreml", COREML),
    ],
)
def test_devices_by_name(device, available, name, first):
    chosen, providers = choose_providers(device, available)
    assert (chosen, providers[0], providers[-1]) == (name, first, CPU)


@pytest.mark.parametrize("device", ["mps", "", "cuda:x", "cpu:1", "coreml:0"])
def test_other_devices_are_unknown(device):
    with pytest.raises(PortraitmattingError, match="unknown device"):
        choose_providers(device, [CPU, CUDA, COREML])


def test_a_device_that_this_onnxruntime_lacks_is_an_error():
    with pytest.raises(PortraitmattingError, match="has no DmlExecutionProvider"):
        choose_providers("directml", [CPU])


class Runtime:
    """An onnxruntime that was built for CUDA, and falls back to the CPU as the real one does."""

    def __init__(self):
        import onnxruntime

        self.SessionOptions = onnxruntime.SessionOptions
        self._session = onnxruntime.InferenceSession

    def get_available_providers(self):
        return [CUDA, CPU]

    def InferenceSession(self, path, options, providers):
        return self._session(path, options, providers=[CPU])


def test_a_gpu_that_does_not_start_is_reported(exported, monkeypatch):
    monkeypatch.setattr("portraitmatting.onnx_model._onnxruntime", Runtime)
    with pytest.raises(PortraitmattingError, match="could not start its CUDA"):
        load_model(exported, "cuda")
    assert "cpu" in str(load_model(exported, "auto"))


class LostLibrary(Runtime):
    """One whose fallback is printed, as onnxruntime does it."""

    def InferenceSession(self, path, options, providers):
        if CUDA in str(providers[0]):
            assert providers[0][1]["cudnn_conv_algo_search"] == "HEURISTIC"
            print("EP Error libcublas.so.12: cannot open shared object file when using CUDA")
        return super().InferenceSession(path, options, providers)


def test_the_reason_why_a_gpu_does_not_start_is_reported(exported, monkeypatch, capsys, caplog):
    monkeypatch.setattr("portraitmatting.onnx_model._onnxruntime", LostLibrary)
    with pytest.raises(PortraitmattingError, match=r"could not start its CUDA.*libcublas\.so\.12"):
        load_model(exported, "cuda")
    assert load_model(exported, "auto").device.type == "cpu"
    assert "libcublas.so.12" in caplog.text and "using the CPU" in caplog.text
    assert capsys.readouterr().out == ""


def test_bound_tensors_give_the_same_as_copies(onnx_model, rng):
    image = torch.from_numpy(rng.random((2, 3, 64, 96), np.float32))
    image = image.contiguous(memory_format=torch.channels_last)
    for bound, copied in zip(onnx_model._run_bound(image), onnx_model(image), strict=True):
        assert torch.equal(bound, copied)


def test_a_gpu_has_its_number(monkeypatch):
    """In PyTorch "cuda" may be any GPU, in onnxruntime it is the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices = [str(_device_of_tensors(name)) for name in ("cuda", "cuda:1", "directml:1", "cpu")]
    assert devices == ["cuda:0", "cuda:1", "cpu", "cpu"]


def test_a_pickled_model_runs_on_another_machine(onnx_model, exported, tmp_path):
    """As a whole: the file need not be there."""
    shipped = pickle.dumps(onnx_model).replace(b"small.onnx", b"other.onnx")
    twin = pickle.loads(shipped)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(twin(image).alpha, onnx_model(image).alpha)
    assert (twin.fingerprint, twin.checkpoint) == (onnx_model.fingerprint, onnx_model.checkpoint)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_an_error_instead_of_hanging(onnx_model, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(PortraitmattingError, match="forked"):
        onnx_model(torch.rand(1, 3, 64, 64))


def test_weights_that_overflow_in_fp16_are_not_exported(model, tmp_path):
    """By values inside, which onnxruntime on a CPU computes in fp32."""
    large = copy.deepcopy(model)
    first, *_, last = [m for m in large.alpha_head.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        first.weight.mul_(3e4 / first.weight.abs().max())
        last.weight.mul_(1e-6)
    with pytest.raises(PortraitmattingError, match="overflow in fp16"):
        export_onnx(tmp_path / "large.onnx", large, "fp16")
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_or_onnxruntime_one_line_says_what_to_install(exported, model, monkeypatch):
    for module in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    message = r'pip install -e "\.\[onnx\]"'
    with pytest.raises(PortraitmattingError, match=message):
        load_model(exported)
    with pytest.raises(PortraitmattingError, match=message):
        export_onnx(exported.with_name("new.onnx"), model)
    assert not exported.with_name("new.onnx").exists()


def test_the_predictor_does_not_import_onnx():
    code = (
        "import sys, portraitmatting.predictor as p; "
        "assert not {'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_writes_and_checks_the_file_and_stores_its_source(
    model, tmp_path, monkeypatch, capsys
):
    from portraitmatting.commands import export

    source = tmp_path / "small.safetensors"
    save_checkpoint(source, model, INFO)
    out = tmp_path / "small.onnx"
    call = ["export", str(out), "--checkpoint", str(source)]
    monkeypatch.setattr(sys, "argv", call)
    assert export.main() == 0
    assert "proven at 1x3x224x160 and 3x3x32x96" in capsys.readouterr().out
    facts = load_model(out).checkpoint.facts
    assert facts["exported_from"] == "small.safetensors"
    assert len(facts["exported_from_sha256"]) == 64
