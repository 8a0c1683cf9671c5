"""`portraitmatting COMMAND ...`, or `python -m portraitmatting COMMAND ...`."""

import argparse
import sys
from collections.abc import Sequence

from portraitmatting.cli import USAGE, Parser, own_version, run
from portraitmatting.commands import COMMANDS, command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; no other command's module is imported."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help()
        return USAGE
    chosen = parser().parse_args(arguments[:1]).command
    code: int = command(chosen).main(arguments[1:])
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of the command's name, with a line on each; imports no command's module."""
    parser = Parser(
        prog="portraitmatting",
        description="Portrait matting: a photo in, the person's alpha matte and cut-out out.",
        epilog="portraitmatting COMMAND --help says more about each.",
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"portraitmatting {own_version()}"
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", required=True
    )
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser


def entry_point() -> None:
    """The console script."""
    run(main)


if __name__ == "__main__":
    run(main)
