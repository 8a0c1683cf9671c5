"""Videos in: every frame upright, in RGB, with its own time stamp, from a file or from images."""

import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import ImageError, one_line
from portraitmatting.images.files import read_image
from portraitmatting.images.listing import READABLE
from portraitmatting.images.pixels import to_dtype
from portraitmatting.video.ffmpeg import (
    Converter,
    Packets,
    VideoError,
    display_matrix,
    import_av,
    is_url,
    missing_part,
    open_input,
)

_LARGEST_RATE = 1000
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
"""Files that count as videos in a folder of videos."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a video."""

    image: NDArray[np.uint8]
    """HxWx3 RGB, upright; where the video is transparent, over white."""
    pts: int
    """When it is shown, in units of `time_base`; rises from frame to frame."""
    time_base: Fraction
    """Seconds per unit of `pts`."""
    duration: int = 0
    """How long it is shown, in the same units; 0 where the file does not say."""
    alpha: NDArray[np.uint8] | None = None
    """HxW, the video's own alpha, which no matte exceeds; None if it is opaque."""

    @property
    def seconds(self) -> float:
        """When it is shown."""
        return float(self.pts * self.time_base)


class VideoReader:
    """Context manager over a video file (or URL) that FFmpeg can read.

    Iterate to get every `Frame`, in order, in constant memory. Rotation and mirroring that the file
    declares are applied, so `height` and `width` are those of the upright image; HDR is
    tone-mapped. Times go on where recordings were joined. Raises `VideoError` for what is no video;
    packets that cannot be decoded are counted in `damaged` and left out.
    """

    has_tracks = True
    """Whether there may be sound, subtitles or chapters to copy."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._av = import_av()
        self._container = open_input(self.path)
        try:
            self._stream = self._main_stream()
            self._packets = Packets(self._container)
            self.start = Fraction(self._container.start_time or 0, self._av.time_base)
            """The file's own time, in seconds, at which `Frame.pts` is 0."""
            self._undecodable = 0
            self.missing = ""
            """What the file lacks, as a clause, "" if nothing; known after the last frame."""
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise VideoError(f"{one_line(self.path)}: no frame in it can be decoded")
        except BaseException:
            self._container.close()
            raise
        self.height, self.width = self._first.image.shape[:2]

    def _main_stream(self) -> Any:
        """The video stream marked as default, else the first."""
        # Music files contain their cover as a "video" of one frame.
        kinds = self._av.stream.Disposition
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & (kinds.attached_pic | kinds.timed_thumbnails)
        ]
        if not streams:
            raise VideoError(f"{one_line(self.path)}: holds no video stream")
        stream = max(streams, key=lambda stream: bool(stream.disposition & kinds.default))
        stream.thread_type = "AUTO"
        return stream

    @property
    def damaged(self) -> int:
        """Packets of the video, so far, that could not be read or decoded."""
        corrupt = self._packets.corrupt
        return self._undecodable + corrupt[self._stream.index] + corrupt[-1]

    @property
    def rate(self) -> Fraction:
        """Frames per second on average."""
        for rate in (self._stream.average_rate, self._stream.guessed_rate):
            if rate and rate <= _LARGEST_RATE:  # FFmpeg's guess for short files may be absurd
                return Fraction(rate)
        return Fraction(25)

    @property
    def time_base(self) -> Fraction:
        """Seconds per unit of the frames' `pts`."""
        return self._stream.time_base or 1 / self.rate

    @property
    def pixel_aspect(self) -> Fraction:
        """Width over height of one pixel of the upright image."""
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        return 1 / aspect if self._transposed else aspect

    @property
    def frame_count(self) -> int | None:
        """How many frames the file declares: an estimate, or None."""
        if self._stream.frames:
            return int(self._stream.frames)
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

    def _decode(self) -> Generator[Frame, None, None]:
        last = -1
        base = self.time_base
        origin = round(self.start / base)
        step = max(1, round(1 / (self.rate * base)))
        converter = Converter()
        for decoded in self._decoded():
            if last < 0:
                size = decoded.width, decoded.height
                a, b, _, _ = display_matrix(decoded) or (1, 0, 0, 1)
                self._transposed = abs(b) > abs(a)
            # Some containers have no time stamps, and broken ones repeat them.
            pts = decoded.pts - origin if decoded.pts is not None else last + step
            pts = max(pts, last + 1)
            image, alpha = converter.to_arrays(decoded, size)
            yield Frame(image, pts, base, decoded.duration or 0, alpha)
            last = pts
        self.missing = missing_part(self.path, self._container, self._packets)

    def _decoded(self) -> Iterator[Any]:
        decoder = self._alpha_decoder() or self._stream.codec_context
        for packet in self._packets:
            if packet.stream.index != self._stream.index:
                continue
            try:
                frames = decoder.decode(packet)
            except self._av.FFmpegError:
                self._undecodable += not packet.is_corrupt
            else:
                yield from frames

    def _alpha_decoder(self) -> Any:
        """VP8 and VP9 store transparency beside the image; FFmpeg's own decoders ignore it, libvpx
        does not."""
        names = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
        name = names.get(self._stream.codec_context.codec.canonical_name)
        if name is None or self._stream.metadata.get("alpha_mode") != "1":
            return None
        try:
            return self._av.CodecContext.create(name, "r")
        except (self._av.FFmpegError, ValueError):  # a build without libvpx
            raise VideoError(
                f"{one_line(self.path)}: this PyAV cannot read its transparency (no {name}): "
                "convert it to .mov (ProRes 4444)"
            ) from None


