"""Small videos with known content for the tests of portraitmatting.video."""

from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch

from portraitmatting.modeling.model import ModelConfig, PortraitMatting
from portraitmatting.predictor import Predictor

TIME_BASE = Fraction(1, 12800)
STEP = 512
"""A frame's duration at 25 per second."""


@cache
def tiny_predictor() -> Predictor:
    """Untrained and tiny: good for plumbing, not for mattes."""
    torch.manual_seed(0)
    return Predictor(PortraitMatting(ModelConfig.tiny()).eval(), short_side=32)


def drawn_frame(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Told apart by its brightness; its top left quarter is red, so that turns show."""
    image = np.full((height, width, 3), 40 + 6 * (index % 30), np.uint8)
    image[: height // 2, : width // 2] = 200, 30, 30
    return image


def write_video(
    path: Path,
    count: int = 6,
    size: tuple[int, int] = (48, 64),
    steps: tuple[int, ...] = (STEP,),
    rotation: int = 0,
    audio: str = "",
    codec: str = "libx264",
) -> list[int]:
    """Frames of `image`, each shown for the next of `steps`; returns their time stamps."""
    import av

    height, width = size
    stamps, pts = [], 0
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"crf": "5"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec != "mpeg2video":  # which takes few rates
            stream.codec_context.time_base = TIME_BASE
        if rotation:
            stream.set_display_rotation(rotation)
        sound = out.add_stream(audio, rate=48000, layout="stereo") if audio else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(drawn_frame(index, height, width), "rgb24")
            frame.pts, frame.time_base = pts, TIME_BASE
            frame.duration = steps[index % len(steps)]
            stamps.append(pts)
            pts += frame.duration
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound is not None:
            length = round(float(pts * TIME_BASE) * 48000)
            for start in range(0, length, 960):
                wave = np.sin(np.arange(start, start + 960) / 17).astype(np.float32) / 4
                chunk = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
                chunk.sample_rate, chunk.pts, chunk.time_base = 48000, start, Fraction(1, 48000)
                out.mux(sound.encode(chunk))
            out.mux(sound.encode())
    return stamps


def decoded(path: Path, codec: str = "") -> list[tuple[int, Fraction, np.ndarray]]:
    """(pts, time base, HxWx4) of every frame; `codec` forces a decoder."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        forced = av.CodecContext.create(codec, "r") if codec else None
        return [
            (frame.pts, frame.time_base or stream.time_base, frame.to_ndarray(format="rgba"))
            for packet in container.demux(stream)
            for frame in (forced.decode(packet) if forced else packet.decode())
        ]


def seconds(path: Path) -> list[float]:
    """When the frames of a video are shown."""
    return [float(pts * base) for pts, base, _ in decoded(path)]
