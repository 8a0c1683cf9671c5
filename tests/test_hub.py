"""Folders and repositories of the Hugging Face Hub, and torch.hub, without internet."""

import json
from dataclasses import asdict

import pytest
import torch

from conftest import ROOT
from portraitmatting import ModelConfig, PortraitMatting, load_model
from portraitmatting.checkpoint.format import CheckpointInfo
from portraitmatting.checkpoint.load import describe
from portraitmatting.errors import CheckpointError

INFO = CheckpointInfo(
    "made for a test, naïvely", "none at all", 96, "fp32", {"data": "none", "score": 0.25}
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def ask(*_args, **_kwargs):
        raise AssertionError("asked the hub")

    monkeypatch.setattr("portraitmatting.hub.hf_hub_download", ask)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", ask)


def equal(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(ours[k].equal(theirs[k]) for k in ours)


@pytest.mark.parametrize("halves", [False, True])
def test_a_saved_folder_loads_with_exactly_the_same_weights_and_information(
    tmp_path, tiny_model, halves
):
    if halves:
        tiny_model.half().float()
    tiny_model.checkpoint = INFO
    tiny_model.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    for read in (
        PortraitMatting.from_pretrained(tmp_path / "mine"),
        load_model(tmp_path / "mine" / "model.safetensors"),
    ):
        assert type(read) is PortraitMatting and not read.training
        assert read.config == ModelConfig.tiny()
        assert read.checkpoint == INFO
        assert equal(read, tiny_model)
    stored = describe(tmp_path / "mine" / "model.safetensors")["stored as"]
    assert stored == ("float16" if halves else "float32")


def test_the_hub_can_read_the_configuration_and_the_model_card(tmp_path, tiny_model):
    from huggingface_hub import ModelCard

    tiny_model.checkpoint = INFO
    tiny_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config.pop("checkpoint") == asdict(INFO)
    assert config == json.loads(json.dumps(asdict(ModelConfig.tiny())))
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("other", "portraitmatting")
    for message in ("| licence | none at all |", "| working short side | 96 |", "| score | 0.25 |"):
        assert message in card.text


def test_only_the_checkpoint_is_read(tmp_path, tiny_model):
    tiny_model.checkpoint = INFO
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"embed_dim": 96}')
    assert PortraitMatting.from_pretrained(tmp_path).config == ModelConfig.tiny()
    (tmp_path / "config.json").unlink()
    assert PortraitMatting.from_pretrained(tmp_path, device="cpu").checkpoint == INFO


def test_a_model_that_cannot_be_saved_or_read_is_an_error_of_one_line(tmp_path, tiny_model):
    with pytest.raises(CheckpointError, match="nothing is known of these weights"):
        tiny_model.save_pretrained(tmp_path / "fresh")
    assert not list((tmp_path / "fresh").iterdir())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        PortraitMatting.from_pretrained(tmp_path / "fresh")


def test_a_name_is_downloaded_from_the_hub(tmp_path, tiny_model, monkeypatch):
    tiny_model.checkpoint = INFO
    tiny_model.save_pretrained(tmp_path)
    asked = []

    def download(repo_id, filename, **place):
        asked.append((repo_id, filename, place["revision"]))
        return str(tmp_path / filename)

    def configuration(repo_id, filename, **_place):
        return str(tmp_path / filename)

    monkeypatch.setattr("portraitmatting.hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", configuration)
    model = PortraitMatting.from_pretrained("somebody/matting", revision="v2")
    assert asked == [("somebody/matting", "model.safetensors", "v2")]
    assert equal(model, tiny_model)


def test_torch_hub_loads_a_checkpoint(tmp_path, tiny_model):
    tiny_model.checkpoint = INFO
    tiny_model.save_pretrained(tmp_path)
    path = str(tmp_path / "model.safetensors")
    repository = str(ROOT)
    model = torch.hub.load(repository, "portraitmatting", source="local", checkpoint=path)
    assert equal(model, tiny_model)
