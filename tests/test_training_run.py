"""A run from its first step to its checkpoint, and everything that may interrupt it."""

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from portraitmatting import cli
from portraitmatting.commands.train import main
from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import ModelConfig, PortraitMatting
from portraitmatting.training import run_directory, runtime
from portraitmatting.training.config import config_from_dict
from portraitmatting.training.init_weights import initial_model
from portraitmatting.training.loop import train
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.runtime import Precision, Processes, choose_training_precision
from portraitmatting.training.trainer import Trainer
from training_scenes import photo_folder, portrait, recipe, tiny_checkpoint, write_toml

ROOT = Path(__file__).parent.parent
KINDS = ("image", "alpha")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path) -> Path:
    return photo_folder(tmp_path / "photos")


@pytest.fixture
def start(tmp_path) -> str:
    return str(tiny_checkpoint(tmp_path / "tiny.safetensors"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def final(run: Path) -> dict:
    state = RunDirectory(run).latest()
    assert state is not None
    return state


def assert_identical(one: dict, two: dict) -> None:
    """Bit for bit: weights, average, coarse heads, optimiser, step."""
    assert one["step"] == two["step"] and one["best"] == two["best"]
    for part in ("model", "ema", "coarse"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), name
    for key, moments in one["optimiser"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, two["optimiser"]["state"][key][name])


def numbers(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table]


def test_the_tiny_network_learns_one_portrait_by_heart(tmp_path):
    photos = photo_folder(tmp_path / "one", count=1, height=64, width=64)
    still = dict.fromkeys(
        ("close_up", "flip", "rotation", "aspect", "colour", "grey", "blur", "noise", "jpeg"), 0
    )
    config = config_from_dict(
        recipe(
            photos,
            steps=60,
            sizes=[[0, 64]],
            learning_rate=1e-2,
            ema=0.9,
            warmup_steps=3,
            augment=still,
            validation=str(photos),
            validate_every=60,
            save_every=60,
        )
    )
    torch.manual_seed(0)
    train(tmp_path / "run", config, PortraitMatting(ModelConfig.tiny()))
    before, after = rows(tmp_path / "run" / "scores.csv")
    assert float(before["MAD"]) > 0.2
    assert float(after["MAD"]) < 0.03
    assert float(after["IoU"]) > 0.95
    log = rows(tmp_path / "run" / "log.csv")
    assert float(log[-1]["total"]) < 0.3 * float(log[0]["total"])


def test_a_run_leaves_what_its_directory_promises(tmp_path, photos, start):
    config = config_from_dict(
        recipe(photos, init_from=start, validation=str(photos), validate_every=2, images=1)
    )
    run = tmp_path / "run"
    train(run, config)
    assert RunDirectory(run).config() == config
    assert [row["step"] for row in rows(run / "log.csv")] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows(run / "scores.csv")] == ["0", "2", "4"]
    assert [p.name for p in RunDirectory(run).checkpoints()] == ["000003.pt", "000004.pt"]
    assert [p.name for p in (run / "mattes" / "000004").iterdir()] == ["p0.png"]
    assert len(rows(run / "validation" / "000004.csv")) == 4
    scores = {row["step"]: float(row["MAD"]) for row in rows(run / "scores.csv")}
    best = RunDirectory.read(run / "best.pt")
    assert scores[str(best["step"])] == min(scores.values())


def test_killed_and_resumed_gives_the_same_bits(tmp_path, photos, start):
    """SIGKILL in the middle of a real process; validation, EMA, drop-out and log included."""
    values = recipe(photos, init_from=start, steps=12, validation=str(photos), validate_every=4)
    values |= {"grad_accum_steps": 2, "save_every": 2}
    config = write_toml(tmp_path / "recipe.toml", values)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, config_from_dict(values))

    process = subprocess.Popen(
        [sys.executable, "-m", "portraitmatting", "train", "run", broken, "--config", config],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    log = broken / "log.csv"
    while process.poll() is None and (not log.is_file() or log.read_text().count("\n") < 6):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert final(broken)["step"] < 12

    assert main(["run", str(broken), "--resume"]) == 0
    assert_identical(final(whole), final(broken))
    for table in ("log.csv", "scores.csv", "validation/000012.csv"):
        assert numbers(rows(whole / table)) == numbers(rows(broken / table))


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_resuming_after_any_step_gives_the_same_bits(tmp_path, photos, start, stop_at, monkeypatch):
    config = config_from_dict(recipe(photos, init_from=start, save_every=2, steps=5))
    train(tmp_path / "whole", config)
    append = RunDirectory.append

    def power_cut(self, table, row):
        append(self, table, row)
        if row["step"] == stop_at + 1:
            raise SystemExit

    monkeypatch.setattr(RunDirectory, "append", power_cut)
    with pytest.raises(SystemExit):
        train(tmp_path / "broken", config)
    monkeypatch.setattr(RunDirectory, "append", append)
    train(tmp_path / "broken")
    assert_identical(final(tmp_path / "whole"), final(tmp_path / "broken"))


def test_killed_in_any_phase_resumes_to_the_same_bits(tmp_path, photos, start, monkeypatch):
    """Coarse steps, many sizes, the constant rate and its fall, averaged weights, a new background
    by the multi-level estimate, scenes."""
    whole_people(tmp_path / "whole-people")
    behind = {"backgrounds": str(photos / "image")}
    values = recipe(photos, init_from=start, steps=6, coarse_steps=2, decay_steps=2, warmup_steps=1)
    values["sizes"] = [[0, 32, 64], [4, 64]]
    values["data"] = [
        {"kind": "photos", "folder": str(photos), "replace": 0.5, **behind},
        {"kind": "scenes", "folder": str(tmp_path / "whole-people"), **behind},
    ]
    train(tmp_path / "whole", config_from_dict(values))
    log = rows(tmp_path / "whole" / "log.csv")
    assert [float(row["trimap"]) > 0 for row in log] == [False] * 2 + [True] * 4
    assert float(log[3]["learning_rate"]) == 1e-4 > float(log[5]["learning_rate"])
    append = RunDirectory.append
    for stop_at in (1, 2, 5):

        def power_cut(self, table, row, stop_at=stop_at):
            append(self, table, row)
            if row["step"] == stop_at:
                raise SystemExit

        monkeypatch.setattr(RunDirectory, "append", power_cut)
        run = tmp_path / str(stop_at)
        with pytest.raises(SystemExit):
            train(run, config_from_dict(values))
        monkeypatch.setattr(RunDirectory, "append", append)
        train(run)
        assert_identical(final(tmp_path / "whole"), final(run))


def test_a_prolonged_run_equals_one_planned_that_long(tmp_path, photos, start):
    values = recipe(photos, init_from=start, decay_steps=0, coarse_steps=1)
    train(tmp_path / "planned", config_from_dict(values | {"steps": 5, "decay_steps": 2}))
    train(tmp_path / "prolonged", config_from_dict(values | {"steps": 3}))
    resume = ["run", str(tmp_path / "prolonged"), "--resume"]
    assert main([*resume, "--steps", "5", "--decay-steps", "2"]) == 0
    assert_identical(final(tmp_path / "planned"), final(tmp_path / "prolonged"))
    assert RunDirectory(tmp_path / "prolonged").config().steps == 5
    with pytest.raises(PortraitmattingError, match="steps 2: the run has done 5"):
        main([*resume, "--steps", "2"])
    with pytest.raises(PortraitmattingError, match="keeps its learning_rate: only steps"):
        main([*resume, "--learning-rate", "1"])


def test_a_run_with_relative_folders_resumes_from_anywhere(tmp_path, photos, start, monkeypatch):
    config = config_from_dict(recipe("photos", init_from="tiny.safetensors", validation="photos"))
    monkeypatch.chdir(tmp_path)
    train("whole", config)
    train("broken", config)
    (tmp_path / "broken" / "checkpoints" / "000004.pt").unlink()
    photo_folder(tmp_path / "elsewhere" / "photos", height=96)
    monkeypatch.chdir(tmp_path / "elsewhere")
    train("../broken")
    assert_identical(final(tmp_path / "whole"), final(tmp_path / "broken"))
    stored = RunDirectory(tmp_path / "broken").config()
    assert {stored.data[0].folder, stored.validation} == {str(photos)}
    assert stored.init_from == str(tmp_path / "tiny.safetensors")


def test_folders_of_an_earlier_version_are_not_guessed(tmp_path, photos, start):
    train(tmp_path / "run", config_from_dict(recipe(photos, init_from=start)))
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace(str(photos), "photos"))
    with pytest.raises(PortraitmattingError, match=r"config\.json names folders relative"):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: [(p / kind / "p1.png").unlink() for kind in KINDS], "2 gone"),
        (
            lambda p: (p / "alpha" / "p1.png").write_bytes((p / "alpha" / "p2.png").read_bytes()),
            "1",
        ),
        (lambda p: [shutil.copy(p / k / "p1.png", p / k / "new-p1.png") for k in KINDS], "2 new"),
        (lambda p: os.utime(p / "image" / "p1.png"), None),
    ],
)
def test_a_resume_says_that_the_data_changed(tmp_path, photos, start, change, message, capsys):
    train(
        tmp_path / "run", config_from_dict(recipe(photos, init_from=start, validation=str(photos)))
    )
    (tmp_path / "run" / "checkpoints" / "000004.pt").unlink()
    change(photos)
    capsys.readouterr()
    train(tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "not what it was" in line]
    assert len(lines) == (message is not None)
    if message:
        assert message in lines[0] and "p1.png" in lines[0]


