"""The results of images: options for their look, and the names of their files.

Imports no PyTorch: whether a second run has anything to do depends on the options.
"""

import contextlib
import os
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.choices import METHODS, Method, check_number
from portraitmatting.compositing import Background, parse_background
from portraitmatting.errors import PortraitmattingError, one_line


@dataclass(frozen=True)
class ResultOptions:
    """The look of results. Raises `PortraitmattingError` for wrong options."""

    foreground: Method = "ml"
    """The method for the person's colours, as in `estimate_foreground`."""
    background: str = "white"
    """The background of composites, as in `parse_background`."""
    crop: float | None = None
    """Cut results to the person's box and a margin, a part of its longer side; None: do not cut."""
    strip_metadata: bool = False
    """Leave out EXIF, XMP and resolution, which results keep by default."""

    def __post_init__(self) -> None:
        if self.foreground not in METHODS:
            raise PortraitmattingError(
                f"unknown foreground method {self.foreground!r}: use one of {', '.join(METHODS)}"
            )
        if self.crop is not None:
            check_number("crop margin", self.crop, 0, 10)
        _ = self._backdrop

    @cached_property
    def _backdrop(self) -> Background:
        return parse_background(self.background)

    def settings(self, kind: str) -> str:
        """All options that change results of this kind, as one text."""
        texts: list[str] = [] if kind == "alpha" else [self.foreground]
        if kind == "composite":
            texts += [self.background, state_of(Path(self.background))]
        if self.crop is not None:
            texts.append(f"crop {self.crop:g}")
        if self.strip_metadata:
            texts.append("stripped")
        return " ".join(texts)

    def prepare(self, kinds: Sequence[str]) -> None:
        """Load what results of these kinds need. This may take a minute, and then prints a line."""
        if any(kind != "alpha" for kind in kinds):
            from portraitmatting.foreground import estimate_foreground

            # Closed form fails on images of one colour.
            image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
            estimate_foreground(image, image[..., 0] / np.float32(48), self.foreground)

    def results(
        self, matte: Any, kinds: Sequence[str], bits: int | None
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """(kind, pixels) of a `Matte` for each of `kinds`, of 8 or 16 `bits` (None: as the image).
        May be called from several threads."""
        if self.crop is not None:
            matte = matte.crop(self.crop)
        dtype = f"uint{bits}" if bits else None
        for kind in kinds:
            yield kind, matte.result(kind, self._backdrop, self.foreground, dtype)


def state_of(source: Path) -> str:
    """A text that differs once a file has changed: its length and time of change."""
    try:
        status = source.stat()
    except OSError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns}"


def result_names(
    sources: Iterable[Path], suffix: str, folds: Callable[[], bool]
) -> dict[Path, Path]:
    """The names of results that keep their image's suffix, a.jpg.png, since they would share a name
    with another's (a.jpg beside a.png). All other names are `source.with_suffix(suffix)`.

    `folds`, called only if it matters, is whether Anna and anna are one name at the output. Raises
    `PortraitmattingError` if two names are the same even with their suffixes.
    """
    names = {source: source.with_suffix(suffix) for source in sources}
    kept: dict[Path, Path] = {}
    while sharing := list(_sharing(names, folds)):
        more = {
            source: source.with_name(source.name + suffix) for group in sharing for source in group
        }
        if more.keys() <= kept.keys():
            first, second = sharing[0][:2]
            raise PortraitmattingError(
                f"{one_line(str(first))} and {one_line(str(second))} would both be written as one "
                f"file at the output, {one_line(str(names[first]))}: rename one of them, or give "
                "each its own output"
            )
        kept |= more
        names |= more
    return kept


def _sharing(names: dict[Path, Path], folds: Callable[[], bool]) -> Iterator[list[Path]]:
    """Groups of images whose results have one name."""
    groups: dict[str, list[Path]] = {}
    for source, name in names.items():
        groups.setdefault(folded(str(name)), []).append(source)
    for group in groups.values():
        if len(group) == 1:
            continue
        if folds():
            yield group
            continue
        same: dict[Path, list[Path]] = {}
        for source in group:
            same.setdefault(names[source], []).append(source)
        yield from (sources for sources in same.values() if len(sources) > 1)


def folded(name: str) -> str:
    """The same text for names that are one name on some file systems: Anna and anna, or an accent
    as one character or as two."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def folds_names(folder: Path) -> bool:
    """Whether names that `folded` makes equal are one name at `folder`, as on exFAT, SMB and macOS.
    A temporary file there, or in the nearest folder above that exists, finds out.
    """
    folder = existing(folder)
    token = secrets.token_hex(8)
    probe = folder / f".{token}-\N{LATIN SMALL LETTER E WITH ACUTE}.tmp"
    try:
        probe.touch(exist_ok=False)
        others = (token.upper() + "-É", token + "-e\N{COMBINING ACUTE ACCENT}")
        return any(os.path.exists(folder / f".{other}.tmp") for other in others)
    except OSError:  # the folder cannot be written to, which is reported later
        return False
    finally:
        with contextlib.suppress(OSError):  # of a file instead of a folder, too
            probe.unlink()


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    folder = folder.absolute()
    while not os.path.lexists(folder) and folder.parent != folder:
        folder = folder.parent
    return folder
