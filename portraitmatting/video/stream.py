"""Frames in, matted frames out: the generator that both jobs, and notebooks, are made of."""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background, as_background
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import METHODS
from portraitmatting.images.pixels import to_unit
from portraitmatting.matte import Matte
from portraitmatting.predictor import Predictor
from portraitmatting.video.auto_size import AutoSize
from portraitmatting.video.backgrounds import GREEN, MovingBackground
from portraitmatting.video.reader import Frame
from portraitmatting.video.smoothing import Smoother


@dataclass(frozen=True, eq=False)
class MattedFrame:
    """A frame with its matte, and what can be made of it; colours are estimated on first use."""

    frame: Frame
    matte: Matte
    background: Background
    method: str
    """How the foreground's colours are estimated, as in `estimate_foreground`."""
    short_side: int
    """At which working size the network ran."""
    network_seconds: float
    """What the network took for this frame, with resizing; its share of the batch."""
    smoothing_seconds: float
    matting_seconds: float = 0.0
    """How long this frame waited for its matte, smoothing not counted."""
    age: float = 0.0
    """Seconds by which the frame that the network saw is older than this one; 0 if it is this."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """The frame as it came, HxWx3 RGB uint8."""
        return self.frame.image

    @property
    def alpha(self) -> NDArray[np.float32]:
        """HxW in [0, 1]."""
        return self.matte.alpha

    @property
    def foreground(self) -> NDArray[np.uint8]:
        """The person's own colours, HxWx3 RGB uint8."""
        return self.result("foreground")

    def rgba(self) -> NDArray[np.uint8]:
        """The cut-out, HxWx4 uint8, straight alpha."""
        return self.result("rgba")

    def composite(self) -> NDArray[np.uint8]:
        """The person before the background, HxWx3 RGB uint8."""
        return self.result("composite")

    def result(self, kind: str) -> NDArray[np.uint8]:
        """The pixels of one kind, as `Matte.result` makes them."""
        if kind == "composite" and isinstance(self.background, MovingBackground):
            self.background.seek(self.frame.seconds)
        return self.matte.result(kind, self.background, self.method)  # type: ignore[arg-type]


def matte_stream(
    frames: Iterable[NDArray[np.uint8] | Frame],
    predictor: Predictor,
    background: Background | NDArray[np.uint8] | str = GREEN,
    foreground: str = "fast",
    smooth: bool = True,
    batch_size: int = 1,
    auto_size: AutoSize | None = None,
) -> Iterator[MattedFrame]:
    """Frames of a video, all of one size -> one `MattedFrame` each.

    Args:
        frames: HxWx3 RGB uint8 or `Frame`; bare arrays count as 25 frames per second.
        predictor: makes the mattes.
        background: a `Background`, an image HxWx3, or text as `parse_background` takes it.
        foreground: a method of `estimate_foreground`.
        smooth: steady the matte over time (`Smoother`).
        batch_size: so many frames go through the network together, which delays live images.
        auto_size: chooses the working size by the time that frames take, else the predictor's is
            used.

    Raises PortraitmattingError for unknown methods and backgrounds at the call, and for frames that
    are no images on the way.
    """
    if foreground not in METHODS:
        raise PortraitmattingError(f"foreground method {foreground!r}: use {', '.join(METHODS)}")
    if batch_size < 1:
        raise PortraitmattingError(f"batch size {batch_size}: use 1 or more")
    behind = as_background(background)
    return _matted(frames, predictor, behind, foreground, smooth, batch_size, auto_size)


def _matted(
    frames: Iterable[NDArray[np.uint8] | Frame],
    predictor: Predictor,
    background: Background,
    foreground: str,
    smooth: bool,
    batch_size: int,
    auto_size: AutoSize | None,
) -> Iterator[MattedFrame]:
    smoother = Smoother() if smooth else None
    source = (
        frame if isinstance(frame, Frame) else Frame(frame, index, Fraction(1, 25), 1)
        for index, frame in enumerate(frames)
    )
    while batch := list(itertools.islice(source, batch_size)):
        if auto_size is not None:
            predictor = predictor.at_short_side(auto_size.short_side)
        before = time.perf_counter()
        mattes = predictor.predict_batch([frame.image for frame in batch])
        seconds = (time.perf_counter() - before) / len(batch)
        if auto_size is not None:
            auto_size.network_took(seconds)
        for frame, matte in zip(batch, mattes, strict=True):
            before = time.perf_counter()
            matte = steadied(matte, smoother)
            if frame.alpha is not None:  # what is transparent in the source stays so
                bound = to_unit(frame.alpha)
                matte = replace(matte, alpha=np.minimum(matte.alpha, bound))
            yield MattedFrame(
                frame,
                matte,
                background,
                foreground,
                predictor.short_side,
                seconds,
                time.perf_counter() - before,
                seconds,
            )


def steadied(matte: Matte, smoother: Smoother | None) -> Matte:
    """The matte, averaged over time where there is a smoother."""
    if smoother is None:
        return matte
    return replace(matte, alpha=smoother(matte.image, matte.alpha))
