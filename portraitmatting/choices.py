"""Every word and number that an option takes, and their checks; imports nothing heavy.

Command lines offer these words and answer a wrong one at once; the modules that need PyTorch or
OpenCV take the same constants from here. Each check returns its argument, or raises
PortraitmattingError, which names the value and what would be accepted.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from portraitmatting.errors import PortraitmattingError, one_line

MULTIPLE = 32
"""Working sizes are multiples of this: the network halves an image five times."""
LARGEST_SHORT_SIDE = 8192
PRESETS = {"live": 0.42, "fast": 0.6, "balanced": 0.8, "quality": 1.0}
"""Preset to its part of the short side that the checkpoint works best at. The weights and
everything after the network stay as they are: what the network does not see at a smaller size, the
guided filter takes from the image."""
KINDS = ("alpha", "rgba", "composite", "foreground")
"""What can be written of an image, each into a folder of this name."""
FORMATS = ("png", "webp", "tiff", "jpg", "tif", "jpeg")
OPAQUE_FORMATS = ("jpg", "jpeg")
"""Formats without transparency, which therefore hold no rgba."""
DEEP_FORMATS = ("png", "tiff", "tif")
"""Formats that hold 16 bits per channel."""
BITS = (8, 16)
METHODS = ("ml", "cf", "fast", "none")
"""How the person's colours are estimated."""
DEVICES = ("auto", "cpu", "cuda", "mps")
ONNX_DEVICES = ("auto", "cpu", "cuda", "directml", "coreml")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precision, besides "auto", to what PyTorch calls it."""
STORAGE = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""How a checkpoint's weights are stored, to what PyTorch calls it."""
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
    """`value`, if it lies in low..high, which NaN does not."""
    if not low <= value <= high:
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
    """`short_side`, if it is a multiple of 32 that an image could be worked at."""
    if not MULTIPLE <= short_side <= LARGEST_SHORT_SIDE or short_side % MULTIPLE:
        near = min(max(MULTIPLE, round(short_side / MULTIPLE) * MULTIPLE), LARGEST_SHORT_SIDE)
        raise PortraitmattingError(
            f"short side {short_side}: expected a multiple of {MULTIPLE}, for instance {near}"
        )
    return short_side


def check_device(name: str) -> str:
    """`name`, if it may name a device of PyTorch or onnxruntime, whether or not it is there."""
    kind, colon, index = name.partition(":")
    known = dict.fromkeys([*DEVICES, *ONNX_DEVICES])
    numbered = not colon or (kind in ("cuda", "directml") and re.fullmatch("[0-9]{1,3}", index))
    if kind not in known or not numbered:
        raise PortraitmattingError(
            f"unknown device {name!r}: use auto, cpu, cuda, cuda:1 or mps; of an ONNX file also "
            "directml, directml:1 or coreml"
        )
    return name


def check_precision(name: str) -> str:
    """`name`, if it is "auto" or one of `PRECISIONS`."""
    return check_word("precision", name, ["auto", *PRECISIONS])


def check_background(text: str) -> str:
    """`text`, if it is `BACKGROUND_SYNTAX`, as far as can be known without opening the file."""
    parse_background_syntax(text)
    return text


def parse_background_syntax(text: str) -> tuple[int, int, int] | float | str | Path:
    """The RGB of a colour (0..255, sRGB), the strength of "blur:0.05", the word "blur" or
    "checkerboard", or the path of a file that is there."""
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
