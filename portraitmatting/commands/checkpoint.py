"""`portraitmatting checkpoint convert|info|verify`: checkpoints on the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from portraitmatting import choices
from portraitmatting.checkpoint.registry import SUMS, checkpoints_folder, known_sums
from portraitmatting.cli import FAILED, Parser, given
from portraitmatting.errors import CheckpointError, PortraitmattingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    if options.command == "convert":
        chosen = given(options, "storage", "facts", "overwrite")
        from portraitmatting.checkpoint.load import convert

        convert(options.source, options.destination, **chosen)
        print(_table(options.destination))
    elif options.command == "info":
        print("\n\n".join(_table(source) for source in options.sources or [None]))
    else:
        return _verify_all(options.sources)
    return 0


def _table(source: str | Path | None) -> str:
    from portraitmatting.checkpoint.load import describe

    return "\n".join(f"{name + ':':<20}{value}" for name, value in describe(source).items())


def _verify_all(sources: list[str]) -> int:
    folder = checkpoints_folder()
    sources = sources or [str(folder / name) for name in known_sums(folder)]
    if not sources:
        raise CheckpointError(f"nothing to verify: {folder} holds no {SUMS}")
    from portraitmatting.checkpoint.load import verify

    code = 0
    for source in sources:
        try:
            print(verify(source))
        except PortraitmattingError as error:
            print(f"FAILED {error}")
            code = FAILED
    return code


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(prog="portraitmatting checkpoint", description="Checkpoint files.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert_parser = commands.add_parser("convert", help="make one of our files of the author's")
    convert_parser.add_argument("source", type=Path)
    convert_parser.add_argument("destination", type=Path)
    convert_parser.add_argument("--storage", choices=choices.STORAGE, help="default: fp16")
    convert_parser.add_argument("--facts", type=Path, help="JSON file that describes the weights")
    convert_parser.add_argument("--overwrite", action="store_true", default=None)
    for name, text in (("info", "describe checkpoints"), ("verify", "check files, all by default")):
        command = commands.add_parser(name, help=text)
        command.add_argument("sources", nargs="*", metavar="source", help="a name or a path")
    return parser