def test_strays_beside_the_checkpoints_harm_nothing(tmp_path, photos, start, capsys):
    train(tmp_path / "whole", config_from_dict(recipe(photos, init_from=start, save_every=2)))
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints"
    shutil.copytree(tmp_path / "whole", run)
    (folder / "000004.pt").unlink()
    strays = [
        "000002 (copy).pt",
        "2.pt",
        "0000002.pt",
        "\u00b2.pt",
        "best.pt",
        "._000002.pt",
        "000099.pt",
    ]
    for name in strays:
        shutil.copy(folder / "000002.pt", folder / name)
    (folder / "000003.pt").mkdir()
    killed = folder / ".0123456789abcdef.tmp.pt"
    killed.touch()
    (run / ".mine.tmp.pt").touch()
    train(run)
    assert "000099.pt holds step 2: left alone" in capsys.readouterr().err
    assert all((folder / name).exists() for name in [*strays, "000003.pt", "000004.pt"])
    assert not killed.exists() and (run / ".mine.tmp.pt").exists()
    one, two = (
        RunDirectory.read(p / "checkpoints" / "000004.pt") for p in (tmp_path / "whole", run)
    )
    assert_identical(one, two)


def test_a_resume_under_another_precision_or_number_of_threads_says_so_or_works(
    tmp_path, photos, start, capsys
):
    """A run in fp32 has an empty state of the scaler, which fp16 has to survive."""
    config = config_from_dict(recipe(photos, init_from=start, steps=2))
    train(tmp_path / "run", config)
    state = final(tmp_path / "run")
    assert state["scaler"] == {}
    half = Precision(torch.device("cpu"), torch.float16)
    trainer = Trainer(config, initial_model(start), half, Processes())
    assert trainer.scaler.is_enabled()
    trainer.restore(state)
    assert trainer.step == 2
    torch.set_num_threads(2)
    train(tmp_path / "run", changes={"steps": 3, "precision": "bf16"})
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "last digits" in x]
    assert "2, until now 1" in line and "precision bf16, until now fp32" in line
    assert final(tmp_path / "run")["step"] == 3


