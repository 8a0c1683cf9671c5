"""Command line: `portraitmatting evaluate FOLDER`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from portraitmatting import choices
from portraitmatting.atomic import check_replaceable
from portraitmatting.checkpoint.registry import check_source
from portraitmatting.cli import FAILED, Parser, given
from portraitmatting.commands.options import (
    add_device_option,
    add_precision_option,
    checked,
    number,
)
from portraitmatting.errors import PortraitmattingError

if TYPE_CHECKING:
    from portraitmatting.evaluate.evaluation import MattingMethod


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    _check_outputs(options)
    from portraitmatting.evaluate.benchmark import find_benchmark

    benchmark = find_benchmark(options.folder)
    print(f"{benchmark.folder}: {benchmark.layout}, {len(benchmark.samples)} images\n", flush=True)
    from portraitmatting.evaluate.contact_sheet import draw_contact_sheet
    from portraitmatting.evaluate.evaluation import evaluate
    from portraitmatting.evaluate.report import format_report
    from portraitmatting.images.files import write_image

    chosen = given(options, "regions", "band", "video", "worst", "seed")
    report = evaluate(benchmark, _methods(options), progress=True, **chosen)
    print(format_report(report))
    if options.csv:
        report.write_csv(options.csv)
    if options.json:
        report.write_json(options.json)
    if options.contact_sheet and report.worst:
        write_image(options.contact_sheet, draw_contact_sheet(report.worst))
    return FAILED if report.failures or not report.rows else 0


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written now, not after an hour of scoring."""
    for output in filter(None, (options.csv, options.json, options.contact_sheet)):
        if not output.parent.is_dir():
            raise PortraitmattingError(f"{output.parent}: no such folder: make it first")
        try:
            check_replaceable(output)
        except OSError as error:
            raise PortraitmattingError(
                f"{output}: cannot be written ({error.strerror}): choose another place"
            ) from error
    sheet = options.contact_sheet
    if sheet and sheet.suffix.lower().lstrip(".") not in choices.FORMATS:
        known = ", ".join(f".{name}" for name in choices.FORMATS)
        raise PortraitmattingError(f"{sheet}: no image file's name: use one of {known}")


def _methods(options: argparse.Namespace) -> list["MattingMethod"]:
    from portraitmatting.checkpoint.registry import DEFAULT, locate
    from portraitmatting.evaluate.evaluation import from_checkpoint, from_folder

    mattes = [_named(text) for text in options.mattes or ()]
    for name, folder in mattes:
        if name is None:
            raise PortraitmattingError(f"--mattes {folder}: give it a name, as in rvm={folder}")
    # Folders first: a wrong one is found before a network is loaded.
    folders = [from_folder(str(name), folder) for name, folder in mattes]
    sources = [_named(text) for text in options.checkpoint or ()]
    if not sources and not folders:
        sources = [(None, DEFAULT)]
    sizes = options.short_side or [None]
    ours = []
    for name, source in sources:
        name = name or locate(source)[0].stem
        for size in sizes:
            label = f"{name}@{size}" if len(sizes) > 1 else name
            chosen = given(options, "device", "precision")
            ours.append(from_checkpoint(source, label, short_side=size, **chosen))
    return ours + folders


def _named(text: str) -> tuple[str | None, str]:
    """NAME=PATH as its two parts; a path alone, even one with "=" in it, has no name."""
    name, equals, path = text.partition("=")
    return (name, path) if name and equals and not Path(text).exists() else (None, text)


def _check_checkpoint(text: str) -> str:
    check_source(_named(text)[1])
    return text


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting evaluate",
        description="Score mattes against the ground truth of a benchmark folder: P3M-10k, "
        "PPM-100, AIM-500, or plain image/ + alpha/ (+ trimap/). Exit code 1 if any image could "
        "not be scored.",
    )
    add = parser.add_argument
    add("folder", help="the benchmark's folder")
    add(
        "--checkpoint",
        nargs="+",
        metavar="[NAME=]PATH",
        type=checked(_check_checkpoint),
        help="checkpoints to score, by name or path (default: the default checkpoint, "
        "unless --mattes is given)",
    )
    add(
        "--mattes",
        nargs="+",
        metavar="NAME=FOLDER",
        help="mattes or cut-outs of any tool to score alike, named as the images are",
    )
    add(
        "--regions",
        nargs="+",
        choices=choices.REGIONS,
        help="pixels to score (default: whole)",
    )
    add(
        "--band",
        type=number(float, 1e-4, 0.5),
        help="where there are no trimaps, half the width of the unknown region around edges, "
        "as a fraction of the short side (default: 0.0125)",
    )
    add("--video", action="store_true", default=None, help="folders are clips: add dtSSD")
    add(
        "--short-side",
        nargs="+",
        type=checked(choices.check_short_side, int),
        metavar="PIXELS",
        help="working size; several are scored side by side (default: the checkpoint's)",
    )
    add_precision_option(add)
    add_device_option(add)
    add("--csv", type=Path, metavar="FILE", help="write the scores of every image")
    add("--json", type=Path, metavar="FILE", help="write scores, means, comparisons, protocol")
    add("--contact-sheet", type=Path, metavar="FILE", help="write an image of the worst cases")
    add(
        "--worst",
        type=number(int, 0, 1000),
        metavar="N",
        help="rows of the contact sheet (default: 8)",
    )
    add("--seed", type=number(int, 0, 2**63 - 1), help="of the intervals and tests (default: 0)")
    return parser
