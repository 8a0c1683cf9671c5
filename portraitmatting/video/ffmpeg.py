"""FFmpeg, as reading and writing share it: open files, packets on one clock, what was cut off, and
frames <-> arrays in full colour resolution, HDR and transparency included."""

import os
import re
from collections import Counter
from collections.abc import Generator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import PortraitmattingError, one_line

_STEP_BACK_SECONDS = Fraction(1, 10)
"""Decoding times that fall by more than this start another recording, as in FFmpeg's own tools."""
_STEP_AHEAD_SECONDS = 10
"""So do times that rise by more than this in formats that are made for joining."""
_JOINABLE = "mpegts", "mpeg"
_DECLARES_LENGTH = "mov", "matroska", "flv", "asf", "avi"
"""Formats whose header says how long the recording is."""
_BOXES = b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"mfra"


class VideoError(PortraitmattingError):
    """A video cannot be read, written or shown as asked."""


def import_av() -> Any:
    """PyAV, or a `VideoError` that says how to get it."""
    try:
        import av
    except ImportError:
        raise VideoError('video files need PyAV: pip install -e ".[video]"') from None
    return av


def is_url(source: str) -> bool:
    """Whether `source` is a URL; everything else is a file, even with a colon in its name."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def ffmpeg_name(path: str | os.PathLike[str]) -> str:
    """`path` for FFmpeg: absolute, since it takes what comes before a colon for a protocol."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.abspath(text)


