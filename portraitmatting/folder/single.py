"""One image in, one file out, also in a pipe: `portraitmatting folder in.jpg out.png`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portraitmatting.atomic import check_replaceable, make_folders
from portraitmatting.choices import OPAQUE_FORMATS
from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.folder.plan import VIDEOS, expand, plan_results, refuse_video
from portraitmatting.folder.results import ResultOptions, existing
from portraitmatting.images.decode import DecodedImage, decode
from portraitmatting.images.encode import WRITABLE, encode_image
from portraitmatting.images.files import read_image, write_image
from portraitmatting.images.listing import READABLE, unread_suffix

PIPE = "-"
"""Standard input or output."""


@dataclass(frozen=True)
class Single:
    """One image, and the one file that is made of it."""

    source: str
    """A path, or `PIPE`."""
    target: str
    """A path, or `PIPE`."""
    kind: str
    suffix: str
    bits: int | None


def names_a_file(inputs: Sequence[str], output: str) -> bool:
    """Whether `output` is to be a file: by its suffix, unless it is a folder."""
    if PIPE in (output, *inputs):
        return True
    path = Path(output)
    if output.endswith((os.sep, "/")) or os.path.isdir(path):
        return False
    suffix = path.suffix.lower()
    return suffix in READABLE | WRITABLE | VIDEOS or unread_suffix(path) is not None


def plan_single(
    inputs: Sequence[str],
    output: str,
    kinds: Sequence[str],
    image_format: str | None = None,
    bits: int | None = None,
    replace: bool = False,
) -> Single:
    """Check what is read and written, and that it can be written.

    Args:
        inputs: one image's path, or `PIPE`.
        output: a path, whose suffix is the format, or `PIPE`, for which it is PNG.
        kinds: one of `KINDS`.
        image_format: for `PIPE`, or the same as the suffix.
        bits: 8 or 16 per channel; None for as many as the image has.
        replace: whether an existing file may be replaced.

    Raises `PortraitmattingError`.
    """
    name = one_line(output)
    sources = [PIPE] if list(inputs) == [PIPE] else [str(path) for path in expand(inputs)]
    if len(sources) != 1:
        raise PortraitmattingError(
            f"{name}: names one file, and there are {len(sources)} inputs: name a folder for their "
            "results, as in -o mattes"
        )
    if len(kinds) != 1:
        raise PortraitmattingError(
            f"{name}: one file holds one kind of result, not {', '.join(kinds)}: name a folder"
        )
    (source,), (kind,) = sources, kinds
    suffix = f".{image_format or 'png'}" if output == PIPE else Path(output).suffix.lower()
    if suffix not in WRITABLE:
        raise PortraitmattingError(
            f"{name}: cannot write {suffix or 'a file without suffix'}: use "
            f"{', '.join(sorted(WRITABLE))}"
        )
    if image_format and _same(image_format) != _same(suffix.lstrip(".")):
        raise PortraitmattingError(f"{name}: is no {image_format}: leave --format out")
    if kind == "rgba" and suffix.lstrip(".") in OPAQUE_FORMATS:
        raise PortraitmattingError(
            f"{name}: JPEG has no transparency: name it .png, or give a --background"
        )
    plan_results("", [kind], suffix, bits)
    if source != PIPE:
        _check_source(source, name)
    if output != PIPE:
        _check_target(source, Path(output), replace)
    return Single(source, output, kind, suffix, bits)


def matte_single(plan: Single, predictor: Any, results: ResultOptions) -> bool:
    """Write the result of a `Predictor`; returns whether anybody is in the matte. Raises
    `ImageError`."""
    image = _read(plan.source)
    matte = predictor.predict(image)
    ((_, pixels),) = results.results(matte, [plan.kind], plan.bits)
    keeps = image.icc_profile, None if results.strip_metadata else image.metadata
    if plan.target == PIPE:
        sys.stdout.buffer.write(encode_image(pixels, plan.suffix, *keeps))
        sys.stdout.buffer.flush()
    else:
        make_folders(Path(plan.target).parent)
        write_image(plan.target, pixels, *keeps)
    return not matte.is_empty


def _read(source: str) -> DecodedImage:
    if source != PIPE:
        return read_image(source)
    try:
        return decode(sys.stdin.buffer.read())
    except ImageError as error:
        raise ImageError(f"standard input: {error}") from error


def _same(image_format: str) -> str:
    """One name for a format of two names."""
    return {"jpeg": "jpg", "tif": "tiff"}.get(image_format, image_format)


def _check_source(source: str, target: str) -> None:
    if os.path.isdir(source):
        raise PortraitmattingError(
            f"{target}: names one file, and {one_line(source)} is a folder: name a folder for its "
            "results"
        )
    if not os.path.exists(source):
        raise PortraitmattingError(f"{one_line(source)}: no such file or folder")
    refuse_video(Path(source))


def _check_target(source: str, target: Path, replace: bool) -> None:
    name = one_line(str(target))
    if os.path.lexists(target):
        if source != PIPE and os.path.exists(target) and os.path.samefile(source, target):
            raise PortraitmattingError(f"{name}: is the input itself: name another file")
        if not replace:
            raise PortraitmattingError(
                f"{name}: is there already: name another file, or replace it with --overwrite"
            )
    try:
        check_replaceable(existing(target.parent) / target.name)
    except OSError as error:
        raise PortraitmattingError(
            f"{name}: cannot be written ({error.strerror}): choose another output"
        ) from error
