"""Checkpoints: what loads, what is refused, and the error messages."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import ROOT
from golden_weights import image
from portraitmatting import PortraitMatting, load_model
from portraitmatting.checkpoint.format import (
    AUTHOR,
    CheckpointInfo,
    from_author_keys,
    metadata_text,
    save_checkpoint,
)
from portraitmatting.checkpoint.load import convert, describe, verify
from portraitmatting.checkpoint.registry import FOLDER_VARIABLE, SUMS, known_sums, sha256
from portraitmatting.errors import CheckpointError

INFO = CheckpointInfo("made for a test", "none", 64, facts={"data": "none, naïve"})


@pytest.fixture
def ours(tmp_path, tiny_model):
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, tiny_model, INFO)
    return path


def test_round_trip_keeps_weights_config_and_info(ours, tiny_model):
    model = load_model(ours)
    assert model.config == tiny_model.config
    assert model.checkpoint == INFO
    assert not model.training
    for key, value in tiny_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_same_weights_make_the_same_file(ours, tmp_path, tiny_model):
    save_checkpoint(tmp_path / "again.safetensors", tiny_model, INFO)
    assert sha256(ours) == sha256(tmp_path / "again.safetensors")


def test_half_precision_storage_loads_as_fp32(tmp_path, tiny_model):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, tiny_model, INFO, storage="fp16")
    model = load_model(path)
    for key, value in model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(value, tiny_model.state_dict()[key], atol=1e-3, rtol=1e-3)


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "ema": lambda state: {"ema": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}},
    "nested": lambda state: {"model": {"state_dict": state}},
    "prefixed": lambda state: {f"module.{k}": v for k, v in state.items()},
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_authors_file_loads_in_any_wrapping(tmp_path, author_state, golden_model, wrapping):
    path = tmp_path / "author.ckpt"
    torch.save(WRAPPINGS[wrapping](author_state), path)
    model = load_model(path)
    assert model.checkpoint == AUTHOR
    if wrapping != "half":
        with torch.inference_mode():
            assert torch.equal(model(image(32, 32)).alpha, golden_model(image(32, 32)).alpha)


def test_averaged_weights_are_preferred_to_plain_ones(tmp_path, author_state):
    averaged = {k: v + 1 if v.is_floating_point() else v for k, v in author_state.items()}
    torch.save({"model": author_state, "ema": averaged}, tmp_path / "both.pth")
    loaded = load_model(tmp_path / "both.pth").state_dict()
    key = "encoder.stem.0.weight"
    assert torch.equal(loaded[key], averaged["start_conv.0.weight"])


def test_an_old_style_pickle_loads(tmp_path, author_state):
    path = tmp_path / "old.pth"
    torch.save(author_state, path, _use_new_zipfile_serialization=False)
    assert load_model(path).checkpoint == AUTHOR


def test_the_authors_keys_in_safetensors_load(tmp_path, author_state):
    path = tmp_path / "author.safetensors"
    save_file(author_state, path)
    assert load_model(path).checkpoint == AUTHOR


def test_every_author_key_is_translated_or_dropped(author_state):
    ours = from_author_keys(author_state)
    assert ours.keys() == PortraitMatting().state_dict().keys()
    dropped = [key for key in author_state if key.endswith("relative_position_index")]
    assert len(ours) + len(dropped) == len(author_state) == 416


class Malicious:
    def __reduce__(self):
        return print, ("this code must never run",)


def spoil_html(path):
    path.write_bytes(b"\n<!DOCTYPE html><html>quota exceeded</html>")


def spoil_lfs(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_noise(path):
    path.write_bytes(bytes(range(1, 200)))


def spoil_truncated_pickle(path):
    torch.save({"a": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:-900])


def spoil_truncated_old_pickle(path):
    torch.save({"a": torch.rand(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-900])


def spoil_truncated_safetensors(path):
    save_file({"a": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:-900])


def spoil_code(path):
    torch.save({"state_dict": {"start_conv.0.weight": Malicious()}}, path)


def spoil_code_in_plain_pickle(path):
    path.write_bytes(pickle.dumps(Malicious()))


def spoil_other_network(path):
    torch.save({"layer.weight": torch.rand(2, 2)}, path)


def spoil_no_weights(path):
    torch.save({"epoch": 3, "args": "x"}, path)


def spoil_list(path):
    torch.save([1, 2], path)


def spoil_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_html, "web page"),
        (spoil_lfs, "git lfs pull"),
        (spoil_empty, "empty"),
        (spoil_noise, "neither safetensors nor"),
        (spoil_truncated_pickle, "damaged or truncated"),
        (spoil_truncated_old_pickle, "damaged or truncated"),
        (spoil_truncated_safetensors, "damaged or truncated"),
        (spoil_code, "could run code"),
        (spoil_code_in_plain_pickle, "could run code"),
        (spoil_other_network, "not a Portraitmatting checkpoint"),
        (spoil_no_weights, "no weights found"),
        (spoil_list, "no weights found"),
        (spoil_folder, "a folder"),
        (lambda path: None, "no such file"),
    ],
)
def test_the_error_for_other_files_says_what_they_are(tmp_path, capfd, spoil, message):
    path = tmp_path / "weights.ckpt"
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "must never run" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv5.0.bias"), r"1 tensors missing \(alpha_head.coarse.0.bias\)"),
        (lambda s: s.update({"extra.weight": torch.ones(1)}), "unknown key 'extra.weight'"),
        (
            lambda s: s.update({"ppm.comp.bias": torch.ones(5)}),
            r"ppm.reduce.bias \(5,\) instead of \(256,\)",
        ),
        (lambda s: s["convo.4.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_the_error_for_weights_that_do_not_fit_names_them(tmp_path, author_state, change, message):
    state = {key: value.clone() for key, value in author_state.items()}
    change(state)
    torch.save(state, tmp_path / "author.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "author.pth")


@pytest.mark.parametrize("text", ["{", '{"config": {"unheard": 1}}', "[]", '{"origin": "x"}'])
def test_metadata_of_another_version_is_an_error(tmp_path, tiny_model, text):
    save_file(tiny_model.state_dict(), tmp_path / "x.safetensors", {"portraitmatting": text})
    with pytest.raises(CheckpointError, match="metadata cannot be understood"):
        load_model(tmp_path / "x.safetensors")


def test_weights_of_unusable_dtypes_are_refused(tmp_path, tiny_model):
    state = tiny_model.state_dict()
    text = metadata_text(tiny_model.config, INFO)

    def saved(kind):
        path = tmp_path / "x.safetensors"
        stored = {k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}
        save_file(stored, path, {"portraitmatting": text})
        return path

    for kind in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn):
        name = str(kind).removeprefix("torch.")
        with pytest.raises(CheckpointError, match=rf"of another type \(.* {name}"):
            load_model(saved(kind))
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert load_model(saved(kind)).checkpoint == INFO


STRANGE = {
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "too large for fp32": lambda value: value.double() + 1e300,
    "on no device": lambda value: value.to("meta"),
    "infinite": lambda value: value + float("inf"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_tensors_in_a_pickle_are_refused(tmp_path, author_state, kind):
    key = "conv5.0.bias"
    torch.save(author_state | {key: STRANGE[kind](author_state[key])}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"alpha_head\.coarse\.0\.bias"):
        load_model(tmp_path / "x.pth")


def test_a_pickle_damaged_at_any_byte_is_an_error_of_one_line(tmp_path, rng):
    """Those of the older kind, whose every byte steers the unpickler."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.rand(3), "n": 1}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    broken = [whole[:10], b"\x80\x02.", b"\x80", b"\x80\x02}q\x00q\x00."]
    for at in rng.choice(len(whole), 150, replace=False):
        broken.append(whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :])
        broken.append(whole[:at])
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_dict_that_contains_itself_is_refused(tmp_path):
    content: dict = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no weights found"):
        load_model(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"depths": 3},
        {"depths": [1, 2]},
        {"embed_dim": "8"},
        {"embed_dim": -8},
        {"embed_dim": 8.5},
        {"window": True},
        {"heads": [3, 3, 3, 3]},
        {"drop_path": float("nan")},
        {"mlp_ratio": [2.0]},
    ],
    ids=str,
)
def test_the_error_for_an_impossible_configuration_names_it(tmp_path, tiny_model, change):
    described = json.loads(metadata_text(tiny_model.config, INFO))
    described["config"] |= change
    texts = {"portraitmatting": json.dumps(described)}
    save_file(tiny_model.state_dict(), tmp_path / "x.safetensors", texts)
    with pytest.raises(CheckpointError, match=r"metadata|configuration|does not fit"):
        load_model(tmp_path / "x.safetensors")


