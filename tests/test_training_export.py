"""From a run to a checkpoint, int8 storage included, and starting a run from what there is."""

import json
import shutil

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from portraitmatting.checkpoint.format import (
    CheckpointInfo,
    dequantise_int8,
    quantise_int8,
    save_checkpoint,
)
from portraitmatting.checkpoint.load import load_model
from portraitmatting.commands.train import main
from portraitmatting.errors import CheckpointError, PortraitmattingError
from portraitmatting.modeling.model import ModelConfig, PortraitMatting
from portraitmatting.training.config import config_from_dict
from portraitmatting.training.init_weights import initial_model
from portraitmatting.training.loop import train
from portraitmatting.training.run_directory import RunDirectory, export_run
from training_scenes import photo_folder, recipe, tiny_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps with a validation after each."""
    root = tmp_path_factory.mktemp("export")
    photos = photo_folder(root / "photos")
    start = str(tiny_checkpoint(root / "tiny.safetensors"))
    config = config_from_dict(
        recipe(photos, init_from=start, steps=2, validation=str(photos), validate_every=1)
        | {"working_short_side": 96, "save_every": 2}
    )
    train(root / "run", config)
    return root / "run"


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_checkpoint_holds_the_average_and_says_how_it_was_made(finished, tmp_path, which):
    out = tmp_path / "out.safetensors"
    assert main(["export", str(finished), str(out), "--which", which, "--storage", "fp32"]) == 0
    model = load_model(out)
    directory = RunDirectory(finished)
    state = directory.latest() if which == "last" else directory.read(finished / "best.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["ema"][name])
    info = model.checkpoint
    assert info.working_short_side == 96 and info.licence == "none"
    assert "tiny.safetensors" in info.origin and "made for a test" in info.origin
    (data,) = info.facts["data"]
    assert (data["kind"], data["name"], data["count"]) == ("photos", "photos", 4)
    assert info.facts["recipe"]["steps"] == 2
    assert info.facts["step"] == state["step"]
    assert set(info.facts["scores"]) == {"MAD", "MSE", "SAD", "IoU"}


def test_others_may_read_the_checkpoint_as_far_as_the_umask_says(finished, tmp_path):
    (tmp_path / "plain").touch()
    out = export_run(finished, tmp_path / "out.safetensors")
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_no_path_of_this_machine_leaves_with_the_checkpoint(finished, tmp_path):
    export_run(finished, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        text = json.dumps(file.metadata())
    assert str(finished.parent) not in text


def test_a_run_is_exported_where_its_data_and_start_are_not(tmp_path):
    photos = photo_folder(tmp_path / "photos")
    start = tiny_checkpoint(tmp_path / "tiny.safetensors")
    values = recipe(photos, init_from=str(start), steps=1, validation=str(photos))
    train(tmp_path / "run", config_from_dict(values))
    shutil.rmtree(photos)
    start.unlink()
    export_run(tmp_path / "run", tmp_path / "o.safetensors")
    (data,) = load_model(tmp_path / "o.safetensors").checkpoint.facts["data"]
    assert data["count"] == 4


def test_what_cannot_be_exported_is_one_line(tmp_path):
    photos = photo_folder(tmp_path / "photos")
    start = str(tiny_checkpoint(tmp_path / "tiny.safetensors"))
    train(tmp_path / "run", config_from_dict(recipe(photos, init_from=start, steps=1)))
    with pytest.raises(PortraitmattingError, match=r"no best\.pt.*--which last"):
        export_run(tmp_path / "run", tmp_path / "o.safetensors")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(PortraitmattingError, match="no checkpoint yet"):
        export_run(tmp_path / "run", tmp_path / "o.safetensors", which="last")


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(64, 130),
    spread=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 100),
)
def test_a_quantised_weight_is_off_by_at_most_half_a_code(rows, columns, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, 3, 3, generator=generator) * spread
    weight[0] = 0
    stored = quantise_int8({"w": weight, "b": torch.ones(5)})
    back = dequantise_int8(stored)
    if weight.numel() >= 4096:
        assert stored["w.int8"].dtype == torch.int8 and "w" not in stored
    step = weight.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1) / 127
    # fp16, which small tensors get, is finer than 8 bits except near its smallest numbers.
    assert ((back["w"].float() - weight).abs() <= 0.501 * step + 6e-8).all()
    assert back.keys() == {"w", "b"} and (back["b"] == 1).all()


def test_quantised_storage_is_a_quarter_of_fp32_and_plain_states_pass_through():
    state = PortraitMatting().state_dict()
    size = {
        name: sum(v.numel() * v.element_size() for v in values.values())
        for name, values in (("fp32", state), ("int8", quantise_int8(state)))
    }
    assert size["int8"] < 0.265 * size["fp32"]
    assert dequantise_int8(state).keys() == state.keys()
    assert dequantise_int8(quantise_int8(state)).keys() == state.keys()


def test_a_checkpoint_in_int8_loads_as_the_dequantised_weights(tmp_path):
    model = PortraitMatting(ModelConfig(depths=(1, 1, 1, 1), decoder_depth=1)).eval()
    info = CheckpointInfo(origin="made for a test", licence="none", working_short_side=64)
    save_checkpoint(tmp_path / "int8.safetensors", model, info, storage="int8")
    save_checkpoint(tmp_path / "fp16.safetensors", model, info, storage="fp16")
    sizes = [(tmp_path / f"{s}.safetensors").stat().st_size for s in ("int8", "fp16")]
    assert sizes[0] < 0.54 * sizes[1]
    loaded = load_model(tmp_path / "int8.safetensors")
    expected = dequantise_int8(quantise_int8(model.state_dict()))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name].float())


def test_codes_without_their_scales_are_refused():
    stored = quantise_int8({"w": torch.randn(64, 64)})
    for broken in ({"w.int8": stored["w.int8"]}, stored | {"w.scale": torch.ones(3)}):
        with pytest.raises(CheckpointError, match=r"w\.int8 lacks a scale for each of its 64"):
            dequantise_int8(broken)


def test_timms_weights_start_the_encoder(tmp_path):
    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    save_file(swin.state_dict(), tmp_path / "swin.safetensors")
    model = initial_model(str(tmp_path / "swin.safetensors"))
    name = "attn.qkv.weight"
    ours = model.encoder.stages[2][5].state_dict()[name]
    assert torch.equal(ours, swin.layers[2].blocks[5].state_dict()[name])
    assert torch.equal(
        model.encoder.merges[0].reduction.weight, swin.layers[1].downsample.reduction.weight
    )


def test_an_unknown_start_says_what_there_is():
    with pytest.raises(
        PortraitmattingError, match="expected scratch, default, imagenet or the path"
    ):
        initial_model("resnet")