def test_turing_does_not_train_in_emulated_bf16(monkeypatch):
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    monkeypatch.setattr(runtime, "choose_device", lambda name: cuda)
    assert choose_training_precision("cuda", "auto").dtype == torch.float16
    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device("cpu"))
    for computes in (False, True):
        monkeypatch.setattr(runtime, "is_faster_in_bf16", lambda c=computes: c)
        expected = torch.bfloat16 if computes else torch.float32
        assert choose_training_precision("cpu", "auto").dtype == expected


def whole_people(folder: Path) -> None:
    """Cut-outs that touch no border."""
    folder.mkdir()
    for i in range(2):
        image, alpha = portrait(i)
        pixels = np.dstack([np.pad(image, ((6,), (6,), (0,))), np.pad(alpha, 6)])
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_other_numbers_of_threads_change_no_bit(tmp_path, photos, start):
    for threads in (1, 3):
        train(
            tmp_path / str(threads),
            config_from_dict(recipe(photos, init_from=start, threads=threads)),
        )
    assert_identical(final(tmp_path / "1"), final(tmp_path / "3"))


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, photos):
    results = []
    for pieces in (1, 2, 4):
        torch.manual_seed(0)
        model = without_dropout(PortraitMatting(ModelConfig.tiny()))
        train(
            tmp_path / str(pieces),
            config_from_dict(recipe(photos, batch_size=4, steps=1, grad_accum_steps=pieces)),
            model,
        )
        log = rows(tmp_path / str(pieces) / "log.csv")[0]
        results.append([float(log[k]) for k in ("total", "gradient")])
    np.testing.assert_allclose(results[1:], [results[0]] * 2, rtol=1e-4)