class ImageSequence:
    """Numbered images as a video at `rate` frames per second: the interface of `VideoReader`.

    `path` is a folder, or a pattern as FFmpeg takes it (frame_%04d.png). Frames follow their
    numbers; all get the first one's size. An image that cannot be read is counted in `damaged`;
    the one before it is shown longer.
    """

    start = Fraction(0)
    pixel_aspect = Fraction(1)
    missing = ""
    has_tracks = False

    def __init__(self, path: str | os.PathLike[str], rate: Fraction | float = 25) -> None:
        self.path = os.fspath(path)
        if not 0 < rate <= _LARGEST_RATE:
            raise VideoError(f"frame rate {rate}: use a number above 0 up to {_LARGEST_RATE}")
        self.rate = Fraction(rate).limit_denominator(1001)
        self.time_base = 1 / self.rate
        self._files = numbered_images(self.path)
        if not self._files:
            raise VideoError(f"{one_line(self.path)}: holds no numbered images")
        self.frame_count: int | None = len(self._files)
        self.metadata: dict[str, str] = {}
        self.damaged = 0
        first = read_image(self._files[0]).pixels
        self.height, self.width = first.shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self._files):
            try:
                read = read_image(file)
            except ImageError:
                self.damaged += 1
                continue
            alpha = getattr(read, "alpha", None)
            image = self._fitted(read.pixels)
            alpha = None if alpha is None else self._fitted(alpha)
            yield Frame(image, index, self.time_base, 1, alpha)

    def _fitted(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        pixels = to_dtype(pixels, np.uint8)
        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        size = self.width, self.height
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)

    def __enter__(self) -> "ImageSequence":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_video(
    source: str | os.PathLike[str], rate: float | None = None
) -> VideoReader | ImageSequence:
    """`ImageSequence` of a folder or a pattern, `VideoReader` of everything else; `rate` is for
    images only."""
    text = os.fspath(source)
    if not is_url(text) and (os.path.isdir(text) or _pattern(text)):
        return ImageSequence(text, 25 if rate is None else rate)
    if rate is not None:
        raise VideoError(f"{one_line(text)}: only numbered images take a frame rate")
    return VideoReader(text)


def is_recorded(source: str) -> bool:
    """Whether `source` is a file, a folder or a pattern, rather than a camera or a URL. Raises
    `VideoError` for a file's name where there is no file."""
    if source.isdecimal() or is_url(source) or source.startswith("/dev/"):
        return False
    if not source or not (os.path.exists(source) or numbered_images(source)):
        raise VideoError(
            f"{one_line(repr(source))}: no such file or folder: check the path, or give a camera's "
            "number"
        )
    return True


def numbered_images(path: str) -> list[Path]:
    """The images of a folder or a pattern in the order of their numbers: the last ones in their
    names, or those that the pattern asks for."""
    pattern = _pattern(path)
    folder = Path(path).parent if pattern else Path(path)
    numbered = []
    for file in folder.iterdir() if folder.is_dir() else ():
        if pattern is not None:
            match = pattern.fullmatch(file.name)
        elif file.name.startswith(".") or file.suffix.lower() not in READABLE:
            continue
        else:
            match = re.search(r"([0-9]+)[^0-9]*$", file.stem)
        if match is not None and file.is_file():
            numbered.append((int(match[1]), file.name, file))
    return [file for _, _, file in sorted(numbered)]


def _pattern(path: str) -> re.Pattern[str] | None:
    """frame_%04d.png as a regular expression, None if `path` is no such pattern."""
    match = re.fullmatch(r"(.*)%(?:0?([0-9]+))?d(.*)", os.path.basename(path), re.DOTALL)
    if match is None or os.path.exists(path):
        return None
    before, width, after = match.groups()
    digits = f"[0-9]{{{width},}}" if width else "[0-9]+"
    return re.compile(f"{re.escape(before)}({digits}){re.escape(after)}", re.DOTALL)


def videos_in(folder: str | os.PathLike[str]) -> list[Path]:
    """All videos under `folder`, by their suffix, without hidden ones."""
    return sorted(
        file
        for file in Path(folder).rglob("*")
        if file.suffix.lower() in VIDEO_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
