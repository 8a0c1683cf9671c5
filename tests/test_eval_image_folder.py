"""The folder job's command line."""

import inspect
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from portraitmatting import ModelConfig, PortraitMatting, read_image, write_image
from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.checkpoint.load import load_model
from portraitmatting.checkpoint.registry import DEFAULT
from portraitmatting.cli import run
from portraitmatting.commands.folder import main, parser
from portraitmatting.device import choose_device
from portraitmatting.folder.job import Summary, matte_folder
from portraitmatting.folder.plan import plan_folder
from portraitmatting.folder.results import ResultOptions
from portraitmatting.predictor import Predictor

SCRIPT = ROOT / "eval_image_folder.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    info = CheckpointInfo(origin="a test", licence="none", working_short_side=32)
    save_checkpoint(path, PortraitMatting(ModelConfig.tiny()), info)
    return str(path)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Two images, beside which the script runs."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos", "a.jpg", "sub/b.png")
    return tmp_path / "photos"


def fill(folder: Path, *names: str) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, rng.integers(0, 256, (40, 48, 3), np.uint8))


def call(*arguments: object) -> int | str | None:
    """The exit code of a call in this process."""
    with pytest.raises(SystemExit) as ended:
        run(lambda: main([str(argument) for argument in arguments]))
    return ended.value.code


def files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in paths} - {".portraitmatting.jsonl"}


def test_a_newcomers_call_gives_mattes_and_cut_outs(photos, checkpoint, capsys):
    assert call("photos", "--checkpoint", checkpoint) == 0
    out, err = capsys.readouterr()
    assert files(Path("mattes")) == {
        "alpha/a.png",
        "alpha/sub/b.png",
        "rgba/a.png",
        "rgba/sub/b.png",
    }
    assert read_image("mattes/rgba/a.png").pixels.shape == (40, 48, 3)
    first, *_, last = out.splitlines()  # random weights may find nobody, which is a line too
    assert (first, last) == ("2 done, 0 skipped, 0 failed", "results in mattes")
    line = r"^2 images \(1 \.jpg, 1 \.png\), cpu \(\d+ threads?\), (fp32|bf16), short side 32$"
    assert re.search(line, err, re.MULTILINE)
    assert call("photos", "--checkpoint", checkpoint) == 0
    assert capsys.readouterr().out.startswith("0 done, 2 skipped, 0 failed\n")


