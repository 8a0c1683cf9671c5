"""The one command over all: help without PyTorch, hand-over, completion, doors to the same room."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from conftest import ROOT
from portraitmatting import commands
from portraitmatting.__main__ import main, parser
from portraitmatting.checkpoint import STORAGE
from portraitmatting.choices import KINDS, PRESETS
from portraitmatting.cli import USAGE
from portraitmatting.commands import COMMANDS, command
from portraitmatting.commands.completion import WORDS, whole_parser
from portraitmatting.device import PRECISIONS
from portraitmatting.errors import PortraitmattingError
from portraitmatting.evaluate import REGIONS
from portraitmatting.foreground import METHODS
from portraitmatting.images.encode import WRITABLE


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
def test_the_scripts_are_doors_to_the_same_room(script, name):
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == command(name).parser().format_help()


def choices(name: str, option: str) -> list[object]:
    """Of the command's option, wherever below the command it is."""
    found = []
    waiting = [command(name).parser()]
    while waiting:
        for action in waiting.pop()._actions:
            if isinstance(action.choices, dict):
                waiting += action.choices.values()
            elif option in action.option_strings:
                found += action.choices
    return found


def test_words_in_the_parsers_are_the_librarys():
    assert choices("checkpoint", "--storage") == list(STORAGE)
    assert choices("train", "--storage") == list(STORAGE)
    assert choices("evaluate", "--regions") == list(REGIONS)
    assert choices("evaluate", "--precision") == ["auto", *PRECISIONS]
    assert WORDS["--precision"] == ("auto", *PRECISIONS)
    assert WORDS["--foreground"] == METHODS
    assert WORDS["--output"] == KINDS
    assert {f".{word}" for word in WORDS["--format"]} <= set(WRITABLE)
    assert set(WORDS["--preset"]) == {*PRESETS, "auto"}


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
    with pytest.raises(PortraitmattingError, match=r"portraitmatting\[completion\]"):
        main(["completion", "bash"])


def test_completion_knows_every_command():
    assert set(whole_parser()._subparsers._group_actions[0].choices) == set(COMMANDS)
