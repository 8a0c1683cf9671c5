"""Backgrounds that move: a video behind the person, looped."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background, image_background, parse_background
from portraitmatting.errors import one_line
from portraitmatting.images.kinds import READABLE
from portraitmatting.images.pixels import to_dtype
from portraitmatting.video.ffmpeg import VideoError, ffmpeg_name

GREEN = "#00b140"
"""The usual chroma key, for whoever names no background."""
_LEAP_SECONDS = 5.0
"""So much time is leapt over at once, as when a background was not chosen for a while."""


@runtime_checkable
class MovingBackground(Protocol):
    """A `Background` that changes with time."""

    def seek(self, seconds: float) -> None:
        """Show this moment from now on."""

    def __call__(self, image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]: ...


class VideoBackground:
    """A `Background` that plays a video file, looped, covering the image.

    It shows the moment that `seek` was last called with, so that it runs at its own speed whatever
    the rate of the frames before it. Time must not run backwards but by a restart from 0. Raises
    `VideoError` for what OpenCV cannot play.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._open()
        self._shown = self._next()
        if self._shown is None:
            raise VideoError(
                f"background {one_line(self._path)}: cannot be played as a video: "
                "check the path, or convert it to MP4"
            )
        self._index, self._start = 0, 0
        self._cover = image_background(self._shown)

    def _open(self) -> None:
        self._capture = cv2.VideoCapture(ffmpeg_name(self._path))
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._rate = rate if 0 < rate < 1000 else 25.0

    def _next(self) -> NDArray[np.uint8] | None:
        there, bgr = self._capture.read()
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8) if there else None

    def seek(self, seconds: float) -> None:
        """Show the frame of this moment, counted from the first call's video start."""
        wanted = int(seconds * self._rate + 1e-6)
        if wanted < self._index:  # a new run
            self._capture.release()
            self._open()
            self._index = -1
        if wanted == self._index:
            return
        if wanted > self._index + _LEAP_SECONDS * self._rate:
            length = round(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, wanted % max(1, length))
            self._index = wanted - 1
        while self._index < wanted:
            self._index += 1
            # Frames that are not shown are skipped without decoding them to pixels.
            if self._index < wanted and self._capture.grab():
                continue
            shown = self._next()
            if shown is None:  # the end: once more from the start
                self._capture.release()
                self._open()
                shown = self._next()
            if shown is not None:
                self._shown = shown
        assert self._shown is not None
        self._cover = image_background(self._shown)

    def __call__(self, image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        return to_dtype(self._cover(image, alpha), image.dtype)


def parse_video_background(text: str) -> Background:
    """As `parse_background`, and the path of a video. Raises PortraitmattingError likewise."""
    path = Path(text)
    if path.suffix.lower() not in READABLE and path.is_file():
        return VideoBackground(text)
    return parse_background(text)


def live_backgrounds(texts: Sequence[str] = ()) -> list[tuple[str, Background]]:
    """(name, background) for each text, as `parse_video_background` takes them, and then for blur,
    green and checkerboard, so that there is always something to choose from."""
    chosen = dict.fromkeys([*texts, "blur", GREEN, "checkerboard"])
    return [(_name(text), parse_video_background(text)) for text in chosen]


def _name(text: str) -> str:
    return Path(text).name if Path(text).is_file() else text
