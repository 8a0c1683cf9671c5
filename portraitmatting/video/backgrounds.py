"""Backgrounds for videos: the still ones, and a video behind the person, looped."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background, image_background, parse_background
from portraitmatting.errors import one_line
from portraitmatting.images.listing import READABLE
from portraitmatting.video.ffmpeg import VideoError, ffmpeg_name

GREEN = "#00b140"
"""The usual chroma key: the background where none is given."""
_SKIP_SECONDS = 5.0
"""A later moment than this is sought instead of decoding every frame up to it: a background may
not have been shown for a while."""


@runtime_checkable
class MovingBackground(Protocol):
    """A background that changes with time."""

    def at(self, seconds: float) -> Background:
        """What it is at this moment."""


class VideoBackground:
    """A `Background` that plays a video file, looped, covering the image.

    It shows the moment that `at` was last called with, so that its speed does not depend on the
    rate of the frames in front of it. For an earlier moment it starts again. Raises `VideoError`
    for files that OpenCV cannot play.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._reading = threading.Lock()
        self._open()
        image = self._next()
        if image is None:
            raise VideoError(
                f"background {one_line(self._path)}: cannot be played as a video: "
                "check the path, or convert it to MP4"
            )
        self._index = 0
        self._background = image_background(image)

    def _open(self) -> None:
        self._capture = cv2.VideoCapture(ffmpeg_name(self._path))
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._rate = rate if 0 < rate < 1000 else 25.0

    def _next(self) -> NDArray[np.uint8] | None:
        ok, bgr = self._capture.read()
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8) if ok else None

    def at(self, seconds: float) -> Background:
        """The frame of this moment, which counts from the start of the first round; earlier, the
        first frame. May be called from several threads at once."""
        wanted = max(0, int(seconds * self._rate + 1e-6))
        with self._reading:
            return self._frame(wanted)

    def _frame(self, wanted: int) -> Background:
        if wanted < self._index:
            self._open()
            self._index = -1
        if wanted > self._index + _SKIP_SECONDS * self._rate:
            length = round(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, wanted % max(1, length))
            self._index = wanted - 1
        image = None
        while self._index < wanted:
            self._index += 1
            # Frames that are not shown need no conversion to pixels.
            if self._index < wanted and self._capture.grab():
                continue
            image = self._next()
            if image is None:  # the end: once more from the start
                self._open()
                image = self._next()
        if image is not None:
            self._background = image_background(image)
        return self._background

    def __call__(self, image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        return self._background(image, alpha)


def parse_video_background(text: str) -> Background:
    """As `parse_background`, but the file may also be a video. Raises PortraitmattingError."""
    path = Path(text)
    if path.suffix.lower() not in READABLE and path.is_file():
        return VideoBackground(text)
    return parse_background(text)


def live_backgrounds(texts: Sequence[str] = ()) -> list[tuple[str, Background]]:
    """(name, background) for each text, which `parse_video_background` takes, and for blur, green
    and checkerboard, so that there is always a choice."""
    chosen = dict.fromkeys([*texts, "blur", GREEN, "checkerboard"])
    names = (Path(text).name if Path(text).is_file() else text for text in chosen)
    return [(name, parse_video_background(text)) for name, text in zip(names, chosen, strict=True)]
