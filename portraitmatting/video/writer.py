"""Write videos: a file or folder gets its name once it is whole, and is removed on an error."""

import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.atomic import atomic_path, check_replaceable
from portraitmatting.choices import KINDS, check_word
from portraitmatting.errors import one_line
from portraitmatting.images.files import write_image
from portraitmatting.video.ffmpeg import Converter, VideoError, import_av
from portraitmatting.video.reader import videos_in
from portraitmatting.video.tracks import Tracks


@dataclass(frozen=True)
class Format:
    """How a kind of video file is encoded, and what it can hold."""

    codec: str
    opaque: str
    """Pixel format without transparency."""
    transparent: str | None = None
    """Pixel format with transparency, None if the codec has none."""
    options: dict[str, str] = field(default_factory=dict)
    """For the encoder."""
    muxing: dict[str, str] = field(default_factory=dict)
    """For the container."""
    refused_audio: tuple[str, ...] = ()
    """Beginnings of the names of codecs that FFmpeg lists for the container but writes to related
    ones only, or that players do not expect in it."""
    square_pixels: bool = False
    """Whether the container cannot say that pixels are wider than high."""


_H264 = Format("libx264", "yuv420p", options={"crf": "18", "preset": "fast"})
FORMATS: dict[str, Format] = {
    ".mp4": Format(
        _H264.codec, _H264.opaque, None, _H264.options, {"movflags": "+faststart"}, ("pcm_",)
    ),
    ".mkv": _H264,
    ".webm": Format(
        "libvpx-vp9",
        "yuv420p",
        "yuva420p",
        # libvpx refuses transparency together with alternate reference frames.
        {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1", "auto-alt-ref": "0"},
        square_pixels=True,
    ),
    ".mov": Format(
        "prores_ks",
        "yuv444p10le",
        "yuva444p10le",
        {"profile": "4444"},
        refused_audio=("opus", "flac", "truehd"),
    ),
}
"""Suffix to format. A name without a suffix is that of a folder of PNG files."""


def format_of(path: str | os.PathLike[str]) -> Format | None:
    """The format that the suffix of `path` asks for, None for a folder of PNG files.

    Raises `VideoError` for a suffix that is none of ours.
    """
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in FORMATS:
        raise VideoError(
            f"{one_line(os.fspath(path))}: unknown kind of video {suffix!r}: use "
            f"{', '.join(FORMATS)}, or a name without a suffix for a folder of PNG files"
        )
    return FORMATS.get(suffix)


def result_kind(
    target: str | os.PathLike[str], kind: str | None = None, has_background: bool = False
) -> str:
    """`kind`, one of `choices.KINDS`, or what None stands for: "rgba" without a background where
    the format of `target` can be transparent, else "composite". Raises PortraitmattingError for an
    unknown kind, and for one that does not fit the format or a background."""
    form = format_of(target)
    opaque = form is not None and form.transparent is None
    if kind is None:
        return "composite" if has_background or opaque else "rgba"
    if check_word("kind", kind, KINDS) != "composite" and has_background:
        raise VideoError(f"kind {kind} has no background: leave the background out")
    if kind == "rgba" and opaque:
        raise VideoError(
            f"{one_line(os.fspath(target))}: {Path(target).suffix} cannot hold transparency: "
            "use .webm or .mov, a folder, or give a background"
        )
    return kind


def check_outputs(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Raise `VideoError` if `target` is `source`, or if `check_target` does."""
    check_target(target)
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise VideoError(f"{one_line(os.fspath(target))}: is the source itself: give another name")


def check_target(target: str | os.PathLike[str]) -> None:
    """Raise `VideoError` if no result can get the name `target`: its suffix is unknown, its folder
    is missing, or what has the name cannot be replaced. Links are followed."""
    name = one_line(os.fspath(target))
    kind = format_of(target)
    if Path(target).name in ("", ".."):
        raise VideoError(f"output {name!r} has no name: give a file or a new folder")
    path = Path(os.path.realpath(target))
    if not path.parent.is_dir():
        raise VideoError(f"{one_line(str(path.parent))}: no such folder: make it first")
    try:
        if kind is not None:
            check_replaceable(path)
        elif not os.path.lexists(path):
            path.mkdir()
            path.rmdir()
        elif not path.is_dir() or any(path.iterdir()):
            raise VideoError(
                f"{name}: is there already: give a new name, or one with a suffix "
                f"({', '.join(FORMATS)}) for a video"
            )
        else:  # a mount point, for instance, cannot be renamed
            other = path.with_name(f".{secrets.token_hex(8)}.tmp")
            path.rename(other)
            other.rename(path)
    except OSError as error:
        reason = one_line(str(error.strerror or error))
        raise VideoError(f"{name}: cannot be written ({reason}): give another name") from error


def plan_videos(
    folder: str | os.PathLike[str], target: str | os.PathLike[str], suffix: str = ".mp4"
) -> list[tuple[Path, Path]]:
    """(video, result) for every video below `folder`: results get the same relative path below
    `target`, a folder, with `suffix` instead of their own ("" for folders of PNG files). Where two
    results would get one name, each keeps its own suffix before the new one."""
    if format_of(target) is not None:
        raise VideoError(f"{one_line(os.fspath(target))}: a folder of videos needs a folder")
    results = Path(target).resolve()
    videos = [v for v in videos_in(folder) if results not in v.resolve().parents]
    stems = Counter(str(video.with_suffix("")).casefold() for video in videos)
    plan = []
    for video in videos:
        relative = video.relative_to(folder)
        is_unique = stems[str(video.with_suffix("")).casefold()] == 1
        name = relative.stem if is_unique else relative.name
        plan.append((video, Path(target) / relative.with_name(name + suffix)))
    return plan


class VideoWriter:
    """Context manager that writes frames of one size to a new video file, or a folder of PNG files.

    The suffix of `path` chooses the format (`FORMATS`). Pixels are uint8 RGB, or RGBA if
    `transparent`. The result gets the name `path` when the block ends; if it ends by an exception,
    nothing is left. A link is followed. Raises `VideoError` for unknown formats, for transparency
    that the format cannot hold, at the beginning for a name that cannot be used (`check_target`),
    and for errors of the disk.

    Args:
        path: The file or folder to write.
        rate: Frames per second, on average.
        time_base: Seconds per unit of the times that `write` takes; default: one frame.
        transparent: Whether frames are RGBA.
        pixel_aspect: The width over the height of a pixel.
        tracks_from: A file whose sound, subtitles and chapters are copied.
        tracks_start: Its own time, in seconds, that is our time 0.
        metadata: Title, date and so on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rate: Fraction | int,
        time_base: Fraction | None = None,
        transparent: bool = False,
        pixel_aspect: Fraction | int = 1,
        tracks_from: str | os.PathLike[str] | None = None,
        tracks_start: Fraction | int = 0,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._format = format_of(path)
        if transparent:
            result_kind(path, "rgba")
        self._av = import_av()
        self._rate = Fraction(rate)
        self._time_base = time_base or 1 / self._rate
        self._transparent = transparent
        self._pixel_aspect = Fraction(pixel_aspect)
        self._tracks_from, self._tracks_start = tracks_from, Fraction(tracks_start)
        self._metadata = metadata or {}
        self._stream: Any = None
        self._tracks: Tracks | None = None
        self._converter = Converter()
        self.count = 0
        """Frames written."""

    @property
    def damaged(self) -> int:
        """Packets of sound and subtitles that could not be used; final after the block."""
        return self._tracks.damaged if self._tracks is not None else 0

    @property
    def tracks_left_out(self) -> int:
        """Tracks of sound and subtitles that the format cannot hold or FFmpeg does not know."""
        return self._tracks.left_out if self._tracks is not None else 0

    def __enter__(self) -> "VideoWriter":
        with ExitStack() as stack, self._video_errors():
            check_target(self.path)
            path = Path(os.path.realpath(self.path))
            if self._format is None:
                self._folder = stack.enter_context(_atomic_folder(path))
            else:
                temporary = stack.enter_context(atomic_path(path))
                self._container = stack.enter_context(
                    self._av.open(str(temporary), "w", options=self._format.muxing)
                )
                self._container.metadata.update(self._metadata)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        with self._video_errors():
            if kind is None and self._stream is not None:
                try:
                    self._container.mux(self._stream.encode())
                    if self._tracks is not None:
                        self._tracks.copy_rest()
                except BaseException as error:
                    self._stack.__exit__(type(error), error, error.__traceback__)
                    raise
            self._stack.__exit__(kind, value, trace)

    def write(self, pixels: NDArray[np.uint8], pts: int | None = None, duration: int = 0) -> None:
        """HxWx3, HxWx4 if transparent, or HxW grey, uint8, shown from `pts` on for `duration`, both
        in units of the time base (default: one after the other). All have the first one's size."""
        with self._video_errors():
            if self._format is None:
                write_image(self._folder / f"{self.count + 1:06}.png", pixels)
            else:
                self._encode(pixels, self.count if pts is None else pts, duration)
        self.count += 1

    def _encode(self, pixels: NDArray[np.uint8], pts: int, duration: int) -> None:
        assert self._format is not None
        odd = pixels.shape[0] % 2, pixels.shape[1] % 2
        if any(odd) and self._format.codec == "libx264":
            # H.264 halves the colour planes, so that sizes must be even.
            pixels = np.pad(pixels, ((0, odd[0]), (0, odd[1]), (0, 0)), "edge")
        if self._stream is None:
            self._start(*pixels.shape[:2])
        size = self._stream.width, self._stream.height
        frame = self._converter.to_frame(pixels, size, self._stream.pix_fmt)
        frame.pts, frame.time_base = pts, self._time_base
        if duration:
            frame.duration = duration
        if self._tracks is not None:
            self._tracks.copy_until(float(pts * self._time_base))
        self._container.mux(self._stream.encode(frame))

    def _start(self, height: int, width: int) -> None:
        """Set up the streams, now that the size is known."""
        assert self._format is not None
        kind = self._format
        pixel_format = kind.transparent if self._transparent else kind.opaque
        stream = self._container.add_stream(kind.codec, rate=self._rate, options=kind.options)
        wider = self._pixel_aspect if kind.square_pixels else 1
        stream.width, stream.height = round(width * wider), height
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        context.time_base = self._time_base
        stream.time_base = self._time_base
        context.sample_aspect_ratio = self._pixel_aspect / wider
        context.color_range = self._av.video.reformatter.ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if self._tracks_from is not None:
            self._tracks = Tracks(
                self._tracks_from, self._container, self._tracks_start, kind.refused_audio
            )
            self._stack.callback(self._tracks.close)
        self._stream = stream

    @contextmanager
    def _video_errors(self) -> Iterator[None]:
        try:
            yield
        except (self._av.FFmpegError, OSError) as error:
            reason = one_line(str(getattr(error, "strerror", None) or error))
            raise VideoError(f"{one_line(str(self.path))}: cannot be written ({reason})") from error


_BT709 = 1  # AVCOL_SPC_BT709, AVCOL_PRI_BT709 and AVCOL_TRC_BT709 alike


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that gets its name at the end, or is deleted on an error."""
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        if path.is_dir():  # which is empty (check_target); Windows would not replace it
            path.rmdir()
        temporary.replace(path)
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(0o777 & ~umask)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
