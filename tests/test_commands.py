"""The one command over all: help without PyTorch, hand-over, completion, doors to the same room."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT
from portraitmatting import choices, commands
from portraitmatting.__main__ import main, parser
from portraitmatting.checkpoint.format import STORAGE
from portraitmatting.cli import FAILED, USAGE
from portraitmatting.commands import COMMANDS, command
from portraitmatting.commands.completion import whole_parser
from portraitmatting.device import PRECISIONS
from portraitmatting.errors import PortraitmattingError
from portraitmatting.evaluate.evaluation import REGIONS
from portraitmatting.images.encode import SIXTEEN_BIT, WRITABLE


def test_no_parser_needs_anything_heavy():
    code = (
        "import json, sys\n"
        "from portraitmatting.commands.completion import whole_parser\n"
        "whole_parser().format_help()\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "timm", "cv2", "numpy", "PIL", "numba", "safetensors", "huggingface_hub"}
    assert heavy & set(json.loads(done.stdout)) == set()


def test_help_shows_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "portraitmatting", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name, text in COMMANDS.items():
        assert f"    {name} " in done.stdout and text in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: portraitmatting {name} ")


def test_a_command_gets_its_arguments_and_gives_its_code(monkeypatch):
    heard = []
    fake = SimpleNamespace(main=lambda arguments: heard.append(arguments) or 7)
    monkeypatch.setattr(commands, "import_module", lambda name: fake)
    assert main(["folder", "in", "--", "--out"]) == 7
    assert heard == [["in", "--", "--out"]]


def test_wrong_and_missing_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fodler", "in"])
    assert ended.value.code == USAGE
    assert "'fodler'" in capsys.readouterr().err
    assert main([]) == USAGE
    assert capsys.readouterr().out == parser().format_help()


def test_version(monkeypatch, capsys):
    from portraitmatting import cli

    for installed, shown in (("1.2.3", "1.2.3"), (None, "(not installed)")):

        def look(name, installed=installed):
            if installed is None:
                raise cli.PackageNotFoundError(name)
            return installed

        monkeypatch.setattr(cli, "version", look)
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"portraitmatting {shown}\n"


@pytest.mark.parametrize(
    ("script", "name"), [("eval_image_folder", "folder"), ("eval_webcam", "webcam")]
)
def test_the_scripts_are_the_commands(script, name):
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == command(name).parser().format_help()


def test_words_are_the_librarys():
    assert {f".{word}" for word in choices.FORMATS} == set(WRITABLE)
    assert {f".{word}" for word in choices.DEEP_FORMATS} == set(SIXTEEN_BIT)
    assert REGIONS == choices.REGIONS
    assert set(choices.STORAGE) == set(STORAGE) and set(choices.PRECISIONS) == set(PRECISIONS)


COLOURS_OUT_OF_RANGE = ["rgb(300, 0, 0)", "hsl(0, 100%, 200%)", "rgb(0%, 0%, 101%)", "#12345678"]
WRONG_FOLDER_OPTIONS = [
    ("--preset", "best"),
    ("--preset", "auto"),
    ("--short-side", "300"),
    ("--short-side", "0"),
    ("--short-side", "-32"),
    ("--short-side", "3200000000"),
    ("--short-side", "9" * 5000),
    ("--checkpoint", "nothere"),
    ("--checkpoint", "nothere.safetensors"),
    ("--checkpoint", "x" * 300),
    ("--checkpoint", ""),
    ("--background", "nosuch"),
    ("--background", "."),
    ("--background", "blur:nan"),
    ("--background", "blur:-1"),
    ("--device", "gpu"),
    ("--device", "cuda:x"),
    ("--device", "cuda:-1"),
    ("--precision", "fp8"),
    ("--foreground", "magic"),
    ("--output", "matte"),
    ("--format", "bmp"),
    ("--bits", "12"),
    ("--batch-size", "0"),
    ("--workers", "100000000"),
    *(("--background", colour) for colour in COLOURS_OUT_OF_RANGE),
]
WRONG_CALLS = [
    *(("folder", "in", *option) for option in WRONG_FOLDER_OPTIONS),
    ("folder", ""),
    ("folder", "in", ""),
    ("folder", "in", "--checkpoint="),
    ("webcam", ""),
    ("webcam", "in.mp4", "-o", ""),
    ("webcam", "0", "--target-rate", "nan"),
    ("webcam", "0", "--target-rate", "inf"),
    ("webcam", "0", "--width", "-5"),
    ("web", "--port", "99999"),
    ("web", "--port", "-1"),
    ("web", "--max-megapixels", "nan"),
    ("web", "--host", ""),
    ("evaluate", "bench", "--csv", ""),
    ("evaluate", "bench", "--band", "inf"),
    ("evaluate", "bench", "--seed", "-1"),
    ("evaluate", "bench", "--checkpoint", "mine=nothere"),
    ("distributed", "in", "out", "--gpus-per-worker", "nan"),
    ("distributed", "in", "out", "--cores-per-worker", "0"),
    ("checkpoint", "info", ""),
    ("checkpoint", "verify", ""),
    ("checkpoint", "convert", "in.pt", ""),
    ("export", ""),
    ("export", "out.onnx", "--precision", "int8"),
    ("train", "export", "run", ""),
    ("doctor", "now"),
    ("completion", "fish"),
]
"""Wrong in the value of one option or argument, which the parser alone can tell."""


@pytest.mark.parametrize("call", WRONG_CALLS, ids=lambda call: " ".join(call)[:60])
def test_a_wrong_value_is_answered_in_one_line_by_the_parser(call, capsys):
    with pytest.raises(SystemExit) as ended:
        command(call[0]).parser().parse_args(call[1:])
    assert ended.value.code == USAGE
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert "argument command" not in err


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (("folder", "a", "-o", "out", "b c"), "'b c' is left over"),
        (("webcam", "my", "video.mp4"), "'video.mp4' is left over"),
        (("train", "export", "run", "out", "now"), "'now' is left over"),
        (("doctor", "now"), "'now' is left over"),
        (("folder", "in", "--colour", "red"), "unknown option --colour"),
    ],
)
def test_what_no_option_takes_is_named(call, line, capsys):
    with pytest.raises(SystemExit) as ended:
        command(call[0]).main(call[1:])
    assert ended.value.code == USAGE
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_right_values_pass():
    call = "in --format .PNG --device cuda:1 --background #fff --preset fast --short-side 8192"
    options = command("folder").parser().parse_args([*call.split(), "--checkpoint", __file__])
    assert (options.image_format, options.device, options.short_side) == ("png", "cuda:1", 8192)
    assert command("webcam").parser().parse_args(["--preset", "auto"]).preset == "auto"
    for text in (
        "blur",
        "blur:0.5",
        "rgb(255, 0, 10)",
        "checkerboard",
        "chequer",
        "#fff",
        "tomato",
        __file__,
    ):
        assert choices.check_background(text) == text


def test_a_wrong_call_ends_before_anything_heavy_is_imported():
    code = (
        "import sys; sys.argv = ['x', 'folder', 'in', '--checkpoint', 'nothere']\n"
        "from portraitmatting.__main__ import entry_point\n"
        "try: entry_point()\n"
        "finally: print(sorted({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (USAGE, "[]\n")
    assert "no checkpoint named 'nothere'" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ('exec "$@" >&-', 0),
        ('exec "$@" <&- >&- 2>&-', 0),
        ('exec "$@" >/dev/full', FAILED),
        ('exec "$@" >/dev/full 2>/dev/full', FAILED),
        ('"$@" | true', 0),
    ],
)
def test_nobody_takes_the_output(shell, code):
    if "/dev/full" in shell and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    call = ["sh", "-c", shell, "-", sys.executable, "-m", "portraitmatting", "completion", "bash"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == code


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_whatever_stops_a_command_lets_it_clean_up(name, code, tmp_path):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from portraitmatting.atomic import atomic_path\n"
        "from portraitmatting.cli import run\n"
        "def main():\n"
        "    with atomic_path(Path(sys.argv[1], 'result.bin')):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "run(main)"
    )
    call = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(
        call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, b"interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_signal_that_the_caller_ignores_stays_ignored():
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from portraitmatting.cli import run\n"
        "run(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    pytest.importorskip("shtab")
    done = subprocess.run(
        [sys.executable, "-m", "portraitmatting", "completion", "bash"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    path = tmp_path_factory.mktemp("completion") / "script.bash"
    path.write_text(done.stdout)
    return path


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["eva"], {"evaluate"}),
        (["doc"], {"doctor"}),
        (["folder", "--sho"], {"--short-side"}),
        (["folder", "--device", "c"], {"cpu", "cuda"}),
        (["folder", "--foreground", ""], {"ml", "cf", "fast", "none"}),
        (["folder", "--preset", ""], {"live", "fast", "balanced", "quality"}),
        (["webcam", "--preset", ""], {"live", "fast", "balanced", "quality", "auto"}),
        (["export", "--precision", ""], {"fp32", "fp16"}),
        (["folder", "--bits", ""], {"8", "16"}),
        (["webcam", "--pre"], {"--preset", "--precision"}),
        (["checkpoint", "v"], {"verify"}),
        (["checkpoint", "convert", "--stor"], {"--storage"}),
        (["train", "run", "--learning"], {"--learning-rate"}),
        (["folder", "REA"], {"README.md"}),
    ],
)
def test_bash_completes(bash_script, typed, offered):
    words = " ".join(f"'{word}'" for word in ["portraitmatting", *typed])
    asked = (
        f"source {bash_script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; "
        "_shtab_portraitmatting; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == offered


def test_zsh_gets_a_script_too(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef portraitmatting")
    for name in COMMANDS:
        text = COMMANDS[name].split("'")[0]
        assert f"    {name}:'{text}" in script
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n"], input=script, text=True, check=True)


def test_without_shtab_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(PortraitmattingError, match=r"\.\[completion\]"):
        main(["completion", "bash"])


def test_completion_knows_every_command():
    assert set(whole_parser()._subparsers._group_actions[0].choices) == set(COMMANDS)
