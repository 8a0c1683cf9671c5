"""The allowed values of options, and functions that check them.

This module imports nothing heavy, so that command lines can check options without loading PyTorch
or OpenCV; the modules that need those libraries use the same constants. Each check returns its
argument, or raises PortraitmattingError with the value and what is allowed.
"""

import os
import re
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TypeVar, get_args

from portraitmatting.errors import PortraitmattingError, one_line

MULTIPLE = 32
"""Working sizes are multiples of this: the network halves an image five times."""
LARGEST_SHORT_SIDE = 8192
PRESETS = {"live": 0.42, "fast": 0.6, "balanced": 0.8, "quality": 1.0}
"""Presets, and their working short side as a share of the checkpoint's. The weights and the steps
after the network are the same; the guided filter takes from the image the details that the network
does not see at a smaller size."""
KINDS = ("alpha", "rgba", "composite", "foreground")
"""Kinds of results, and the names of their folders."""
FORMATS = ("png", "webp", "tiff", "jpg", "tif", "jpeg")
OPAQUE_FORMATS = ("jpg", "jpeg")
"""Formats without transparency, so without "rgba"."""
DEEP_FORMATS = ("png", "tiff", "tif")
"""Formats that hold 16 bits per channel."""
BITS = (8, 16)
Method = Literal["ml", "cf", "fast", "none"]
"""Methods of `estimate_foreground`."""
METHODS: tuple[str, ...] = get_args(Method)
DEVICES = ("auto", "cpu", "cuda", "mps")
ONNX_DEVICES = ("auto", "cpu", "cuda", "directml", "coreml")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precisions, besides "auto", and PyTorch's names of them."""
STORAGE = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""Dtypes that a checkpoint stores weights in, and PyTorch's names of them."""
ONNX_PRECISIONS = ("fp32", "fp16")
REGIONS = ("whole", "unknown")
"""The pixels on which mattes are scored: all, or the unknown region of the trimap."""
BACKGROUND_SYNTAX = "a colour (#rrggbb, #rgb or a name), blur, blur:0.05, checkerboard or a file"

_Number = TypeVar("_Number", int, float)


def check_word(option: str, word: str, allowed: Iterable[str]) -> str:
    """`word`, if it is one of the allowed ones; `option` is its name in the error."""
    allowed = list(allowed)
    if word not in allowed:
        raise PortraitmattingError(f"{option} {word!r}: use {', '.join(allowed)}")
    return word


def check_number(option: str, value: _Number, low: float, high: float) -> _Number:
    """`value`, if it is a number from `low` to `high`, which NaN is not.

    Args:
        option: its name in the error.
        value: what is checked.
        low: the smallest allowed value.
        high: the largest allowed value.
    """
    if not isinstance(value, Real) or not low <= value <= high:
        raise PortraitmattingError(f"{option} {value}: use {low:g} to {high:g}")
    return value


def check_preset(preset: str, *others: str) -> str:
    """`preset`, if it is one of `PRESETS` or of `others`."""
    return check_word("preset", preset, [*others, *PRESETS])


def preset_short_side(short_side: int, preset: str) -> int:
    """The working short side of a preset, a multiple of 32; that of "quality" is `short_side`."""
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
    """`name`, if it is the name of a device for PyTorch or onnxruntime, on any machine."""
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
    """`text`, if `parse_background_syntax` takes it. Whether a file is an image is not checked."""
    parse_background_syntax(text)
    return text


def parse_background_syntax(text: str) -> tuple[int, int, int] | float | str | Path:
    """What `BACKGROUND_SYNTAX` describes: sRGB 0..255 for a colour, the strength for "blur:0.05",
    the words "blur" and "checkerboard" themselves, a path for a file that exists. Raises
    PortraitmattingError for anything else."""
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
                f"background {one_line(repr(text))} is not {BACKGROUND_SYNTAX} that exists"
            ) from None
    return Path(text)


def parse_color(text: str) -> tuple[int, int, int]:
    """The sRGB values 0..255 of "#rrggbb", "#rgb", a CSS name or a CSS function. Raises
    PortraitmattingError for anything else, and for transparent colours."""
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
        if alpha or not all(0 <= channel <= 255 for channel in (red, green, blue)):
            raise ValueError("transparent, or out of range")
    except ValueError:
        raise PortraitmattingError(f"{text!r} is no colour: use #rrggbb or a name") from None
    return red, green, blue
