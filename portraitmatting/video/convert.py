"""The file job: a video in, the same video with another background, or none, out."""

import os
from contextlib import closing
from dataclasses import dataclass

from tqdm import tqdm

from portraitmatting.compositing import Background
from portraitmatting.lookahead import prefetch
from portraitmatting.predictor import Predictor
from portraitmatting.video.backgrounds import GREEN, parse_video_background
from portraitmatting.video.reader import open_video
from portraitmatting.video.stream import matte_stream
from portraitmatting.video.writer import VideoWriter, check_outputs, result_kind


@dataclass(frozen=True)
class Converted:
    """What became of a video."""

    frames: int
    transparent: bool
    damaged: int
    """Packets of the source that could not be used, and whose frames or sound are missing."""
    tracks_left_out: int = 0
    """Tracks of sound or subtitles that the result cannot hold, or FFmpeg does not know."""
    missing: str = ""
    """What the source lacks, "" if nothing is known to be missing."""

    def __str__(self) -> str:
        parts = [f"{self.frames} {'transparent ' if self.transparent else ''}frames"]
        if self.damaged:
            parts.append(f"{self.damaged} damaged packets left out")
        if self.tracks_left_out:
            parts.append(f"{self.tracks_left_out} unknown sound or subtitle track(s) left out")
        return ", ".join(parts)


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
    kind: str | None = None,
    frame_rate: float | None = None,
) -> Converted:
    """Matte every frame of the video `source` into `target`, which appears when it is whole.

    Time stamps are the source's; frames are upright. Sound, subtitles and chapters go along, except
    into a folder. The source's own transparency bounds the result's. Reading, the network and
    writing overlap; memory does not grow with the length. Raises PortraitmattingError for what
    cannot be read or written; what is damaged or missing in the source is reported in the result.

    Args:
        source: A video file, a folder of numbered images, or their pattern (frame_%04d.png).
        target: Its suffix chooses the format: .mp4 and .mkv (H.264), .webm (VP9), .mov (ProRes
            4444); without one it is a folder of PNG files.
        predictor: The network.
        background: A `Background`, or text as `parse_video_background` takes it; green if the
            format cannot be transparent.
        foreground: How the person's colours are estimated, as in `estimate_foreground`.
        smooth: Whether to steady the matte over time.
        preset: The network's working size, as for images.
        batch_size: Frames that go through the network together; default: 8 on a GPU, 1 on a CPU,
            where larger ones gain nothing.
        progress: Whether to show a progress bar.
        kind: "composite", "rgba", "alpha" (the matte, in grey) or "foreground" (the person's
            colours, opaque); default: rgba without a `background` where the format can be
            transparent, else composite.
        frame_rate: Of images, per second (default: 25).
    """
    check_outputs(source, target)
    kind = result_kind(target, kind, background is not None)
    if isinstance(background, str):
        background = parse_video_background(background)
    predictor = predictor.at_preset(preset)
    with (
        open_video(source, frame_rate) as reader,
        VideoWriter(
            target,
            reader.rate,
            reader.time_base,
            kind == "rgba",
            reader.pixel_aspect,
            tracks_from=source if reader.has_tracks else None,
            tracks_start=reader.start,
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
            writer.write(item.result(kind), item.frame.pts, item.frame.duration)
            bar.update()
        bar.total = writer.count  # what the file says beforehand is an estimate
    # Sound goes on after the last frame: only now everything has been copied.
    damaged = reader.damaged + writer.damaged
    missing = reader.missing
    return Converted(writer.count, kind == "rgba", damaged, writer.tracks_left_out, missing)
