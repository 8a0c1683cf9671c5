"""Video files in: every frame upright, in RGB, with its own time stamp."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import PortraitmattingError, one_line

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

_HD_HEIGHT = 720
"""Images from this height on that do not say their colour matrix are taken for BT.709, smaller
ones for BT.601, as players do."""
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


class VideoError(PortraitmattingError):
    """A video cannot be read, written or shown as asked."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a video."""

    image: NDArray[np.uint8]
    """HxWx3 RGB, upright."""
    pts: int
    """When it is shown, in units of `time_base`; never falls from frame to frame."""
    time_base: Fraction
    """Seconds per unit of `pts`."""
    duration: int = 0
    """How long it is shown, in the same units; 0 where the file does not say."""

    @property
    def seconds(self) -> float:
        """When it is shown."""
        return float(self.pts * self.time_base)


def import_av() -> Any:
    """PyAV, or a `VideoError` that says how to get it."""
    try:
        import av
    except ImportError:
        raise VideoError('video files need PyAV: pip install -e ".[video]"') from None
    return av


def open_input(path: str) -> "InputContainer":
    """`path` or URL opened for reading; raises `VideoError`."""
    av = import_av()
    try:
        container: InputContainer = av.open(path, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(
            f"{one_line(path)}: cannot be read as a video ({one_line(str(reason))}): "
            "check the path, or convert it to MP4"
        ) from None
    return container


class VideoReader:
    """Context manager over a video file (or URL) that FFmpeg can read.

    Iterate to get every `Frame`, in order, memory constant. Rotation noted in the file is applied,
    so `height` and `width` are those of the upright image. Raises `VideoError` for what is no
    video; packets that cannot be decoded are counted in `damaged`, and the rest goes on.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._av = import_av()
        self._container = open_input(self.path)
        try:
            self._stream = self._images()
            self.start = Fraction(self._container.start_time or 0, self._av.time_base)
            """What the file's own clock shows at the beginning, in seconds; `Frame.pts` shows 0."""
            self.damaged = 0
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise VideoError(f"{one_line(self.path)}: no frame in it can be decoded")
        except BaseException:
            self._container.close()
            raise
        self.height, self.width = self._first.image.shape[:2]

    def _images(self) -> "VideoStream":
        # Music files hold their cover as a "video" of one frame.
        covers = self._av.stream.Disposition.attached_pic
        for stream in self._container.streams.video:
            if not stream.disposition & covers:
                stream.thread_type = "AUTO"
                return stream
        raise VideoError(f"{one_line(self.path)}: holds no video stream")

    @property
    def rate(self) -> Fraction:
        """Frames per second on average."""
        return self._stream.average_rate or self._stream.guessed_rate or Fraction(25)

    @property
    def time_base(self) -> Fraction:
        """Seconds per unit of the frames' `pts`."""
        return self._stream.time_base or 1 / self.rate

    @property
    def pixel_aspect(self) -> Fraction:
        """Width over height of one pixel of the upright image."""
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        return 1 / aspect if self._turns % 2 else aspect

    @property
    def frame_count(self) -> int | None:
        """How many frames there are by the file's own account: an estimate, or None."""
        if self._stream.frames:
            return self._stream.frames
        if self._container.duration:
            return round(self._container.duration / self._av.time_base * self.rate)
        return None

    @property
    def metadata(self) -> dict[str, str]:
        """Title, date and so on, as the file has them."""
        return dict(self._container.metadata)

    def __iter__(self) -> Iterator[Frame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.close()
        self._container.close()

    def _decode(self) -> Any:
        last = -1
        base = self.time_base
        origin = round(self.start / base)
        step = max(1, round(1 / (self.rate * base)))
        for decoded in self._undamaged():
            if last < 0:
                self._turns = round(decoded.rotation / 90) % 4
                size = decoded.width, decoded.height
            # Some containers leave time stamps out, and broken ones repeat them.
            pts = decoded.pts - origin if decoded.pts is not None else last + step
            pts = max(pts, last + 1)
            image = np.rot90(self._rgb(decoded, size), self._turns)
            yield Frame(np.ascontiguousarray(image), pts, base, decoded.duration or 0)
            last = pts

    def _undamaged(self) -> "Iterator[av.VideoFrame]":
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)  # which, once it has raised, is at its end
                if packet is None:
                    return
                frames = packet.decode()
            except self._av.FFmpegError:
                self.damaged += 1
            else:
                yield from frames

    def _rgb(self, decoded: "av.VideoFrame", size: tuple[int, int]) -> NDArray[np.uint8]:
        reformat = self._av.video.reformatter
        matrix = None
        if decoded.colorspace == _UNSPECIFIED:
            hd = decoded.height >= _HD_HEIGHT
            matrix = reformat.Colorspace.ITU709 if hd else reformat.Colorspace.ITU601
        # A stream may change its size on the way; the output's size is that of the first frame.
        rgb = decoded.reformat(*size, format="rgb24", src_colorspace=matrix)
        return np.asarray(rgb.to_ndarray(), np.uint8)
