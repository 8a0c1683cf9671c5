"""The sound of one video file into another, untouched where the new container can hold it."""

import os
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from portraitmatting.video.reader import import_av, open_input

if TYPE_CHECKING:
    from av.container import OutputContainer

_ENCODERS = {"opus": "libopus", "vorbis": "libopus"}
"""Better encoders than the ones that FFmpeg takes by default for these codecs."""
_PRIMING_SECONDS = 0.1
"""Sound from before 0 that a decoder may need to begin with; earlier sound has been cut away."""


class AudioTracks:
    """All audio streams of the file `source`, on their way into `output`.

    `start` is what the source's clock shows when the output's shows 0. Packets are copied as they
    are; a stream whose codec the container does not allow, or begins with one of the `refused`, is
    encoded anew, in stereo at most. What is damaged is left out and counted.
    The source is opened a second time for this, so that sound and images need not wait for each
    other in memory. Raises `VideoError` if it cannot be opened.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: "OutputContainer",
        start: Fraction,
        refused: tuple[str, ...] = (),
    ) -> None:
        self._damage = import_av().FFmpegError
        self._input = open_input(os.fspath(source))
        self._output = output
        self._start = start
        self._targets: dict[int, Any] = {}
        self._anew: set[int] = set()
        self._written: dict[int, int] = {}
        self.damaged = 0
        """Packets that could not be used."""
        self.tracks_left_out = 0
        """Streams whose codec FFmpeg does not know, as with Apple's spatial sound."""
        for stream in self._input.streams.audio:
            codec = _codec(stream)
            if codec is None:
                self.tracks_left_out += 1
                continue
            if codec in output.supported_codecs and not codec.startswith(refused):
                target: Any = output.add_stream_from_template(stream)
            else:
                default = output.default_audio_codec
                encoder = _ENCODERS.get(default, default)
                rate = 48000 if encoder == "libopus" else stream.rate
                layout = "stereo" if stream.channels > 1 else "mono"
                target = output.add_stream(encoder, rate=rate, layout=layout)
                self._anew.add(stream.index)
            target.metadata.update(stream.metadata)
            self._targets[stream.index] = target
        self._packets = self._demux()
        self._next = next(self._packets, None)

    def copy_until(self, seconds: float) -> None:
        """Write what is heard before `seconds` of the output's clock."""
        while self._next is not None:
            packet = self._next
            if packet.dts is not None and packet.dts * packet.time_base > seconds + self._start:
                return
            self._write(packet)
            self._next = next(self._packets, None)

    def copy_rest(self) -> None:
        """Write all that is left."""
        self.copy_until(float("inf"))
        for index in self._anew:
            self._output.mux(self._targets[index].encode(None))

    def close(self) -> None:
        """Close the source."""
        self._packets.close()
        self._input.close()

    def _demux(self) -> Any:
        if self._targets:
            yield from self._input.demux(
                *(s for s in self._input.streams.audio if s.index in self._targets)
            )

    def _write(self, packet: Any) -> None:
        index = packet.stream.index
        target = self._targets[index]
        if index in self._anew:
            for frame in self._decode(packet):
                if frame.pts is not None:
                    frame.pts -= self._offset(frame.time_base)
                    if not self._rises(index, frame.pts):
                        continue
                self._output.mux(target.encode(frame))
        elif packet.dts is not None:  # without one it is the empty packet that ends the stream
            packet.pts = None if packet.pts is None else packet.pts - self._offset(packet.time_base)
            packet.dts -= self._offset(packet.time_base)
            if packet.dts * packet.time_base >= -_PRIMING_SECONDS and self._rises(
                index, packet.dts, packet.pts
            ):
                packet.stream = target
                self._output.mux(packet)

    def _decode(self, packet: Any) -> Any:
        try:
            return packet.decode()
        except self._damage:
            self.damaged += 1
            return []

    def _rises(self, index: int, time: int, shown: int | None = None) -> bool:
        """Whether a container takes this time after those before it; otherwise it is damage."""
        last = self._written.get(index)
        if (last is not None and time <= last) or (shown is not None and shown < time):
            self.damaged += 1
            return False
        self._written[index] = time
        return True

    def _offset(self, time_base: Fraction) -> int:
        return round(self._start / time_base)


def _codec(stream: Any) -> str | None:
    """The name of a stream's codec, None if FFmpeg cannot decode it."""
    try:
        return str(stream.codec_context.codec.canonical_name)
    except (AttributeError, LookupError, ValueError):  # no context, or one without a codec
        return None
