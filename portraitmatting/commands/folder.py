"""Mattes and cut-outs for every image of a folder."""

import argparse
import os
import sys
from collections.abc import Sequence

from portraitmatting.cli import FAILED, INTERRUPTED, Parser, given, run
from portraitmatting.commands.options import (
    add_device_option,
    add_network_options,
    add_result_options,
    number,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    # Imported as they are needed: a wrong call is answered before PyTorch is loaded, let alone
    # the model.
    from portraitmatting.folder.plan import plan_folder

    plan = plan_folder(options.input, **given(options, "output", "kinds", "image_format", "bits"))

    # Read as PyTorch is loaded: its threads sleep while they wait for one another, instead of
    # keeping a core busy that readers and writers have use for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from portraitmatting.checkpoint import load_model
    from portraitmatting.folder.job import matte_folder
    from portraitmatting.folder.results import ResultOptions
    from portraitmatting.predictor import Predictor

    style = ResultOptions(**given(options, "foreground", "background"))
    model = load_model(options.checkpoint, options.device or "auto")
    predictor = Predictor(model, **given(options, "short_side", "precision", "preset", "compile"))
    count = len(plan.sources)
    print(f"{count} {'image' if count == 1 else 'images'}, {predictor}", file=sys.stderr)
    choices = given(options, "batch_size", "workers", "overwrite")
    summary = matte_folder(plan, predictor, style, progress=True, **choices)
    print(f"{summary}\nresults in {plan.output}")
    if summary.interrupted:
        return INTERRUPTED
    return FAILED if summary.failed or summary.stopped else 0


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting folder",
        description=f"{__doc__} A second run does only what is missing or changed. Exit code 0 if "
        "all went well, 1 if any image failed, 2 for a wrong call, 130 after Ctrl-C.",
    )
    add = parser.add_argument
    add("input", metavar="INPUT", help="a folder, searched with its subfolders, or one image")
    add(
        "output",
        metavar="OUTPUT",
        nargs="?",
        help="the folder for results, as OUTPUT/KIND/same/tree/name.png (default: mattes)",
    )
    add_result_options(parser)
    add = add_network_options(parser)
    add_device_option(add)
    add(
        "--compile",
        action="store_true",
        default=None,
        help="run the network through torch.compile, for long jobs on a GPU: it takes minutes to "
        "begin (default: off)",
    )
    add(
        "--batch-size",
        type=number(int, 1, 1024),
        metavar="N",
        help="images that go through the network together (default: 8 on a GPU, 1 on the CPU)",
    )
    add(
        "--workers",
        type=number(int, 1, 256),
        metavar="N",
        help="threads that read, and as many that estimate colours and write (default: 2)",
    )
    return parser


if __name__ == "__main__":
    run(main)
