"""From one picture's matte to the files that were asked for."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from portraitmatting.composite import composite, parse_background, rgba
from portraitmatting.depth import to_depth
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import METHODS, estimate_foreground
from portraitmatting.predictor import Matte


@dataclass(frozen=True)
class Style:
    """How results look."""

    foreground: str = "ml"
    """How the person's colours are estimated, as in `estimate_foreground`."""
    background: str = "white"
    """What composites stand on, as in `parse_background`."""
    bits: int | None = None
    """8 or 16 per channel; None for as many as the source has."""

    def __post_init__(self) -> None:
        if self.foreground not in METHODS:
            raise PortraitmattingError(
                f"unknown foreground method {self.foreground!r}: use one of {', '.join(METHODS)}"
            )
        if self.bits not in (None, 8, 16):
            raise PortraitmattingError(f"{self.bits} bits per channel: use 8 or 16")
        parse_background(self.background)

    def settings(self, kind: str) -> str:
        """Whatever of the style changes results of this kind, as one text."""
        parts = [str(self.bits)]
        if kind != "alpha":
            parts.append(self.foreground)
        if kind == "composite":
            parts.append(self.background)
            if os.path.isfile(self.background):
                parts.append(str(Path(self.background).stat().st_mtime_ns))
        return " ".join(parts)


class Results:
    """Makes the results of one kind after another from a matte; called from several threads."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._background = parse_background(style.background)

    def make(self, matte: Matte, kinds: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(kind, pixels) for each of `kinds`; the foreground is estimated once, if any needs it."""
        dtype = {8: np.uint8, 16: np.uint16, None: matte.image.dtype}[self._style.bits]
        if any(kind != "alpha" for kind in kinds):
            image = to_depth(matte.image, dtype)
            foreground = estimate_foreground(image, matte.alpha, self._style.foreground)
        for kind in kinds:
            if kind == "alpha":
                yield kind, to_depth(matte.alpha, dtype)
            elif kind == "rgba":
                yield kind, rgba(foreground, matte.alpha)
            elif kind == "foreground":
                yield kind, foreground
            else:
                backdrop = self._background(image, matte.alpha)
                yield kind, composite(foreground, matte.alpha, backdrop)
