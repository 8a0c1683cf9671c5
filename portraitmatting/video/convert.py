"""The file job: a video in, the same video with another background, or none, out."""

import os
from contextlib import closing
from dataclasses import dataclass

from tqdm import tqdm

from portraitmatting.compositing import Background
from portraitmatting.predictor import Predictor
from portraitmatting.video.backgrounds import GREEN, parse_video_background
from portraitmatting.video.pipeline import prefetch
from portraitmatting.video.reader import VideoReader
from portraitmatting.video.stream import matte_stream
from portraitmatting.video.writer import VideoWriter, check_outputs, format_of


@dataclass(frozen=True)
class Converted:
    """What became of a video."""

    frames: int
    transparent: bool
    damaged: int
    """Packets of the source that could not be used, and whose frames or sound are missing."""
    tracks_left_out: int = 0
    """Tracks of sound in a codec that FFmpeg does not know."""

    def __str__(self) -> str:
        what = "transparent frames" if self.transparent else "frames"
        missing = f", {self.damaged} damaged packets left out" if self.damaged else ""
        mute = f", {self.tracks_left_out} unknown sound track(s) left out"
        return f"{self.frames} {what}{missing}{mute if self.tracks_left_out else ''}"


def matte_video(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    predictor: Predictor,
    background: Background | str | None = None,
    foreground: str = "fast",
    smooth: bool = True,
    preset: str = "quality",
    batch_size: int | None = None,
    progress: bool = False,
) -> Converted:
    """Matte every frame of the video file `source` into `target`, which appears when it is whole.

    The suffix of `target` chooses the kind: .mp4 and .mkv (H.264), .webm (VP9), .mov (ProRes 4444)
    or a folder of PNG files. Without a `background` (a `Background`, or text as
    `parse_video_background` takes it) .webm, .mov and folders are transparent, .mp4 and .mkv get
    green. Time stamps are the source's, upright if the source is rotated; sound goes along, except
    into a folder. Reading, the network and writing overlap; memory does not grow with the length.
    `batch_size` defaults to 8 on a GPU, 1 on the CPU, where larger ones gain nothing. Raises
    PortraitmattingError for what cannot be read or written.
    """
    check_outputs(source, target)
    kind = format_of(target)
    transparent = background is None and (kind is None or kind.transparent is not None)
    if isinstance(background, str):
        background = parse_video_background(background)
    predictor = predictor.at_preset(preset)
    with (
        VideoReader(source) as reader,
        VideoWriter(
            target,
            reader.rate,
            reader.time_base,
            transparent,
            reader.pixel_aspect,
            audio_from=source,
            audio_start=reader.start,
            metadata=reader.metadata,
        ) as writer,
        closing(prefetch(reader)) as frames,
        closing(
            prefetch(
                matte_stream(
                    frames,
                    predictor,
                    GREEN if background is None else background,
                    foreground,
                    smooth,
                    batch_size or (1 if predictor.device.type == "cpu" else 8),
                )
            )
        ) as matted,
        tqdm(total=reader.frame_count, unit=" frames", disable=not progress) as bar,
    ):
        for item in matted:
            pixels = item.rgba() if transparent else item.composite()
            writer.write(pixels, item.frame.pts, item.frame.duration)
            bar.update()
        bar.total = writer.count  # what the file says beforehand is an estimate
        damaged = reader.damaged + writer.damaged
        return Converted(writer.count, transparent, damaged, writer.tracks_left_out)
