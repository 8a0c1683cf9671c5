"""Recipes, schedules, parts and the average."""

import copy
import json
import math
from dataclasses import asdict, fields
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from portraitmatting.commands.train import _changes, parser
from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import ModelConfig, PortraitMatting
from portraitmatting.training.config import (
    Augment,
    DataSource,
    LossWeights,
    TrainConfig,
    config_from_dict,
    read_config,
)
from portraitmatting.training.data import working_size
from portraitmatting.training.losses import DeepSupervision
from portraitmatting.training.trainer import (
    PARTS,
    MovingAverage,
    ema_decay,
    freeze,
    learning_rate,
    parameter_groups,
    part_of,
)
from training_scenes import recipe, write_toml

TINY = PortraitMatting(ModelConfig.tiny())


def test_a_recipe_survives_json(tmp_path):
    config = config_from_dict(recipe(tmp_path, lr_scale={"stem": 0.5}, losses={"whole": 2}))
    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert config.losses.whole == 2.0 and config.lr_scale == {"stem": 0.5}


def test_folders_in_a_file_are_relative_to_it(tmp_path):
    values = {"data": [{"kind": "photos", "folder": "mine"}], "validation": "../val", "steps": 7}
    read = config_from_dict(read_config(write_toml(tmp_path / "r.toml", values)))
    assert read.data[0].folder == str(tmp_path / "mine") and read.steps == 7
    assert read.validation == str(tmp_path / "../val")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"step": 3}, "unknown setting step: expected one of data, init_from"),
        ({"augment": {"flop": 1}}, r"unknown setting augment\.flop"),
        ({"steps": 1.5}, "steps: expected int, got 1.5"),
        ({"steps": 0}, "steps 0: expected 1 to"),
        ({"tensorboard": 1}, "tensorboard: expected bool, got 1"),
        ({"sizes": [[0, 100]]}, "expected multiples of 32"),
        ({"sizes": [[5, 96]]}, "the first from step 0"),
        ({"sizes": [[0]]}, "sizes: expected"),
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