def without_dropout(model: PortraitMatting) -> PortraitMatting:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_frozen_parts_stay_and_others_move(tmp_path, photos, start):
    lr_scale = {"stem": 0, "stage1": 0, "ppm": 0.5}
    train(
        tmp_path / "run",
        config_from_dict(recipe(photos, init_from=start, lr_scale=lr_scale, steps=2)),
    )
    from portraitmatting.checkpoint.load import load_model
    from portraitmatting.training.trainer import part_of

    before, after = load_model(start).state_dict(), final(tmp_path / "run")["model"]
    moved = {part_of(n) for n, v in before.items() if not torch.equal(v, after[n])}
    assert moved == {"stage2", "stage3", "stage4", "ppm", "decoder", "heads"}


def test_not_a_number_stops_before_the_weights_and_keeps_the_batch(tmp_path, photos):
    torch.manual_seed(0)
    model = PortraitMatting(ModelConfig.tiny())
    with torch.no_grad():
        model.trimap_head.layers[-1].bias[0] = math.inf
    with pytest.raises(
        PortraitmattingError, match=r"step 0: not finite: trimap, .*batch is in"
    ) as e:
        train(tmp_path / "run", config_from_dict(recipe(photos)), model)
    assert "\n" not in str(e.value)
    batch = torch.load(tmp_path / "run" / "failed_batch_0.pt", weights_only=True)
    assert batch["image"].shape[0] == batch["alpha"].shape[0] == len(batch["names"]) == 2
    assert RunDirectory(tmp_path / "run").latest() is None


@pytest.mark.parametrize("fails", ["save", "fsync"])
def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, photos, start, fails, monkeypatch):
    run, real = tmp_path / "run", torch.save
    monkeypatch.setattr(run_directory.torch, "save", lambda content, file: full(content, file))
    saves = []

    def full(content, file):
        saves.append(content["step"])
        real(content, file)
        if len(saves) == 3:
            if fails == "save":
                raise OSError(28, "No space left on device")
            monkeypatch.setattr(run_directory.os, "fsync", no_space)

    def no_space(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(PortraitmattingError, match=r"No space left on device.*000002\.pt is kept"):
        train(run, config_from_dict(recipe(photos, init_from=start, steps=5)))
    assert [p.name for p in RunDirectory(run).checkpoints()] == ["000001.pt", "000002.pt"]
    assert not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]

    monkeypatch.undo()
    train(run)
    train(tmp_path / "whole", config_from_dict(recipe(photos, init_from=start, steps=5)))
    assert_identical(final(run), final(tmp_path / "whole"))