def test_loading_and_predicting_after_a_fork(ours):
    """Neither loading nor making a Predictor starts threads that a forked child would wait for."""
    code = (
        "import multiprocessing, sys\n"
        "import numpy as np, torch\n"
        "from portraitmatting import Predictor, PortraitmattingError, load_model\n"
        "torch.set_num_threads(2)\n"
        "predictor = Predictor(load_model(sys.argv[1]))\n"
        "image = np.zeros((640, 640, 3), np.uint8)\n"
        "def child():\n"
        "    try: predictor.predict(image)\n"
        "    except PortraitmattingError as error: sys.exit(str(error))\n"
        "def forked():\n"
        "    process = multiprocessing.get_context('fork').Process(target=child)\n"
        "    process.start(); process.join(60)\n"
        "    return process.exitcode\n"
        "codes = [forked()]\n"
        "predictor.predict(image)\n"
        "print(codes + [forked()])"
    )
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    done = subprocess.run(
        [sys.executable, "-c", code, str(ours)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "[0, 1]\n"
    assert "forked" in done.stderr and "spawn" in done.stderr and "Traceback" not in done.stderr


def test_names_are_looked_up_in_the_folder_of_the_variable_and_verified(ours, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(ours.parent))
    assert load_model("tiny").checkpoint == INFO
    table = ours.parent / SUMS
    table.write_text(f"{sha256(ours)}  tiny.safetensors\n")
    load_model("tiny")
    table.write_text(f"{'0' * 64}  tiny.safetensors\n")
    with pytest.raises(CheckpointError, match="damaged or another version"):
        load_model("tiny")
    with pytest.raises(CheckpointError, match=r"no checkpoint named 'large' .*there: tiny"):
        load_model("large")
    for spoil, message in ((spoil_lfs, "git lfs pull"), (spoil_html, "web page")):
        spoil(ours)
        with pytest.raises(CheckpointError, match=message):
            load_model("tiny")


def test_safetensors_whose_length_begins_like_a_pickle_are_safetensors(tmp_path, tiny_model):
    path = tmp_path / "tiny.safetensors"
    origins = ("x" * length for length in range(0, 257, 8))  # headers come in steps of 8 bytes
    for origin in origins:
        save_checkpoint(path, tiny_model, replace(INFO, origin=origin))
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of such a length was made")
    assert load_model(path).checkpoint.origin == origin


def test_writing_is_atomic(ours, tiny_model, monkeypatch):
    before = ours.read_bytes()

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(ours, tiny_model, INFO)
    assert ours.read_bytes() == before
    assert list(ours.parent.iterdir()) == [ours]


def test_convert_info_verify(tmp_path, author_state, golden_model):
    source, target = tmp_path / "author.pth", tmp_path / "ours.safetensors"
    torch.save({"state_dict": author_state}, source)
    facts = {
        "licence": "L",
        "working_short_side": 320,
        "made": "today",
        "start": "scratch",
        "data": "D",
    }
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    info = convert(source, target, storage="fp32", facts=tmp_path / "facts.json")
    assert info == CheckpointInfo("today. Start: scratch", "L", 320, facts={"data": "D"})
    assert load_model(target).checkpoint == info
    with torch.inference_mode():
        assert torch.equal(
            load_model(target)(image(32, 32)).alpha, golden_model(image(32, 32)).alpha
        )
    with pytest.raises(CheckpointError, match="--overwrite"):
        convert(source, target)
    described = describe(target)
    assert described["parameters"] == "35,439,340" and "not listed" in described["sha256"]
    assert (described["stored as"], described["data"]) == ("float32", "D")
    assert "good" in verify(str(target))
    target.write_bytes(target.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated"):
        verify(str(target))


def test_facts_must_belong_to_the_file(tmp_path, ours):
    facts = {"licence": "L", "working_short_side": 320, "made": "m", "start": "s", "sha256": "0"}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="not the one that"):
        convert(ours, tmp_path / "new.safetensors", facts=tmp_path / "facts.json")
    assert not (tmp_path / "new.safetensors").exists()


def test_errors_of_the_command_are_one_line(tmp_path):
    call = [
        sys.executable,
        "-m",
        "portraitmatting",
        "checkpoint",
        "info",
        str(tmp_path / "none.pth"),
    ]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none.pth'}: no such file\n"


def test_the_default_checkpoint_is_listed_and_described():
    path = ROOT / "checkpoints" / "portraitmatting_swint.safetensors"
    assert known_sums(path.parent)[path.name] == sha256(path)
    assert path.stat().st_size < 75e6
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["portraitmatting"])
    assert {"config", "working_short_side", "precision", "origin", "licence"} <= described.keys()
    model = load_model()
    assert model.checkpoint is not None
    assert model.checkpoint.working_short_side % 32 == 0
    assert replace(model.checkpoint, facts={}).licence.startswith("academic use only")
