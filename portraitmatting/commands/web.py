"""Command line: `portraitmatting web`."""

import argparse
from collections.abc import Sequence

from portraitmatting.cli import Parser, given
from portraitmatting.commands.options import (
    add_checkpoint_option,
    add_device_option,
    add_precision_option,
    add_short_side_option,
    number,
    require_package,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    require_package("gradio", "the page needs", "web")
    from portraitmatting.web.server import serve

    serve(**given(options, *vars(options)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting web",
        description="A page for single photos, on this machine: matte, cut-out, new background. "
        "It needs no internet, and nothing leaves the machine.",
    )
    add = parser.add_argument_group("page").add_argument
    add(
        "--host",
        metavar="ADDRESS",
        help="listen at this address; at 0.0.0.0 other machines reach the page, without a password "
        "(default: 127.0.0.1, this machine only)",
    )
    add(
        "--port",
        type=number(int, 1, 65535),
        metavar="N",
        help="(default: the first free one from 7860 on)",
    )
    add(
        "--root-path",
        metavar="/PATH",
        help="where a reverse proxy offers the page, if not at its root (default: none)",
    )
    add(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="another host name to answer to, as a reverse proxy passes it on; may be repeated "
        "(default: this machine's own names)",
    )
    add(
        "--no-browser",
        dest="browser",
        action="store_false",
        default=None,
        help="only print the page's address",
    )
    add(
        "--max-megabytes",
        type=number(float, 0.001, 1e6),
        metavar="N",
        help="of an upload (default: 50)",
    )
    add(
        "--max-megapixels",
        type=number(float, 0.001, 1e6),
        metavar="N",
        help="of an image (default: 50)",
    )
    add(
        "--keep-minutes",
        type=number(float, 0.001, 1e6),
        metavar="N",
        help="how long uploads and results are kept (default: 60; never longer than the page is "
        "served)",
    )
    add = parser.add_argument_group("network").add_argument
    add_checkpoint_option(add)
    add_device_option(add)
    add_precision_option(add)
    add_short_side_option(add)
    return parser
