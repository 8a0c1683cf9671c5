"""Mattes and cut-outs for every image of a folder."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from portraitmatting.checkpoint.registry import locate
from portraitmatting.cli import FAILED, INTERRUPTED, Parser, given
from portraitmatting.commands.options import (
    add_device_option,
    add_network_options,
    add_result_options,
    load_predictor,
    number,
    require_package,
)
from portraitmatting.errors import ImageError, PortraitmattingError, one_line

_PREDICTOR = ("short_side", "precision", "preset", "compile")
"""Options of the predictor."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    inputs, output = _inputs_and_output(options)
    # Imported where they are needed: a wrong call, and a rerun with nothing to do, end before
    # PyTorch and the model are loaded.
    from portraitmatting.folder.results import ResultOptions
    from portraitmatting.folder.single import names_a_file

    # PyTorch reads this when it is loaded: its threads then sleep while they wait for one another,
    # which leaves the cores to the other threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    results = ResultOptions(**given(options, "foreground", "background", "crop", "strip_metadata"))
    if output is not None and names_a_file(inputs, output):
        return _one_file(options, inputs, output, results)
    return _folder(options, inputs, output, results)


def _inputs_and_output(options: argparse.Namespace) -> tuple[list[str], str | None]:
    """The last argument is the output, unless -o names it or there is only one input."""
    inputs: list[str] = options.input
    output: str | None = options.output
    if options.from_file is None:
        listed = []
        if not inputs:
            raise PortraitmattingError("no input: give a folder or an image; --help says more")
    else:
        listed = _names(options.from_file)
    if output is None and inputs and len(inputs) + len(listed) > 1:
        *inputs, output = inputs
    return [*inputs, *listed], output


def _names(file: str) -> list[str]:
    try:
        with open(file, "rb") as lines:
            names = [os.fsdecode(line.rstrip(b"\r\n")) for line in lines]
    except OSError as error:
        raise PortraitmattingError(f"{file}: cannot be opened ({error.strerror})") from error
    names = [name.removeprefix("\ufeff") for name in names]
    if not any(name.strip() for name in names):
        raise PortraitmattingError(f"{file}: names no files: write one name a line")
    return [name for name in names if name.strip()]


def _one_file(options: argparse.Namespace, inputs: list[str], output: str, results: Any) -> int:
    from portraitmatting.folder.single import PIPE, matte_single, plan_single

    if options.watch:
        raise PortraitmattingError("--watch needs a folder as its output")
    kinds = options.kinds or (["rgba"] if options.background is None else ["composite"])
    replace = bool(options.overwrite or options.output is not None)
    plan = plan_single(inputs, output, kinds, options.image_format, options.bits, replace)
    if sys.stdin.isatty() and plan.source == PIPE:
        raise PortraitmattingError("standard input is a terminal: pipe an image into it")
    if sys.stdout.isatty() and plan.target == PIPE:
        raise PortraitmattingError("standard output is a terminal: redirect it, as in > out.png")
    predictor = load_predictor(options, *_PREDICTOR)
    print(f"1 image, {predictor}", file=sys.stderr)
    try:
        somebody = matte_single(plan, predictor, results)
    except ImageError as error:
        print(f"failed: {one_line(str(error))}", file=sys.stderr)
        return FAILED
    if not somebody:
        print(f"warning: {one_line(plan.source)}: nobody in the matte", file=sys.stderr)
    if plan.target != PIPE:
        print(f"1 done, 0 skipped, 0 failed\nresult in {plan.target}")
    return 0


def _folder(
    options: argparse.Namespace, inputs: list[str], output: str | None, results: Any
) -> int:
    from portraitmatting.folder.journal import Summary, finished, network_call
    from portraitmatting.folder.plan import Plan, check_writable, plan_folder

    planned = given(options, "kinds", "image_format", "bits")
    if output is not None:
        planned["output"] = output
    if options.background is not None and not options.kinds:
        planned["kinds"] = ("alpha", "rgba", "composite")
    source = inputs[0] if len(inputs) == 1 else inputs
    if options.watch:
        watched = [Path(name) for name in inputs if os.path.isdir(name)]
        if not watched:
            raise PortraitmattingError(f"{inputs[0]}: no folder, which --watch needs")
        require_package("watchdog", "--watch needs", "watch")

    def scan() -> Plan:
        return plan_folder(source, may_be_empty=bool(options.watch), **planned)

    plan = scan()
    if options.background is not None and "composite" not in plan.kinds:
        print("--background: changes nothing without --output composite", file=sys.stderr)
    for remark in plan.remarks():
        print(remark, file=sys.stderr)
    check_writable(plan)
    settings = given(options, *_PREDICTOR, "device")
    call = network_call(locate(options.checkpoint)[0], settings)
    summary = None
    if not options.overwrite and not options.watch:
        summary = finished(plan, results, call)
    if summary is None:
        predictor = load_predictor(options, *_PREDICTOR)
        from portraitmatting.folder.job import matte_folder

        choices = given(options, "batch_size", "workers", "overwrite")
        print(f"{plan.describe_sources()}, {predictor}", file=sys.stderr)

        def work(plan: Plan) -> Summary:
            return matte_folder(plan, predictor, results, progress=True, call=call, **choices)

        if options.watch:
            from portraitmatting.folder.job import watch

            print(f"watching {', '.join(map(str, watched))}, until Ctrl-C", file=sys.stderr)
            summary = watch(watched, scan, work)
        else:
            summary = work(plan)
    print(f"{summary}\nresults in {plan.output}")
    if summary.interrupted:
        return INTERRUPTED
    return FAILED if summary.failed or summary.stopped else 0


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting folder",
        usage="%(prog)s [options] INPUT [INPUT ...] [OUTPUT]",
        description=f"{__doc__} A second run does only what is missing or changed. Exit code 0 if "
        "all went well, 1 if any image failed, 2 for a wrong call, 130 after Ctrl-C.",
    )
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        nargs="*",
        help="a folder, searched with its subfolders, or an image, or several; - is standard input",
    )
    add(
        "-o",
        dest="output",
        metavar="OUTPUT",
        help="the folder for results, as OUTPUT/KIND/same/tree/name.png, or for one input a file "
        "such as out.png, - for standard output; also the last argument (default: mattes)",
    )
    add(
        "--from-file",
        metavar="FILE",
        help="a text file of more inputs, one a line (default: none)",
    )
    add(
        "--watch",
        action="store_true",
        default=None,
        help="keep running, and process what arrives in the input folder (default: off)",
    )
    add_result_options(parser)
    add = add_network_options(parser)
    add_device_option(add)
    add(
        "--compile",
        action="store_true",
        default=None,
        help="run the network through torch.compile, for long jobs on a GPU: it takes minutes to "
        "start (default: off)",
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
        help="images processed at a time, each in its own thread (default: as many as cores)",
    )
    return parser
