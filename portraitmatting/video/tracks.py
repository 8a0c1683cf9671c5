"""Sound, subtitles and chapters of one video into another, untouched where it can hold them."""

import io
import os
import re
from fractions import Fraction
from typing import Any

from portraitmatting.video.ffmpeg import Packets, import_av, open_input

_ENCODERS = {"opus": "libopus", "vorbis": "libopus"}
"""Better encoders than the ones that FFmpeg takes by default for these codecs."""
_TEXT_SUBTITLES = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "subrip"}
"""Container to the codec of its plain subtitles."""
_PRIMING_SECONDS = 0.1
"""Sound before time 0 that a decoder may need to start; earlier sound was cut off on purpose."""
_SEAM_SECONDS = 1
"""Sound that overlaps the recording before is no damage for so long after recordings are joined."""


class Tracks:
    """All sound and subtitles of the file `source`, on their way into `output`, and its chapters.

    Packets are copied as they are. Sound that the container cannot hold is encoded again, in stereo
    at most; such subtitles become plain text. What is damaged is left out and counted. The source
    is opened a second time for this, so that sound and images need not wait for each other in
    memory. Raises `VideoError` if it cannot be opened.

    Args:
        source: Path or URL.
        output: An open `av.container.OutputContainer`.
        start: What the source's clock shows when the output's shows 0, in seconds.
        refused: Beginnings of the names of codecs to encode again even if the container holds them.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: Any,
        start: Fraction,
        refused: tuple[str, ...] = (),
    ) -> None:
        self._av = import_av()
        self._input = open_input(source)
        self._output, self._start = output, start
        self._targets: dict[int, Any] = {}
        self._resamplers: dict[int, _Resampler] = {}
        self._text: dict[int, str] = {}  # index to the codec that is written
        self._written: dict[int, int] = {}
        self._unusable = 0
        self.left_out = 0
        """Tracks that cannot be copied: codecs that FFmpeg does not know, images as subtitles."""
        for stream in (*self._input.streams.audio, *self._input.streams.subtitles):
            target = self._target(stream, refused)
            if target is None:
                self.left_out += 1
            else:
                target.metadata.update(stream.metadata)
                target.disposition = stream.disposition
                self._targets[stream.index] = target
        self._set_chapters()
        self._packets = Packets(self._input)
        self._iterator = iter(self._packets)
        self._next = next(self._iterator, None)

    @property
    def damaged(self) -> int:
        """Packets so far that could not be used."""
        corrupt = self._packets.corrupt
        return self._unusable + sum(corrupt[index] for index in self._targets)

    def copy_until(self, seconds: float) -> None:
        """Write everything before `seconds` of the output's clock."""
        while self._next is not None:
            packet = self._next
            if packet.dts is not None and packet.dts * packet.time_base > seconds + self._start:
                return
            if packet.stream.index in self._targets:
                self._write(packet)
            self._next = next(self._iterator, None)

    def copy_rest(self) -> None:
        """Write all that is left."""
        self.copy_until(float("inf"))
        for index, resampler in self._resamplers.items():
            for frame in resampler.rest():
                self._output.mux(self._targets[index].encode(frame))
            self._output.mux(self._targets[index].encode(None))

    def close(self) -> None:
        """Close the source."""
        self._iterator.close()
        self._input.close()

    def _target(self, stream: Any, refused: tuple[str, ...]) -> Any:
        """A new stream of the output for `stream`, None if there can be none."""
        codec = _codec(stream)
        if codec is None:
            return None
        if not codec.startswith(refused) and self._holds(stream):
            return self._output.add_stream_from_template(stream)
        if stream.type == "audio":
            default = self._output.default_audio_codec
            return self._encoded(stream, _ENCODERS.get(default, default))
        plain = _TEXT_SUBTITLES.get(self._output.format.name.split(",")[0])
        if plain is None or not stream.codec_context.codec.text_sub:
            return None
        self._text[stream.index] = plain
        target = self._output.add_mux_stream(plain)
        target.time_base = Fraction(1, 1000)
        return target

    def _encoded(self, stream: Any, encoder: str) -> Any:
        known = self._av.Codec(encoder, "w").audio_rates or [stream.rate]
        # The next higher rate that the encoder takes, else its highest.
        rate = min(known, key=lambda rate: (rate < stream.rate, abs(rate - stream.rate)))
        layout = "stereo" if stream.channels > 1 else "mono"
        target = self._output.add_stream(encoder, rate=rate, layout=layout)
        self._resamplers[stream.index] = _Resampler(target.codec_context)
        return target

    def _holds(self, stream: Any) -> bool:
        """Whether the container takes `stream` as it is: a file of it alone can be begun. FFmpeg's
        lists of codecs do not know of its limits, of sample rates for instance."""
        name = self._output.format.name
        try:
            with self._av.open(io.BytesIO(), "w", format=name) as trial:
                trial.add_stream_from_template(stream)
                trial.start_encoding()
        except (self._av.FFmpegError, ValueError, LookupError):
            return False
        return True

    def _set_chapters(self) -> None:
        chapters = []
        for chapter in self._input.chapters():
            offset = self._offset(chapter["time_base"])
            if chapter["end"] > offset:
                start = max(0, chapter["start"] - offset)
                chapters.append({**chapter, "start": start, "end": chapter["end"] - offset})
        if chapters:
            self._output.set_chapters(chapters)

    def _write(self, packet: Any) -> None:
        index = packet.stream.index
        if packet.stream.type == "subtitle" and not packet.size:
            return
        if index in self._text:
            self._write_text(packet)
        elif index in self._resamplers:
            for frame in self._decode(packet):
                if frame.pts is not None:
                    frame.pts -= self._offset(frame.time_base)
                    if not self._rises(index, frame.pts, frame.time_base):
                        continue
                for resampled in self._resamplers[index](frame):
                    self._output.mux(self._encode(index, resampled))
        elif packet.dts is not None:  # without one it is the empty packet that ends the stream
            offset = self._offset(packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - offset
            packet.dts -= offset
            early = packet.dts * packet.time_base < -_PRIMING_SECONDS
            if not early and self._rises(index, packet.dts, packet.time_base, packet.pts):
                packet.stream = self._targets[index]
                self._output.mux(packet)

    def _write_text(self, packet: Any) -> None:
        target = self._targets[packet.stream.index]
        for subtitle in self._decode(packet):
            text = _plain(subtitle)
            if not text or packet.pts is None:
                continue
            data = text.encode()
            if self._text[packet.stream.index] == "mov_text":
                # 3GPP TS 26.245: the text's length comes first.
                data = len(data).to_bytes(2, "big") + data
            written = self._av.Packet(data)
            written.stream, written.time_base = target, packet.time_base
            written.pts = written.dts = packet.pts - self._offset(packet.time_base)
            written.duration = packet.duration
            if self._rises(packet.stream.index, written.dts, written.time_base):
                self._output.mux(written)

    def _encode(self, index: int, frame: Any) -> Any:
        try:
            return self._targets[index].encode(frame)
        except self._av.error.InvalidDataError:  # damaged sound, decoded into NaN
            self._unusable += 1
            return []

    def _decode(self, packet: Any) -> Any:
        try:
            return packet.decode()
        except self._av.FFmpegError:
            self._unusable += not packet.is_corrupt
            return []

    def _rises(self, index: int, time: int, base: Fraction, shown: int | None = None) -> bool:
        """Whether the time follows the last one, as containers demand; if not, it may be damage."""
        last = self._written.get(index)
        if (last is not None and time <= last) or (shown is not None and shown < time):
            seam = self._packets.seam
            if not seam or time * base + self._start > seam + _SEAM_SECONDS:
                self._unusable += 1
            return False
        self._written[index] = time
        return True

    def _offset(self, time_base: Fraction) -> int:
        return round(self._start / time_base)


class _Resampler:
    """Converts sound to what an encoder takes, even if its rate or channels change on the way."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._kind: Any = None
        self._resampler: Any = None

    def __call__(self, frame: Any) -> list[Any]:
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        before = []
        if kind != self._kind:
            before = self.rest()
            self._kind = kind
            self._resampler = import_av().AudioResampler(
                self._encoder.format, self._encoder.layout, self._encoder.rate
            )
        return [*before, *self._resampler.resample(frame)]

    def rest(self) -> list[Any]:
        """What is still buffered, at the end."""
        return [] if self._resampler is None else list(self._resampler.resample(None))


def _codec(stream: Any) -> str | None:
    """The name of a stream's codec, None if FFmpeg cannot decode it."""
    try:
        return str(stream.codec_context.codec.canonical_name)
    except (AttributeError, LookupError, ValueError):  # no context, or one without a codec
        return None


def _plain(subtitle: Any) -> str:
    """A decoded subtitle's text without its styling."""
    text = subtitle.dialogue.decode("utf-8", "replace")
    return re.sub(r"\{[^}]*\}", "", text).strip()
