"""The recipes run as they stand, on data beside the project that is not part of it."""

from pathlib import Path

import pytest

from portraitmatting.checkpoint.load import load_model
from portraitmatting.commands.train import main
from portraitmatting.training.config import config_from_dict, read_config
from training_scenes import photo_folder

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize("name", ["default", "finetune"])
def test_a_recipe_is_understood_and_says_what_its_page_does(name):
    config = config_from_dict(read_config(RECIPES / f"{name}.toml"))
    assert sum(source.weight for source in config.data) == pytest.approx(1)
    assert config.short_side == 384 and config.decay_steps
    starts = [start for start, *_ in config.sizes]
    assert max(starts) <= config.steps - config.decay_steps


@pytest.mark.parametrize("name", ["default", "finetune"])
def test_a_recipe_runs_and_its_weights_load(name, tmp_path):
    path = RECIPES / f"{name}.toml"
    folders = [source.folder for source in config_from_dict(read_config(path)).data]
    if not all(Path(folder).is_dir() for folder in folders):
        pytest.skip("no ../shared/data here")
    few = ["--steps", "2", "--coarse-steps", "1", "--decay-steps", "1", "--batch-size", "2"]
    few += ["--grad-accum-steps", "1"]
    few += ["--validation", str(photo_folder(tmp_path / "val", 1)), "--working-short-side", "64"]
    run = tmp_path / "run"
    assert main(["run", str(run), "--config", str(path), *few]) == 0
    assert main(["export", str(run), str(tmp_path / "out.safetensors")]) == 0
    info = load_model(tmp_path / "out.safetensors").checkpoint
    assert info.facts["data"][0]["count"] > 0 and "trained from 'default' by 2" in info.origin
