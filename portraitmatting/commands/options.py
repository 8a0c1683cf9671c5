"""The options that are the same for one machine and for many."""

import argparse
from collections.abc import Callable


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """`kinds`, `image_format` and `bits` for a plan, `foreground` and `background` for
    `ResultOptions`, and `overwrite`; all None unless given."""
    add = parser.add_argument_group("results").add_argument
    add(
        "--output",
        dest="kinds",
        nargs="+",
        metavar="KIND",
        help="any of alpha, rgba, composite and foreground, named after INPUT and OUTPUT "
        "(default: alpha rgba)",
    )
    add(
        "--format",
        dest="image_format",
        metavar="FORMAT",
        help="png, webp, tiff or jpg (default: png)",
    )
    add(
        "--bits",
        type=int,
        metavar="N",
        help="8 or 16 per channel (default: as many as the image has)",
    )
    add(
        "--foreground",
        metavar="METHOD",
        help="how the person's colours are estimated: ml, cf (slow), fast or none (default: ml)",
    )
    add(
        "--background",
        metavar="WHAT",
        help="for composites: a colour, an image's path, blur, blur:0.05 or checkerboard "
        "(default: white)",
    )
    add(
        "--overwrite",
        action="store_true",
        default=None,
        help="do again what an earlier run has done",
    )


def add_network_options(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    """`preset`, `short_side` and `precision` for a `Predictor`, all None unless given; returns what
    adds more options to their group."""
    add = parser.add_argument_group("network").add_argument
    add(
        "--preset",
        help="fast, balanced or quality: 0.6, 0.8 or 1 of the working size (default: quality)",
    )
    add(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="working size of the preset quality, a multiple of 32 (default: the checkpoint's)",
    )
    add("--precision", help="auto, fp32, bf16 or fp16 (default: the checkpoint's)")
    return add
