"""Command line: `portraitmatting distributed INPUT OUTPUT`."""

import argparse
from collections.abc import Sequence

from portraitmatting.cli import FAILED, INTERRUPTED, Parser, given
from portraitmatting.commands.options import (
    add_network_options,
    add_result_options,
    number,
    require_package,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)

    from portraitmatting.folder.plan import plan_results

    plan = plan_results("", **given(options, "kinds", "image_format", "bits"))
    for package in ("ray", "pyarrow", "fsspec"):
        require_package(package, "many machines need", "distributed")

    from portraitmatting.distributed.run import matte_storage
    from portraitmatting.distributed.storage import find_storage
    from portraitmatting.folder.results import ResultOptions

    source, output = find_storage(options.input), find_storage(options.output)
    results = ResultOptions(**given(options, "foreground", "background", "crop", "strip_metadata"))
    choices = given(
        options, "checkpoint", "short_side", "precision", "preset", "batch_size", "overwrite",
        "address", "cores", "gpus", "workers",
    )  # fmt: skip
    summary = matte_storage(source, output, plan, results, progress=True, **choices)
    print(f"{summary}\nresults in {output}")
    if summary.interrupted:
        return INTERRUPTED
    return FAILED if summary.failed or summary.stopped else 0


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting distributed",
        description="Mattes and cut-outs for every image of a folder, on many machines. A second "
        "run does only what is missing or changed. Exit code 0 if all went well, 1 if any image "
        "failed, 2 for a wrong call, 130 after Ctrl-C.",
    )
    add = parser.add_argument
    anywhere = "a folder that all machines see, or a URL such as s3://bucket/folder"
    add("input", metavar="INPUT", help=f"{anywhere}, with its subfolders")
    add("output", metavar="OUTPUT", help=f"{anywhere}, for OUTPUT/KIND/same/tree/name.png")
    add_result_options(parser)
    add = add_network_options(parser)
    add(
        "--batch-size",
        type=number(int, 1, 1024),
        metavar="N",
        help="images that go through the network together (default: 8 on GPUs, 1 on CPUs)",
    )
    add = parser.add_argument_group("machines").add_argument
    add(
        "--address",
        help="of the Ray cluster; auto is the one that this machine belongs to (default: none, "
        "this machine alone)",
    )
    add(
        "--cores-per-worker",
        dest="cores",
        type=number(int, 1, 4096),
        metavar="N",
        help="CPU cores of each worker (default: 1)",
    )
    add(
        "--gpus-per-worker",
        dest="gpus",
        type=number(float, 0, 1),
        metavar="N",
        help="GPUs of each worker; 0.5 puts two workers on each (default: 0, run on CPUs)",
    )
    add(
        "--workers",
        type=number(int, 1, 1_000_000),
        metavar="N",
        help="how many; more than there is room for wait for machines to join (default: as many "
        "as there is room for)",
    )
    return parser
