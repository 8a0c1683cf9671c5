"""Recipes, schedules, parts and the average."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from portraitmatting.commands.train import _changes, parser
from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import ModelConfig, PortraitMatting
from portraitmatting.training.config import (
    TrainConfig,
    config_from_dict,
    config_to_dict,
    read_config,
)
from portraitmatting.training.deep_supervision import STAGES, DeepSupervision
from portraitmatting.training.ema import MovingAverage
from portraitmatting.training.parts import PARTS, freeze, parameter_groups, part_of
from portraitmatting.training.schedule import ema_decay, learning_rate, working_size
from training_scenes import recipe, write_toml

TINY = PortraitMatting(ModelConfig.tiny())


def test_a_recipe_survives_json(tmp_path):
    config = config_from_dict(recipe(tmp_path, rates={"stem": 0.5}, losses={"whole": 2}))
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    assert config.losses.whole == 2.0 and config.rates == {"stem": 0.5}


def test_folders_in_a_file_are_relative_to_it(tmp_path):
    values = {"data": [{"kind": "photos", "folder": "mine"}], "validation": "../val", "steps": 7}
    read = config_from_dict(read_config(write_toml(tmp_path / "r.toml", values)))
    assert read.data[0].folder == str(tmp_path / "mine") and read.steps == 7
    assert read.validation == str(tmp_path / "../val")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"step": 3}, "unknown setting step: expected one of data, start"),
        ({"augment": {"flop": 1}}, r"unknown setting augment\.flop"),
        ({"steps": 1.5}, "steps: expected int, got 1.5"),
        ({"steps": 0}, "steps 0: expected 1 or more"),
        ({"tensorboard": 1}, "tensorboard: expected bool, got 1"),
        ({"sizes": [[0.0, 100]]}, "expected multiples of 32"),
        ({"sizes": [[0.5, 96]]}, "pairs from 0.0 on"),
        ({"sizes": [[0.0]]}, "sizes: expected 2 values"),
        ({"sizes": []}, "sizes: expected"),
        ({"band": [0.2, 0.1]}, "band"),
        ({"data": [{"kind": "video", "folder": "x"}]}, "data kind 'video'"),
        ({"data": [{"folder": "x"}]}, "data: .*kind"),
        ({"data": [{"kind": "cutouts", "folder": "x"}]}, "data x: needs `backgrounds`"),
        ({"data": [3]}, "data: expected a table, got 3"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_it(values, message):
    with pytest.raises(PortraitmattingError, match=message) as error:
        config_from_dict(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", None])
def test_an_unreadable_recipe_is_named(tmp_path, content):
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PortraitmattingError, match=r"r\.toml"):
        read_config(path)


def test_the_command_line_goes_over_the_recipe():
    scalars = ["--steps", "5", "--learning-rate", "0.5", "--tensorboard", "--validation", "v"]
    folders = ["--photos", "a", "--photos", "b", "--cutouts", "c", "--over", "d"]
    folders += ["--backgrounds", "d"]
    options = parser().parse_args(["run", "R", *scalars, *folders])
    config = config_from_dict({"steps": 9, "seed": 4} | _changes(options))
    assert (config.steps, config.seed, config.learning_rate) == (5, 4, 0.5)
    assert config.tensorboard and config.validation == "v"
    kinds = [(s.kind, s.folder, s.backgrounds) for s in config.data]
    assert kinds == [
        ("photos", "a", None),
        ("photos", "b", None),
        ("cutouts", "c", "d"),
        ("backgrounds", "d", None),
    ]
    assert _changes(parser().parse_args(["run", "R"])) == {}


@given(steps=st.integers(1, 500), warm_up=st.floats(0, 0.9), floor=st.floats(0, 1))
def test_the_learning_rate_rises_then_falls_to_its_floor(steps, warm_up, floor):
    config = TrainConfig(steps=steps, warm_up=warm_up, floor=floor, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert max(rates) <= 1 and min(rates) >= 0
    if steps > 10 and warm_up < 0.5:
        assert rates[-1] == pytest.approx(floor, abs=1e-9) and max(rates) == pytest.approx(1)


@given(step=st.integers(0, 99), seed=st.integers(0, 9))
def test_the_working_size_grows_as_the_recipe_says(step, seed):
    config = TrainConfig(steps=100, seed=seed, sizes=((0.0, 96), (0.5, 160)))
    size = working_size(config, step)
    assert min(size) == (96 if step < 50 else 160)
    assert all(side % 32 == 0 for side in size) and max(size) <= 1.5 * min(size)
    assert size == working_size(config, step)


def test_the_average_warms_up_to_its_decay_and_follows_the_weights():
    config = TrainConfig(ema=0.9)
    decays = [ema_decay(config, step) for step in range(200)]
    assert decays[0] == 0.1 and decays == sorted(decays) and decays[-1] == 0.9
    average, model = MovingAverage(TINY), copy.deepcopy(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average.update(model, 0.75)
    for mine, old in zip(average.model.parameters(), TINY.parameters(), strict=True):
        torch.testing.assert_close(mine, old + 0.25)
    assert not average.model.training and not any(
        p.requires_grad for p in average.model.parameters()
    )


def test_every_parameter_has_a_part_and_every_part_parameters():
    assert {part_of(name) for name, _ in TINY.named_parameters()} == set(PARTS)


def test_groups_hold_every_parameter_once_and_decay_only_matrices():
    supervised = DeepSupervision(copy.deepcopy(TINY), STAGES)
    groups = parameter_groups(supervised.model, supervised.heads, {"ppm": 0.5}, 0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in supervised.parameters())
    decaying = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in supervised.named_parameters():
        expected = parameter.ndim > 1 and "position" not in name
        assert (id(parameter) in decaying) == expected, name
    assert {g["rate"] for g in groups if g["part"] == "ppm"} == {0.5}


def test_frozen_parts_are_left_out_and_freezing_all_is_refused():
    model = copy.deepcopy(TINY)
    nothing = torch.nn.ModuleList()
    rates = dict.fromkeys(PARTS, 0.0) | {"heads": 1.0}
    freeze(model, rates)
    groups = parameter_groups(model, nothing, rates, 0.1)
    assert {group["part"] for group in groups} == {"heads"}
    freeze(model, dict.fromkeys(PARTS, 0.0))
    with pytest.raises(PortraitmattingError, match="every part is frozen"):
        parameter_groups(model, nothing, {}, 0.1)
    with pytest.raises(PortraitmattingError, match=r"rates\.head = 1"):
        freeze(model, {"head": 1.0})


def test_supervision_reads_the_coarse_stages_and_leaves_the_prediction():
    model = copy.deepcopy(TINY).eval()
    image = torch.rand(2, 3, 64, 96)
    expected = model(image)
    supervised = DeepSupervision(model, STAGES)
    assert not supervised.model.training
    prediction, coarse = supervised(image)
    for a, b in zip(prediction, expected, strict=True):
        assert torch.equal(a, b)
    assert [tuple(c.shape) for c in coarse] == [(2, 1, 2, 3), (2, 1, 4, 6), (2, 1, 8, 12)]
    torch.stack([c.sum() for c in coarse]).sum().backward()
    assert model.decoder.fusions[0].project.weight.grad is not None
    assert model.decoder.fusions[3].project.weight.grad is None