def test_threads_that_wait_leave_their_core_to_others(photos, checkpoint, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert call("photos", "--checkpoint", checkpoint) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # the user's own
    assert call("photos", "--checkpoint", checkpoint) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_every_option_is_heard(photos, checkpoint, capsys, monkeypatch):
    heard = {}

    def job(plan, predictor, style, **rest):
        heard.update(plan=plan, predictor=predictor, style=style, **rest)
        return Summary()

    monkeypatch.setattr("portraitmatting.folder.job.matte_folder", job)
    options = (
        "--output composite foreground --format tiff --bits 16 --foreground fast --overwrite "
        f"--background blur:0.05 --checkpoint {checkpoint} --short-side 64 --device cpu "
        "--preset fast --precision bf16 --batch-size 3 --workers 5"
    ).split()
    assert call("photos/a.jpg", "results", *options) == 0
    plan, predictor = heard["plan"], heard["predictor"]
    assert (plan.root, plan.sources, plan.output) == (
        Path("photos"),
        [Path("a.jpg")],
        Path("results"),
    )
    assert (plan.kinds, plan.suffix, plan.bits) == (("composite", "foreground"), ".tiff", 16)
    assert heard["style"] == ResultOptions("fast", "blur:0.05")
    assert (predictor.short_side, predictor.dtype) == (32, torch.bfloat16)
    assert predictor.model.config == ModelConfig.tiny()
    assert (heard["batch_size"], heard["workers"], heard["overwrite"]) == (3, 5, True)
    assert heard["progress"]
    assert "1 image, cpu" in capsys.readouterr().err


def test_options_left_out_are_left_to_the_library(photos, checkpoint, monkeypatch):
    heard = {}

    def job(plan, predictor, style, **rest):
        heard.update(rest)
        return Summary()

    monkeypatch.setattr("portraitmatting.folder.job.matte_folder", job)
    assert call("photos", "--checkpoint", checkpoint) == 0
    assert heard.pop("call")
    assert heard == {"progress": True}
    assert all(action.default is None for action in actions().values())


def actions() -> dict[str, object]:
    actions = parser()._actions
    return {action.dest: action for action in actions if action.dest != "help"}


@pytest.mark.parametrize(
    ("option", "function", "parameter"),
    [
        ("output", plan_folder, "output"),
        ("kinds", plan_folder, "kinds"),
        ("image_format", plan_folder, "image_format"),
        ("foreground", ResultOptions, "foreground"),
        ("background", ResultOptions, "background"),
        ("device", choose_device, "name"),
    ],
)
def test_help_tells_the_defaults_that_the_library_has(option, function, parameter):
    default = inspect.signature(function).parameters[parameter].default
    default = " ".join(default) if isinstance(default, tuple) else str(default)
    assert f"(default: {default})" in actions()[option].help


def test_help_tells_every_default(capsys):
    assert call("--help") == 0
    assert "Exit code 0 if all went well" in re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, action in actions().items():
        assert "(default: " in action.help or name in ("input", "overwrite")
    assert f"(default: {DEFAULT})" in actions()["checkpoint"].help


def test_failures_give_exit_code_1_and_say_why(photos, checkpoint, capsys):
    (photos / "empty.jpg").write_bytes(b"")
    assert call("photos", "--output", "alpha", "--checkpoint", checkpoint) == 1
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first == "2 done, 0 skipped, 1 failed"
    assert re.match(r"failed: photos.empty\.jpg: the file is empty", second)
    assert last == "results in mattes"


def test_a_full_disk_gives_exit_code_1(photos, checkpoint, capsys, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert call("photos", "--output", "alpha", "--checkpoint", checkpoint) == 1
    out = capsys.readouterr().out
    assert out.startswith("0 done, 0 skipped, 0 failed\nstopped: ")
    assert "No space left on device" in out
    assert files(Path("mattes")) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["photos", "--format", "bmp"], "unknown format 'bmp'"),
        (["photos", "--output", "alpha", "out"], "unknown output 'out'"),
        (["photos", "--foreground", "best"], "unknown foreground method 'best'"),
        (["photos", "--background", "nothing.png"], "nothing.png"),
        (["photos", "--device", "warp"], "unknown device 'warp'"),
        (["photos", "--checkpoint", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_wrong_calls_are_one_line_and_exit_code_2(photos, capsys, arguments, message):
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("mattes").exists()


def test_settings_that_do_not_fit_the_checkpoint(photos, checkpoint, capsys):
    for wrong in (
        ["--short-side", "50"],
        ["--preset", "best"],
        ["--precision", "fp16"],
        ["--batch-size", "0"],
    ):
        assert call("photos", "--checkpoint", checkpoint, "--device", "cpu", *wrong) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_a_device_that_is_not_there_is_no_reason_to_fall_back(photos, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call("photos", "--device", "cuda") == 2
    assert "error: device 'cuda'" in capsys.readouterr().err


def start(*arguments: object, **options) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def test_one_image_to_one_file(photos, checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    options = ("--checkpoint", checkpoint, "--foreground", "none")
    for output, mode, more in (
        ("out.png", "RGBA", ()),
        ("new/out.webp", "RGBA", ()),
        ("alpha.tif", "L", ("--output", "alpha")),
        ("teal.jpg", "RGB", ("--background", "teal")),
    ):
        assert call("a.jpg", output, *options, *more) == 0
        with Image.open(output) as result:
            assert (result.size, result.mode) == ((48, 40), mode)
        assert capsys.readouterr().out.endswith(f"result in {output}\n")
    assert not Path(".portraitmatting.jsonl").exists()
    before = Path("out.png").read_bytes()
    for wrong, message in (
        (("a.jpg", "out.png"), "is there already"),
        (("a.jpg", "-o", "a.jpg", "--output", "alpha"), "is the input itself"),
        (("a.jpg", "sub/b.png", "new.png"), "there are 2 inputs"),
        (("sub", "new.png"), "is a folder"),
        (("a.jpg", "new.jpg"), "JPEG has no transparency: name it .png, or give a --background"),
        (("a.jpg", "new.gif"), "cannot write .gif"),
        (("a.jpg", "new.mp4"), "cannot write .mp4"),
        (("a.jpg", "new.png", "--format", "webp"), "leave --format out"),
        (("a.jpg", "new.png", "--output", "alpha", "rgba"), "one file holds one kind"),
        (("gone.jpg", "new.png"), "gone.jpg: no such file"),
        (("a.jpg", "a.jpg/new.png"), "cannot be written (Not a directory)"),
        (("a.jpg", "new.png", "--watch"), "--watch needs a folder"),
    ):
        assert call(*wrong, *options) == 2, wrong
        assert message in capsys.readouterr().err
    assert Path("out.png").read_bytes() == before
    assert call("a.jpg", "out.png", "--overwrite", *options) == 0
    assert call("a.jpg", "-o", "out.png", *options, "--preset", "fast") == 0
    (photos / "bad.jpg").write_bytes(b"no image")
    assert call("bad.jpg", "-o", "out.png", *options) == 1
    assert "failed: bad.jpg: " in capsys.readouterr().err
    assert {path.name for path in photos.glob("*")} == {
        "a.jpg", "sub", "out.png", "new", "alpha.tif", "teal.jpg", "bad.jpg",
    }  # fmt: skip


def test_pipes(photos, checkpoint, capfdbinary, monkeypatch):
    options = ("--checkpoint", checkpoint, "--foreground", "none")
    for arguments in (("-", "-"), ("photos/a.jpg", "-"), ("-", "out.png")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper((photos / "a.jpg").open("rb")))
        monkeypatch.setattr("sys.stdout", output := io.TextIOWrapper(io.BytesIO()))
        assert call(*arguments, *options) == 0
        data = output.buffer.getvalue() if arguments[1] == "-" else Path("out.png").read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (48, 40))


def test_several_inputs_in_one_call(photos, checkpoint, capsys):
    fill(photos.parent, "more/c.png", "d.jpg")
    (photos.parent / "list.txt").write_text("d.jpg\r\n\nphotos/sub\n")
    options = ("--checkpoint", checkpoint, "--foreground", "none", "--output", "alpha")
    assert call("photos", "more/c.png", "out", *options) == 0
    names = "photos/a.png", "photos/sub/b.png", "more/c.png"
    assert files(Path("out")) == {f"alpha/{name}" for name in names}
    assert call("--from-file", "list.txt", "listed", *options) == 0
    assert files(Path("listed")) == {"alpha/d.png", "alpha/photos/sub/b.png"}
    assert call("more/*.png", "--from-file", "list.txt", "-o", "all", *options) == 0
    assert len(files(Path("all"))) == 3
    capsys.readouterr()
    (photos.parent / "list.txt").write_text("\n")
    nothing = ("--from-file", "list.txt", "x"), ("--from-file", "gone.txt", "x")
    for wrong in ((), *nothing, ("", "x")):
        assert call(*wrong, *options) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_background_means_composites(photos, checkpoint, capsys):
    options = ("--checkpoint", checkpoint, "--foreground", "none", "--background", "teal")
    assert call("photos", *options) == 0
    assert {name.split("/")[0] for name in files(Path("mattes"))} == {"alpha", "rgba", "composite"}
    capsys.readouterr()
    assert call("photos", "--output", "alpha", *options) == 0
    assert "changes nothing without --output composite" in capsys.readouterr().err
    assert call("photos", "--format", "jpg") == 2
    assert "leave rgba out, as in --output alpha composite" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_watched_folder(photos, checkpoint, number, code):
    pytest.importorskip("watchdog")
    output = photos.parent / "out"
    process = start(
        SCRIPT, "photos", "out", "--watch", "--output", "alpha", "--checkpoint", checkpoint,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip

    def wait_for(count: int) -> None:
        end = time.monotonic() + 60
        while process.poll() is None and len(list(output.glob("alpha/**/*.png"))) < count:
            assert time.monotonic() < end
            time.sleep(0.02)

    wait_for(2)
    data = (photos / "a.jpg").read_bytes()
    with (photos / "slow.jpg").open("wb") as file:  # a copy that takes its time
        for start_of_part in range(0, len(data), len(data) // 4):
            file.write(data[start_of_part : start_of_part + len(data) // 4])
            file.flush()
            time.sleep(0.3)
    fill(photos, "new/c.png")
    wait_for(4)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "4 done, 0 skipped, 0 failed" in out
    assert "watching photos, until Ctrl-C" in err


def test_a_rerun_with_nothing_to_do_loads_no_pytorch(photos, checkpoint, capsys):
    arguments = ["photos", "--output", "alpha", "rgba", "--foreground", "none"]
    assert call(*arguments, "--checkpoint", checkpoint) == 0
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    argv = [str(SCRIPT), *arguments, "--checkpoint", checkpoint]
    process = start("-c", f"import sys; sys.argv = {argv!r}\n{code}")
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("0 done, 2 skipped, 0 failed\nresults in mattes\n", "")
    assert process.returncode == 0
    os.utime(checkpoint)  # another file, for all that can be told without reading it
    assert call(*arguments, "--checkpoint", checkpoint) == 0
    assert "2 images (1 .jpg, 1 .png), cpu" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(photos, checkpoint, number, code):
    fill(photos, *(f"{index}.png" for index in range(150)))
    output = photos.parent / "mattes"
    arguments = ["photos", "--output", "alpha", "--checkpoint", checkpoint, "--short-side", "128"]
    process = start(
        SCRIPT,
        *arguments,
        *("--precision", "fp32"),  # as the run below, on every processor
        # The tests may run in the background of a shell that has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not list(output.glob("alpha/[0-9]*.png")):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "stopped: interrupted; what is done is kept" in out
    made = files(output / "alpha")
    assert 0 < len(made) < 152
    assert not [name for name in made if ".tmp" in name]
    assert out.startswith(f"{len(made)} done, ")
    for name in sorted({f"{index}.png" for index in range(150)} - made)[3:]:
        (photos / name).unlink()
    left = len(files(photos)) - len(made)
    predictor = Predictor(load_model(checkpoint), short_side=128)
    assert matte_folder(plan_folder("photos", kinds=["alpha"]), predictor) == Summary(
        done=left, skipped=len(made)
    )


def test_names_that_the_terminal_cannot_show(photos, checkpoint, monkeypatch):
    (photos / "写真\n.png").write_bytes(b"")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert call("--output", "alpha", "--checkpoint", checkpoint, "--", "photos") == 1
    lines = terminal.buffer.getvalue().decode("ascii").splitlines()
    assert r"\u5199\u771f\n.png" in lines[1]