def test_a_real_write_limit_loses_no_earlier_checkpoint(tmp_path, photos, start):
    """The kernel refuses the write in the middle of a file, as a full disk does."""
    resource = pytest.importorskip("resource")
    run, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(PortraitmattingError, match=r"cannot be written .*make room") as error:
            train(run, config_from_dict(recipe(photos, init_from=start)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="no SIGTERM here")
def test_sigterm_saves_and_then_ends_as_sigterm_does(tmp_path, photos, start, monkeypatch):
    run, append, received = tmp_path / "run", RunDirectory.append, []

    def terminate(self, table, row):
        append(self, table, row)
        if row["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "append", terminate)
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(run, config_from_dict(recipe(photos, init_from=start, steps=50, save_every=50)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM] and final(run)["step"] == 2


def test_ctrl_c_saves_and_exits_130(tmp_path, photos, start, monkeypatch):
    config = write_toml(
        tmp_path / "recipe.toml", recipe(photos, init_from=start, steps=50, save_every=50)
    )
    run, append = tmp_path / "run", RunDirectory.append

    def press_ctrl_c(self, table, row):
        append(self, table, row)
        if row["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunDirectory, "append", press_ctrl_c)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: main(["run", str(run), "--config", str(config)]))
    assert ended.value.code == 130
    assert final(run)["step"] == 2
    assert [row["step"] for row in rows(run / "log.csv")] == ["1", "2"]


def test_a_used_folder_is_refused_and_an_empty_one_has_nothing_to_resume(tmp_path, photos, start):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "diary.txt").write_text("dear")
    with pytest.raises(PortraitmattingError, match="is not empty"):
        train(tmp_path / "used", config_from_dict(recipe(photos, init_from=start)))
    with pytest.raises(PortraitmattingError, match="holds no run"):
        train(tmp_path / "nowhere")


def test_a_wrong_recipe_leaves_no_run_behind(tmp_path, start):
    with pytest.raises(PortraitmattingError, match="no such folder"):
        train(tmp_path / "run", config_from_dict(recipe(tmp_path / "none", init_from=start)))
    assert not (tmp_path / "run").exists()


def test_a_torn_last_row_is_written_again(tmp_path):
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.append("log", {"step": step, "total": 0.5})
    (tmp_path / "log.csv").open("a").write("12")
    directory.forget_after(2)
    assert [row["step"] for row in rows(tmp_path / "log.csv")] == ["1", "2"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "000001.pt").write_bytes(b"PK not really")
    with pytest.raises(PortraitmattingError, match=r"000001\.pt: cannot be read"):
        RunDirectory(tmp_path).latest()


def test_bf16_trains_on_the_cpu_and_fp16_is_refused_there(tmp_path, photos, start):
    train(
        tmp_path / "run",
        config_from_dict(recipe(photos, init_from=start, precision="bf16", steps=2)),
    )
    train(tmp_path / "fp32", config_from_dict(recipe(photos, init_from=start, steps=2)))
    losses = [float(rows(tmp_path / n / "log.csv")[0]["total"]) for n in ("run", "fp32")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    assert all(v.dtype != torch.bfloat16 for v in final(tmp_path / "run")["model"].values())
    with pytest.raises(PortraitmattingError, match="fp16 needs a GPU"):
        train(tmp_path / "no", config_from_dict(recipe(photos, init_from=start, precision="fp16")))


def test_tensorboard_gets_both_tables(tmp_path, photos, start):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    values = recipe(photos, init_from=start, steps=2, validation=str(photos), tensorboard=True)
    train(tmp_path / "run", config_from_dict(values))
    events = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"log/total", "scores/MAD"} <= set(events.Tags()["scalars"])
    log = [float(row["total"]) for row in rows(tmp_path / "run" / "log.csv")]
    np.testing.assert_allclose([e.value for e in events.Scalars("log/total")], log, rtol=1e-6)


def test_without_tensorboard_one_line_names_the_way_out(tmp_path, photos, start, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PortraitmattingError, match="pip install tensorboard"):
        train(tmp_path / "run", config_from_dict(recipe(photos, init_from=start, tensorboard=True)))
