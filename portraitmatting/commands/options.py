"""Options that several commands share, and argument types that check at once."""

import argparse
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from portraitmatting import choices
from portraitmatting.checkpoint.registry import check_source
from portraitmatting.cli import given
from portraitmatting.errors import PortraitmattingError

_Value = TypeVar("_Value")


def checked(
    check: Callable[[Any], _Value], kind: Callable[[str], Any] = str
) -> Callable[[str], _Value]:
    """An argparse type: the text as `kind`, then through `check`, whose PortraitmattingError
    becomes the parser's one line."""

    def convert(text: str) -> _Value:
        value = kind(text)
        try:
            return check(value)
        except PortraitmattingError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    convert.__name__ = kind.__name__  # argparse names it where `kind` fails
    return convert


def number(
    kind: Callable[[str], Any], low: float, high: float = float("inf")
) -> Callable[[str], Any]:
    """An argparse type: a number of `kind`, int or float, in low..high."""

    def check(value: Any) -> Any:
        if not low <= value <= high or value == float("inf"):
            bounds = f"{low:g} to {high:g}" if high < float("inf") else f"{low:g} or more"
            raise PortraitmattingError(f"{value}: use {bounds}")
        return value

    return checked(check, kind)


def image_format(text: str) -> str:
    """An argparse type: "PNG" and ".png" are "png"."""
    return text.lower().removeprefix(".")


def require_package(name: str, purpose: str, extra: str) -> None:
    """Raise PortraitmattingError, beginning with `purpose`, unless the package `name` is installed,
    which comes with an extra of ours."""
    if importlib.util.find_spec(name) is None:
        raise PortraitmattingError(f'{purpose} {name}: pip install -e ".[{extra}]"')


def load_predictor(options: argparse.Namespace, *names: str) -> Any:
    """The `Predictor` of --checkpoint and --device, with the options `names` that were given."""
    from portraitmatting.checkpoint.load import load_model
    from portraitmatting.predictor import Predictor

    model = load_model(options.checkpoint, options.device or "auto")
    return Predictor(model, **given(options, *names))


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """`kinds`, `image_format` and `bits` for a plan, `foreground`, `background`, `crop` and
    `strip_metadata` for `ResultOptions`, and `overwrite`; all None unless given."""
    add = parser.add_argument_group("results").add_argument
    add(
        "--output",
        dest="kinds",
        nargs="+",
        metavar="KIND",
        choices=choices.KINDS,
        help="any of alpha, rgba, composite and foreground, named after INPUT and OUTPUT "
        "(default: alpha rgba)",
    )
    add(
        "--format",
        dest="image_format",
        metavar="FORMAT",
        type=image_format,
        choices=choices.FORMATS,
        help="png, webp, tiff or jpg (default: png)",
    )
    add(
        "--bits",
        type=int,
        metavar="N",
        choices=choices.BITS,
        help="8 or 16 per channel (default: as many as the image has)",
    )
    add_foreground_option(add, "ml")
    add(
        "--background",
        metavar="WHAT",
        type=checked(choices.check_background),
        help="for composites: a colour, an image's path, blur, blur:0.05 or checkerboard "
        "(default: white)",
    )
    add(
        "--crop",
        metavar="MARGIN",
        type=number(float, 0, 10),
        nargs="?",
        const=0.05,
        help="cut results to the person and a margin, in parts of the longer side (default: off; "
        "0.05 without a number)",
    )
    add(
        "--strip-metadata",
        action="store_true",
        default=None,
        help="leave out EXIF, XMP and resolution (default: keep them)",
    )
    add(
        "--overwrite",
        action="store_true",
        default=None,
        help="do again what an earlier run has done",
    )


def add_foreground_option(add: Callable[..., argparse.Action], default: str) -> None:
    """`foreground`, None unless given; `default` is only named."""
    add(
        "--foreground",
        metavar="METHOD",
        choices=choices.METHODS,
        help="how the person's colours are estimated: ml, cf (slow), fast or none "
        f"(default: {default})",
    )


def add_network_options(
    parser: argparse.ArgumentParser, presets: Iterable[str] = choices.PRESETS
) -> Callable[..., argparse.Action]:
    """`preset`, `short_side`, `precision` and `checkpoint`, all None unless given; returns what
    adds more options to their group."""
    add = parser.add_argument_group("network").add_argument
    known = list(presets)
    add(
        "--preset",
        choices=known,
        metavar="NAME",
        help="live, fast, balanced or quality: 0.42, 0.6, 0.8 or 1 of the working size"
        + ("; live also auto, which follows --target-rate" if "auto" in known else "")
        + f" (default: quality{', live auto' if 'auto' in known else ''})",
    )
    add_short_side_option(add)
    add_precision_option(add)
    add_checkpoint_option(add)
    return add


def add_short_side_option(add: Callable[..., argparse.Action]) -> None:
    """`short_side`, None unless given."""
    add(
        "--short-side",
        type=checked(choices.check_short_side, int),
        metavar="PIXELS",
        help="working size of the preset quality, a multiple of 32 (default: the checkpoint's)",
    )


def add_precision_option(add: Callable[..., argparse.Action]) -> None:
    """`precision`, None unless given."""
    add(
        "--precision",
        metavar="TYPE",
        choices=("auto", *choices.PRECISIONS),
        help="auto, fp32, bf16 or fp16 (default: the checkpoint's)",
    )


def add_checkpoint_option(add: Callable[..., argparse.Action]) -> None:
    """`checkpoint`, None unless given."""
    add(
        "--checkpoint",
        metavar="NAME",
        type=checked(check_source),
        help="a name in checkpoints/ or a path (default: portraitmatting_swint)",
    )


def add_device_option(add: Callable[..., argparse.Action]) -> None:
    """`device`, None unless given."""
    add(
        "--device",
        type=checked(choices.check_device),
        help="auto, cpu, cuda, cuda:1 or mps; of an ONNX file also directml or coreml "
        "(default: auto)",
    )