def open_input(path: str | os.PathLike[str]) -> Any:
    """`path` or URL opened for reading by PyAV; raises `VideoError`."""
    av, text = import_av(), os.fspath(path)
    if not text:
        raise VideoError("the video's name is empty: give a path or a URL")
    try:
        return av.open(ffmpeg_name(text), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        elif os.path.isfile(text) and _structure(text, "mov")[0]:
            reason = "it was cut off, and its index is missing"
        raise VideoError(
            f"{one_line(text)}: cannot be read as a video ({one_line(reason)}): "
            "check the path, or convert it to MP4"
        ) from None


class Packets:
    """All packets of an open file, in order, on one clock.

    Where recordings were joined (`cat a.ts b.ts`), the file's own times start again; these go on:
    the later recording begins where the longest stream of the earlier one ends. Two passes over a
    file get the same times. What cannot be read is counted and left out.
    """

    def __init__(self, container: Any) -> None:
        self._container = container
        self._streams = tuple(container.streams)
        self._joinable = container.format.name.startswith(_JOINABLE)
        self._offsets = [Fraction(0)]
        """What is added to the times of each recording."""
        self._recording: Counter[int] = Counter()
        self._last: dict[int, Fraction] = {}
        self._corrupt_at: dict[int, Fraction] = {}
        self.end = Fraction(0)
        """When the last of the packets read so far ends, in seconds of this clock."""
        self.seam = Fraction(0)
        """When the latest recording begins, on the same clock; 0 for the first."""
        self.corrupt: Counter[int] = Counter()
        """Stream index to its packets with incomplete data; -1 to parts that cannot be read."""

    @property
    def recordings(self) -> int:
        """How many joined recordings there were so far, 1 in ordinary files."""
        return len(self._offsets)

    def __iter__(self) -> Generator[Any, None, None]:
        packets = self._container.demux(*self._streams)
        while True:
            try:
                packet = next(packets, None)
            except import_av().FFmpegError:
                self.corrupt[-1] += 1
                continue
            if packet is None:
                return
            self._set_time(packet)
            yield packet

    def _set_time(self, packet: Any) -> None:
        index, base = packet.stream.index, packet.time_base
        if packet.dts is not None:
            self._notice_seam(packet, packet.dts * base)
        offset = self._offsets[self._recording[index]]
        ticks = round(offset / base) if offset else 0
        if packet.dts is not None:
            packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks
            length = packet.duration or 0
            if not length and packet.stream.type == "video" and packet.stream.average_rate:
                length = round(1 / (packet.stream.average_rate * base))
            self.end = max(self.end, (packet.pts + length) * base)

    def _notice_seam(self, packet: Any, seconds: Fraction) -> None:
        index = packet.stream.index
        last = self._last.get(index, seconds)
        back, ahead = seconds < last - _STEP_BACK_SECONDS, seconds > last + _STEP_AHEAD_SECONDS
        # Joined Matroska files lose the decoding order: only the times of keyframes can be trusted.
        if (back and (self._joinable or packet.is_keyframe)) or (ahead and self._joinable):
            if last - self._corrupt_at.get(index, last - 2) < 1:
                self.corrupt[index] -= 1  # no damage: only the packet counters start again
            self._recording[index] += 1
            if self._recording[index] == len(self._offsets):  # the first of its streams
                begin = seconds if packet.pts is None else packet.pts * packet.time_base
                self._offsets.append(self.end - begin)
                self.seam = self.end
        self._last[index] = seconds
        if packet.is_corrupt:
            self.corrupt[index] += 1
            self._corrupt_at[index] = seconds


def missing_part(path: str, container: Any, packets: Packets) -> str:
    """What of a file is missing in `packets`, which have all been read, as a clause; "" if nothing
    is known to be."""
    kind = container.format.name
    cut, recordings = _structure(path, kind) if os.path.isfile(path) else (False, 1)
    if recordings > packets.recordings:
        return f"only {packets.recordings} of {recordings} joined recordings are read: use ffmpeg"
    length = Fraction(container.duration or 0, 1_000_000)
    seconds = packets.end - Fraction(container.start_time or 0, 1_000_000)
    declared = kind.startswith(_DECLARES_LENGTH)
    if declared and seconds < length - max(Fraction(1, 2), length / 100):
        return f"it ends after {float(seconds):.1f} of {float(length):.1f} s: it was cut off"
    return f"it ends after {float(seconds):.1f} s: it was cut off" if cut else ""


def _structure(path: str, kind: str) -> tuple[bool, int]:
    """Whether the file is shorter than its parts declare, and how many recordings are joined in
    it; 1 for formats of which FFmpeg reads all of them."""
    size = os.path.getsize(path)
    if kind == "mpegts":  # packets of 188 bytes, with time stamps 192, with error correction 204
        return all(size % length for length in (188, 192, 204)), 1
    for name, structure in (("mov", _mp4), ("matroska", _matroska), ("avi", _avi)):
        if kind.startswith(name):
            with open(path, "rb") as file:
                return structure(file, size)
    return False, 1


def _mp4(file: Any, size: int) -> tuple[bool, int]:
    """Boxes: length of 4 bytes, type, length of 8 bytes if the first was 1; 0 is up to the end."""
    at = indices = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        if head[4:8] not in _BOXES:  # data that some cameras append
            break
        indices += head[4:8] == b"moov"
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            break
        at += max(8, length)
    return at > size, indices


def _matroska(file: Any, size: int) -> tuple[bool, int]:
    """Elements: an ID and a length; the leading zeros of each one's first byte say how many bytes
    it has. Live recordings leave lengths open (all ones): their content follows."""
    at = recordings = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        recordings += head[:4] == b"\x1a\x45\xdf\xa3"
        id_length = 9 - head[0].bit_length()
        data = head[id_length:] or b"\x80"
        length_length = 9 - data[0].bit_length()
        if id_length > 4 or length_length > 8:  # no element, but zeros or other data
            break
        length = int.from_bytes(data[:length_length], "big") ^ (1 << 7 * length_length)
        open_end = length == (1 << 7 * length_length) - 1
        at += id_length + length_length + (0 if open_end else length)
    return at > size, recordings


def _avi(file: Any, size: int) -> tuple[bool, int]:
    """Chunks "RIFF" of at most 1 or 2 GiB; their length is unknown until a recording ends."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            break
        at += 8 + length + length % 2
    return at > size, 1


_HD_HEIGHT = 720
"""Frames without a declared colour matrix are taken for BT.709 from this height on, else for
BT.601, as players do."""
_RGB, _BT709, _UNSPECIFIED, _BT601 = 0, 1, 2, 6  # AVCOL_SPC_...
_WIDE_PRIMARIES = 9, 11, 12  # AVCOL_PRI_BT2020, DCI-P3, Display P3
_HDR_TRANSFERS = 16, 18  # AVCOL_TRC_SMPTE2084 (PQ), AVCOL_TRC_ARIB_STD_B67 (HLG)
_FLAGS = "flags=bilinear+full_chroma_int+full_chroma_inp+accurate_rnd"
"""For colour planes of lower resolution: by default the filter repeats each of their pixels, which
leaves dots along coloured edges."""


class Converter:
    """Frames <-> arrays by FFmpeg's `scale` filter, set up again when their kind changes."""

    def __init__(self) -> None:
        self._kind: Any = None
        self._graph: Any = None

    def to_arrays(
        self, frame: Any, size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """A decoded frame -> HxWx3 RGB uint8 in BT.709's colours, upright, and its own alpha, HxW
        uint8, None if it is opaque; transparent colours are put over white.

        `size` is (width, height) before the frame is turned upright; frames of another size, which
        a stream may contain, are scaled to it. HDR (PQ and HLG) is tone-mapped and wide colours are
        mapped perceptually, both by libswscale.
        """
        transparent = any(component.is_alpha for component in frame.format.components)
        matrix = frame.colorspace
        if matrix == _UNSPECIFIED:
            matrix = _BT709 if frame.height >= _HD_HEIGHT else _BT601
        options = f"{size[0]}:{size[1]}:{_FLAGS}"
        if matrix != _RGB and not frame.format.is_rgb:
            options += f":in_color_matrix={matrix}"
        if frame.color_trc in _HDR_TRANSFERS or frame.color_primaries in _WIDE_PRIMARIES:
            options += ":out_primaries=bt709:out_transfer=bt709:intent=perceptual"
        pixels = self._scaled(frame, options, "rgba" if transparent else "rgb24").to_ndarray()
        pixels = _upright(pixels, frame)
        if not transparent:
            return pixels, None
        alpha = np.ascontiguousarray(pixels[..., 3])
        if alpha.min() == 255:
            return np.ascontiguousarray(pixels[..., :3]), None
        weight = alpha[..., None].astype(np.float32) / 255
        return np.rint(255 + weight * (pixels[..., :3] - 255.0)).astype(np.uint8), alpha

    def to_frame(self, pixels: NDArray[np.uint8], size: tuple[int, int], pixel_format: str) -> Any:
        """HxW grey, HxWx3 RGB or HxWx4 RGBA uint8 -> a frame of `size` (width, height), BT.709,
        limited range unless `pixel_format` is an RGB one."""
        kind = "gray" if pixels.ndim == 2 else "rgba" if pixels.shape[2] == 4 else "rgb24"
        frame = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), kind)
        options = f"{size[0]}:{size[1]}:{_FLAGS}:out_color_matrix=bt709:out_range=limited"
        return self._scaled(frame, options, pixel_format)

    def _scaled(self, frame: Any, options: str, pixel_format: str) -> Any:
        kind = (
            *(frame.width, frame.height, frame.format.name, options, pixel_format),
            *(frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries),
        )
        if kind != self._kind:
            self._kind, self._graph = kind, import_av().filter.Graph()
            source = self._graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 25),
            )
            self._graph.link_nodes(
                source,
                self._graph.add("scale", options),
                self._graph.add("format", pixel_format),
                self._graph.add("buffersink"),
            ).configure()
        self._graph.push(frame)
        return self._graph.pull()


def _upright(pixels: NDArray[np.uint8], frame: Any) -> NDArray[np.uint8]:
    """Turned and mirrored as the file's display matrix says: with its entries a b c d (ISO/IEC
    14496-12, 8.2.2.3), pixel (x, y) is shown at (ax + cy, bx + dy)."""
    sides = display_matrix(frame)
    if sides is None:
        return pixels
    a, b, c, d = sides
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of a frame's display matrix, None if it has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])
