"""`portraitmatting completion bash|zsh`: a script that completes every command and its options.

The script is made once from the parsers, by shtab; completing runs no Python.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from portraitmatting.choices import DEVICES
from portraitmatting.cli import Parser
from portraitmatting.commands import COMMANDS, command
from portraitmatting.errors import PortraitmattingError

_FILES = ("--checkpoint", "--background")
_PATHS = ("DIR", "FILE", "TOML", "NAME=FOLDER")
"""Options, and metavars of options, whose value is a path; so is every argument without choices."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, print, exit code."""
    options = parser().parse_args(arguments)
    try:
        import shtab
    except ImportError:
        raise PortraitmattingError(
            'completion needs shtab: pip install -e ".[completion]"'
        ) from None
    whole = whole_parser()
    for action in _actions(whole):
        _offer(action, shtab.FILE)
    print(shtab.complete(whole, options.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command's own below it."""
    from portraitmatting.__main__ import parser as names

    whole = names()
    (commands,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    for name in COMMANDS:
        commands.choices[name] = below = command(name).parser()
        below.description = COMMANDS[name]  # what zsh shows beside the name
    return whole


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


def _offer(action: Any, files: Any) -> None:
    """Set what is offered for the value of an option or argument, if it takes one."""
    option = action.option_strings[-1] if action.option_strings else ""
    is_path = not option or option in _FILES or action.metavar in _PATHS or action.type is Path
    if action.nargs == 0 or action.choices:
        return
    if option == "--device":
        action.choices = DEVICES  # not in the parser, which also takes cuda:1
    elif is_path:
        action.complete = files


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting completion",
        description="Print a completion script for portraitmatting.",
        epilog='bash, in ~/.bashrc: eval "$(portraitmatting completion bash)". '
        "zsh: portraitmatting completion zsh > a file _portraitmatting in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    return parser
