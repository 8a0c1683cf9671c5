"""The sound of one video file into another, untouched where the new container can hold it."""

import os
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from portraitmatting.video.reader import open_input

if TYPE_CHECKING:
    from av.container import OutputContainer

_ENCODERS = {"opus": "libopus", "vorbis": "libopus"}
"""Better encoders than the ones that FFmpeg takes by default for these codecs."""


class AudioTracks:
    """All audio streams of the file `source`, on their way into `output`.

    `start` is what the source's clock shows when the output's shows 0. Packets are copied as they
    are; a stream whose codec the container does not allow, or is among the `refused`, is encoded
    anew, in stereo at most.
    The source is opened a second time for this, so that sound and pictures need not wait for each
    other in memory. Raises `VideoError` if it cannot be opened.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: "OutputContainer",
        start: Fraction,
        refused: tuple[str, ...] = (),
    ) -> None:
        self._input = open_input(os.fspath(source))
        self._output = output
        self._start = start
        self._targets: dict[int, Any] = {}
        self._anew: set[int] = set()
        for stream in self._input.streams.audio:
            codec = stream.codec_context.codec.canonical_name
            if codec in output.supported_codecs and codec not in refused:
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
            yield from self._input.demux(*self._input.streams.audio)

    def _write(self, packet: Any) -> None:
        target = self._targets[packet.stream.index]
        if packet.stream.index in self._anew:
            for frame in packet.decode():
                if frame.pts is not None:
                    frame.pts -= self._offset(frame.time_base)
                self._output.mux(target.encode(frame))
        elif packet.dts is not None:  # without one it is the empty packet that ends the stream
            packet.pts = None if packet.pts is None else packet.pts - self._offset(packet.time_base)
            packet.dts -= self._offset(packet.time_base)
            packet.stream = target
            self._output.mux(packet)

    def _offset(self, time_base: Fraction) -> int:
        return round(self._start / time_base)