@pytest.mark.parametrize(
    "text", ["data = 3", "data = 'abc'", "data = [3]", "sizes = 3", "band = 1"]
)
def test_a_value_where_a_list_or_table_belongs_is_named(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(PortraitmattingError, match=rf"{text.split()[0]}: expected a (list|table)"):
        config_from_dict(read_config(tmp_path / "r.toml"))


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


NOT_FINITE = (math.nan, math.inf, -math.inf)


def number_settings():
    """Every setting that is a number, or holds some, with a way to write one value of it."""
    for kind, where in ((TrainConfig, ()), (Augment, ("augment",)), (LossWeights, ("losses",))):
        for spec in fields(kind):
            if spec.metadata.get("range", (None,))[0] is not None:
                yield (*where, spec.name), spec.metadata["range"]
    for spec in fields(DataSource):
        if spec.metadata.get("range", (None,))[0] is not None:
            yield ("data", spec.name), spec.metadata["range"]


def with_number(path, number):
    values = {
        "sizes": [[0, number]],
        "band": [0.01, number],
        "lr_scale": {"stem": number},
    }.get(path[-1], number)
    if path[0] == "data":
        return {"data": [{"kind": "photos", "folder": "f", path[-1]: number}]}
    for name in reversed(path):
        values = {name: values}
    return values


@pytest.mark.parametrize("path, limits", list(number_settings()), ids=lambda v: str(v))
def test_every_number_has_a_range_that_an_error_names(path, limits):
    low, high = limits
    for number in (*NOT_FINITE, low - 1, high * 2 + 1, -1, 10**30):
        with pytest.raises(PortraitmattingError, match=path[-1].replace("sizes", "s")) as error:
            config_from_dict(with_number(path, number))
        assert "\n" not in str(error.value)


def test_no_numeric_setting_lacks_a_range():
    for kind in (TrainConfig, DataSource, Augment, LossWeights):
        hints = get_type_hints(kind)
        for spec in fields(kind):
            if {int, float} & set(flat(hints[spec.name])):
                assert spec.metadata["range"][0] is not None, spec.name


def flat(hint):
    inner = get_args(hint)
    return [hint] if not inner else [h for part in inner for h in flat(part)]


def test_old_words_are_translated_and_named_in_one_line(capsys):
    old = {"steps": 200, "learning_rate": 0.01, "start": "scratch", "accumulate": 2, "clip": 0.5}
    old |= {"rates": {"stem": 0}, "warm_up": 0.05, "floor": 0.02, "sizes": [[0.0, 96], [0.5, 64]]}
    config = config_from_dict(old)
    assert config.init_from == "scratch" and config.grad_accum_steps == 2
    assert config.clip_grad == 0.5 and config.lr_scale == {"stem": 0}
    assert config.warmup_steps == 10 and config.min_lr == pytest.approx(2e-4)
    assert config.sizes == ((0, 96), (100, 64))
    (line,) = capsys.readouterr().err.splitlines()
    for word in ("init_from", "grad_accum_steps", "warmup_steps = 10", "[100, 64]"):
        assert word in line
    with pytest.raises(PortraitmattingError, match="start is the old word for init_from"):
        config_from_dict({"start": "scratch", "init_from": "scratch"})
    with pytest.raises(PortraitmattingError, match="--warm-up is now --warmup-steps"):
        _changes(parser().parse_args(["run", "R", "--warm-up", "0.1"]))


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 400),
    decay=st.none() | st.integers(0, 400),
    min_lr=st.floats(0, 0.9),  # nearer to the full rate, rounding decides the order
)
def test_the_learning_rate_rises_stays_and_falls(steps, warmup, decay, min_lr):
    config = TrainConfig(
        steps=steps, warmup_steps=warmup, decay_steps=decay, min_lr=min_lr, learning_rate=1.0
    )
    rates = [learning_rate(config, step) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    rest = rates[max(top, warmup) :]
    assert rest == sorted(rest, reverse=True)
    assert max(rates) <= 1 + 1e-12 and min(rates) >= 0
    if decay is not None:
        assert all(rate == 1 for rate in rates[warmup : max(0, steps - decay)])
    if warmup + (decay or 0) < steps:
        assert max(rates) == pytest.approx(1)
        if decay:
            assert rates[-1] == pytest.approx(min_lr + (1 - min_lr) / (decay + 1))


def test_a_longer_run_begins_like_a_shorter_one():
    short, long = (
        TrainConfig(steps=s, warmup_steps=5, decay_steps=0, coarse_steps=9, sizes=((0, 64, 96),))
        for s in (50, 500)
    )
    for step in range(50):
        assert learning_rate(short, step) == learning_rate(long, step)
        assert working_size(short, step) == working_size(long, step)


@given(step=st.integers(0, 99), seed=st.integers(0, 9))
def test_each_batch_draws_one_of_the_sizes_of_its_time(step, seed):
    config = TrainConfig(steps=100, seed=seed, sizes=((0, 96, 128), (50, 160)))
    size = working_size(config, step)
    assert min(size) in ((96, 128) if step < 50 else (160,))
    assert all(side % 32 == 0 for side in size) and max(size) <= 1.5 * min(size)
    assert size == working_size(config, step)


def test_all_sizes_are_drawn():
    config = TrainConfig(sizes=((0, 96, 128, 160),))
    assert {min(working_size(config, step)) for step in range(60)} == {96, 128, 160}


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
    supervised = DeepSupervision(copy.deepcopy(TINY))
    groups = parameter_groups(supervised.model, supervised.heads, {"ppm": 0.5}, 0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in supervised.parameters())
    decaying = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in supervised.named_parameters():
        expected = parameter.ndim > 1 and "position" not in name
        assert (id(parameter) in decaying) == expected, name
    assert {g["lr_scale"] for g in groups if g["part"] == "ppm"} == {0.5}


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
    with pytest.raises(PortraitmattingError, match=r"lr_scale\.head = 1"):
        freeze(model, {"head": 1.0})


def test_supervision_reads_the_coarse_stages_and_leaves_the_prediction():
    model = copy.deepcopy(TINY).eval()
    image = torch.rand(2, 3, 64, 96)
    expected = model(image)
    supervised = DeepSupervision(model)
    prediction, logits = supervised(image)
    for a, b in zip(prediction, expected, strict=True):
        assert torch.equal(a, b)
    assert [tuple(c.shape) for c in logits] == [(2, 4, 2, 3), (2, 4, 4, 6), (2, 4, 8, 12)]


def test_coarse_training_gives_the_same_maps_without_computing_the_rest():
    model = copy.deepcopy(TINY).eval()
    supervised = DeepSupervision(model)
    image = torch.rand(2, 3, 64, 96)
    _, expected = supervised(image)
    for part in (model.decoder.fusions[3], model.alpha_head, model.trimap_head):
        part.forward = None  # a call would raise
    prediction, logits = supervised(image, coarse=True)
    assert prediction is None
    for a, b in zip(logits, expected, strict=True):
        assert torch.equal(a, b)
    torch.stack([c.sum() for c in logits]).sum().backward()
    learned = {name.rsplit(".", 1)[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "decoder.fusions.2.project" in learned and "encoder.stem.0" in learned
    assert not any(n.startswith(("decoder.fusions.3", "alpha_", "trimap_")) for n in learned)
