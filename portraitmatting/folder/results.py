"""From one image's matte to the results that were asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background, parse_background
from portraitmatting.errors import PortraitmattingError
from portraitmatting.folder.journal import state_of
from portraitmatting.foreground import METHODS, Method, estimate_foreground
from portraitmatting.matte import Matte


@dataclass(frozen=True)
class ResultOptions:
    """How results look. Raises `PortraitmattingError` for what cannot be."""

    foreground: Method = "ml"
    """How the person's colours are estimated, as in `estimate_foreground`."""
    background: str = "white"
    """What composites stand on, as in `parse_background`."""

    def __post_init__(self) -> None:
        if self.foreground not in METHODS:
            raise PortraitmattingError(
                f"unknown foreground method {self.foreground!r}: use one of {', '.join(METHODS)}"
            )
        _ = self._backdrop

    @cached_property
    def _backdrop(self) -> Background:
        return parse_background(self.background)

    def settings(self, kind: str) -> str:
        """Whatever of the style changes results of this kind, as one text."""
        if kind == "alpha":
            return ""
        if kind != "composite":
            return self.foreground
        return f"{self.foreground} {self.background} {state_of(Path(self.background))}"

    def prepare(self, kinds: Sequence[str]) -> None:
        """Load what `results` of these kinds will need, which may take long, and says so."""
        if any(kind != "alpha" for kind in kinds):
            # Not blank, over which closed form would stumble.
            image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
            estimate_foreground(image, image[..., 0] / np.float32(48), self.foreground)

    def results(
        self, matte: Matte, kinds: Sequence[str], bits: int | None
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """(kind, pixels) for each of `kinds`, uint8 or uint16 as `bits` says, or as the image is.
        May be called from several threads."""
        dtype = f"uint{bits}" if bits else None
        for kind in kinds:
            yield kind, matte.result(kind, self._backdrop, self.foreground, dtype)
