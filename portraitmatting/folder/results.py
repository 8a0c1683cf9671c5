"""How results look. Imports no PyTorch: whether a rerun has anything to do depends on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from portraitmatting.choices import METHODS, check_number
from portraitmatting.compositing import Background, parse_background
from portraitmatting.errors import PortraitmattingError
from portraitmatting.folder.journal import state_of

Method = Literal["ml", "cf", "fast", "none"]


@dataclass(frozen=True)
class ResultOptions:
    """How results look. Raises `PortraitmattingError` for what cannot be."""

    foreground: Method = "ml"
    """How the person's colours are estimated, as in `estimate_foreground`."""
    background: str = "white"
    """What composites stand on, as in `parse_background`."""
    crop: float | None = None
    """Cut results to the person's box and a margin, in parts of its longer side; None: whole."""
    strip_metadata: bool = False
    """Leave out EXIF, XMP and resolution, which results keep otherwise."""

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
        """All that changes results of this kind, as one text."""
        texts: list[str] = [] if kind == "alpha" else [self.foreground]
        if kind == "composite":
            texts += [self.background, state_of(Path(self.background))]
        if self.crop is not None:
            texts.append(f"crop {self.crop:g}")
        if self.strip_metadata:
            texts.append("stripped")
        return " ".join(texts)

    def prepare(self, kinds: Sequence[str]) -> None:
        """Load what `results` of these kinds will need, which may take long, and says so."""
        if any(kind != "alpha" for kind in kinds):
            from portraitmatting.foreground import estimate_foreground

            # Not blank: closed form fails on blank images.
            image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
            estimate_foreground(image, image[..., 0] / np.float32(48), self.foreground)

    def results(
        self, matte: Any, kinds: Sequence[str], bits: int | None
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """(kind, pixels) of a `Matte` for each of `kinds`, uint8 or uint16 as `bits` says, or as
        the image is. May be called from several threads."""
        if self.crop is not None:
            matte = matte.crop(self.crop)
        dtype = f"uint{bits}" if bits else None
        for kind in kinds:
            yield kind, matte.result(kind, self._backdrop, self.foreground, dtype)
