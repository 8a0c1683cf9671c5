"""The values of options, and their checks; imports nothing heavy.

Command lines check options by these constants without loading PyTorch or OpenCV; the modules that
need those libraries use the same constants. Each check returns its argument, or raises
PortraitmattingError, which names the value and what is accepted.
"""

import os
import re
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar

from portraitmatting.errors import PortraitmattingError, one_line

MULTIPLE = 32
"""Working sizes are multiples of this: the network halves an image five times."""
LARGEST_SHORT_SIDE = 8192
PRESETS = {"live": 0.42, "fast": 0.6, "balanced": 0.8, "quality": 1.0}
"""Preset to the working short side, as a part of the checkpoint's. The weights and the steps after
the network are the same: details that the network does not see at a smaller size, the guided filter
takes from the image."""
KINDS = ("alpha", "rgba", "composite", "foreground")
"""Kinds of results, and the names of their folders."""
FORMATS = ("png", "webp", "tiff", "jpg", "tif", "jpeg")
OPAQUE_FORMATS = ("jpg", "jpeg")
"""Formats without transparency, which therefore hold no rgba."""
DEEP_FORMATS = ("png", "tiff", "tif")
"""Formats that hold 16 bits per channel."""
BITS = (8, 16)
METHODS = ("ml", "cf", "fast", "none")
"""Methods that estimate the person's colours."""
DEVICES = ("auto", "cpu", "cuda", "mps")
ONNX_DEVICES = ("auto", "cpu", "cuda", "directml", "coreml")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precisions, besides "auto", and PyTorch's names of them."""
STORAGE = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""Storage of a checkpoint's weights, and PyTorch's names of it."""
ONNX_PRECISIONS = ("fp32", "fp16")
REGIONS = ("whole", "unknown")
"""Pixels that mattes are scored on."""
BACKGROUND_SYNTAX = "a colour (#rrggbb, #rgb or a name), blur, blur:0.05, checkerboard or a file"

_Number = TypeVar("_Number", int, float)


def check_word(what: str, word: str, known: Iterable[str]) -> str:
    """`word`, if it is one of `known`; `what` names the option in the error."""
    known = list(known)
    if word not in known:
        raise PortraitmattingError(f"{what} {word!r}: use {', '.join(known)}")
    return word


def check_number(what: str, value: _Number, low: float, high: float) -> _Number:
    """`value`, if it is in low..high; NaN is not."""
    if not isinstance(value, Real) or not low <= value <= high:
        raise PortraitmattingError(f"{what} {value}: use {low:g} to {high:g}")
    return value


def check_preset(preset: str, *others: str) -> str:
    """`preset`, if it is one of `others` or of `PRESETS`."""
    return check_word("preset", preset, [*others, *PRESETS])


def preset_short_side(short_side: int, preset: str) -> int:
    """The working short side of `preset`, a multiple of 32, where "quality" has `short_side`."""
    check_preset(preset)
    return max(1, round(short_side * PRESETS[preset] / MULTIPLE)) * MULTIPLE


def check_short_side(short_side: int) -> int:
    """`short_side`, if it is a multiple of 32 up to 8192."""
    if not isinstance(short_side, Integral):
        raise PortraitmattingError(
            f"short side {short_side!r}: expected an integer, a multiple of {MULTIPLE}"
        )
    if not MULTIPLE <= short_side <= LARGEST_SHORT_SIDE or short_side % MULTIPLE:
        near = min(max(MULTIPLE, round(short_side / MULTIPLE) * MULTIPLE), LARGEST_SHORT_SIDE)
        raise PortraitmattingError(
            f"short side {short_side}: expected a multiple of {MULTIPLE}, for instance {near}"
        )
    return short_side


def check_device(name: str) -> str:
    """`name`, if it can be a device of PyTorch or onnxruntime, whether or not it is present."""
    kind, colon, index = name.partition(":")
    numbered = not colon or (kind in ("cuda", "directml") and re.fullmatch("[0-9]{1,3}", index))
    if kind not in (*DEVICES, *ONNX_DEVICES) or not numbered:
        raise PortraitmattingError(
            f"unknown device {name!r}: use auto, cpu, cuda, cuda:1 or mps; of an ONNX file also "
            "directml, directml:1 or coreml"
        )
    return name


def check_precision(name: str) -> str:
    """`name`, if it is "auto" or one of `PRECISIONS`."""
    return check_word("precision", name, ["auto", *PRECISIONS])


def check_background(text: str) -> str:
    """`text`, if it is `BACKGROUND_SYNTAX`; a file need only exist."""
    parse_background_syntax(text)
    return text


def parse_background_syntax(text: str) -> tuple[int, int, int] | float | str | Path:
    """The RGB of a colour (0..255, sRGB), the strength of "blur:0.05", the word "blur" or
    "checkerboard", or the path of a file that exists."""
    if text in ("checkerboard", "chequer"):
        return "checkerboard"
    if text == "blur":
        return text
    if text.startswith("blur:"):
        try:
            strength = float(text.removeprefix("blur:"))
        except ValueError:
            strength = 0.0
        if not 0 < strength <= 0.5:
            raise PortraitmattingError(
                f"background {one_line(repr(text))}: blur takes a strength above 0 up to 0.5, as "
                "in blur:0.05"
            )
        return strength
    try:
        return parse_color(text)
    except PortraitmattingError:
        if not text.strip() or "\0" in text or not os.path.isfile(text):
            raise PortraitmattingError(
                f"background {one_line(repr(text))} is not {BACKGROUND_SYNTAX} that is there"
            ) from None
    return Path(text)


def parse_color(text: str) -> tuple[int, int, int]:
    """ "#rrggbb", "#rgb" or a CSS name or function as sRGB, 0..255."""
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
        if alpha or not all(0 <= channel <= 255 for channel in (red, green, blue)):
            raise ValueError("transparent, or out of range")
    except ValueError:
        raise PortraitmattingError(f"{text!r} is no colour: use #rrggbb or a name") from None
    return red, green, blue
