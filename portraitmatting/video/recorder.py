"""Recordings of live images: started and stopped at will, each frame at its own time."""

import contextlib
from datetime import datetime
from fractions import Fraction
from pathlib import Path

from portraitmatting.errors import PortraitmattingError
from portraitmatting.video.stream import MattedFrame
from portraitmatting.video.writer import VideoWriter

_MILLISECOND = Fraction(1, 1000)
_USUAL_RATE = 30


class Recorder:
    """Writes composites to a video while somebody wants it."""

    def __init__(self, folder: Path, target: Path | None = None) -> None:
        """Recordings go to new files in `folder`, the first one to `target`, if given."""
        self._folder, self._target = folder, target
        self._open = contextlib.ExitStack()
        self._writer: VideoWriter | None = None
        self._began, self._last = 0.0, -1

    @property
    def running(self) -> bool:
        """Whether frames are wanted."""
        return self._writer is not None

    def start(self) -> Path:
        """Begin a new file and return its name."""
        name = self._target or self._folder / f"recording-{stamp()}.mp4"
        self._target = None
        self._writer = self._open.enter_context(VideoWriter(name, _USUAL_RATE, _MILLISECOND))
        self._last = -1
        return name

    def write(self, matted: MattedFrame) -> None:
        """Add a frame at its own time. An error ends the recording, and its file is gone."""
        assert self._writer is not None
        if self._last < 0:
            self._began = matted.frame.seconds
        milliseconds = round(1000 * (matted.frame.seconds - self._began))
        self._last = max(self._last + 1, milliseconds)
        try:
            self._writer.write(matted.composite(), self._last)
        except PortraitmattingError as error:
            self._writer = None
            # A full disk may refuse the file's end as well, which is of no interest any more.
            with contextlib.suppress(PortraitmattingError):
                self._open.__exit__(type(error), error, error.__traceback__)
            raise

    def stop(self) -> None:
        """Finish the file; it is there from now on."""
        self._writer = None
        self._open.close()


def stamp() -> str:
    """The local time as a part of file names, to the millisecond."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
