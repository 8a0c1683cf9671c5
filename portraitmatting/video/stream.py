"""Videos in, matted videos out: the generator, which notebooks use too, and the job over files."""

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from portraitmatting.choices import METHODS, check_word
from portraitmatting.compositing import Background, as_background
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.pixels import to_unit
from portraitmatting.lookahead import prefetch
from portraitmatting.matte import Matte
from portraitmatting.predictor import Predictor
from portraitmatting.video.backgrounds import GREEN, MovingBackground, parse_video_background
from portraitmatting.video.reader import Frame, open_video
from portraitmatting.video.writer import VideoWriter, check_outputs, result_kind

_MOTION_SIDE = 180
"""Short side of the images in which motion is detected: averaging takes most of the noise away."""
_KEEP = 0.8
"""How much of the last matte stays where nothing moves: a time constant of five frames."""
_NOISES = 4.0
"""A change counts as motion if it exceeds so many times the frame's median change, ..."""
_THRESHOLDS = 1.0, 10.0
"""... a threshold that is kept within these limits (of 255 levels)."""
_SOFTNESS = 0.3
"""A change that exceeds the threshold by this part of it counts fully."""
_REACH = 15
"""Width, in pixels of the small image, of the surroundings that also count as moving: a plain
sleeve changes at its edges only."""


class Smoother:
    """Averages the mattes of one video over time, wherever the image stays the same.

    Call it with each frame in order: image HxWx3 RGB uint8 and alpha HxW float32 in [0, 1] ->
    smoothed alpha HxW. It adds no delay. A frame of another size starts a new average.

    A first-order recursive filter whose weight goes to zero where motion is detected, as in Dubois
    and Sabri, "Noise Reduction in Image Sequences Using Motion-Compensated Temporal Filtering",
    IEEE Trans. Communications 32(7), 1984, applied to mattes and guided by the image. The noise is
    the median change per frame. Their motion compensation is left out: with optical flow it calmed
    a hand-held camera somewhat, but smeared moving edges.
    """

    def __init__(self) -> None:
        self._scene: NDArray[np.float32] | None = None
        self._alpha: NDArray[np.float32] | None = None

    def __call__(self, image: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
        scene = _small(image)
        before, self._scene = self._scene, scene
        last, self._alpha = self._alpha, alpha
        if before is None or last is None or last.shape != alpha.shape:
            return alpha
        still = 1 - _motion(before, scene)
        keep = cv2.resize(_KEEP * still, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR)
        steady = last - alpha
        steady *= keep
        steady += alpha
        self._alpha = np.clip(steady, 0, 1, out=steady)
        return self._alpha


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    shrink = max(1.0, min(height, width) / _MOTION_SIDE)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.blur(small.astype(np.float32), (3, 3)))


def _motion(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two small images hxwx3 in 0..255 -> hxw, 0 where nothing moves, 1 where something does."""
    change = np.abs(after - before).max(axis=2)
    threshold = np.clip(_NOISES * np.median(change), *_THRESHOLDS)
    moving = np.clip((change / threshold - 1) / _SOFTNESS, 0, 1)
    return np.asarray(cv2.dilate(moving, np.ones((_REACH, _REACH), np.uint8)), np.float32)


def smoothed(matte: Matte, smoother: Smoother | None) -> Matte:
    """The matte, averaged over time if there is a smoother."""
    if smoother is None:
        return matte
    return replace(matte, alpha=smoother(matte.image, matte.alpha))


@dataclass(frozen=True, eq=False)
class MattedFrame:
    """A frame with its matte, and what can be made of it; colours are estimated on first use."""

    frame: Frame
    matte: Matte
    background: Background | MovingBackground
    method: str
    """How the foreground's colours are estimated, as in `estimate_foreground`."""
    short_side: int
    """The working size at which the network ran."""
    network_seconds: float
    """What this frame took in the network, with resizing: its share of its batch's time."""
    smoothing_seconds: float
    matting_seconds: float = 0.0
    """How long this frame waited for its matte, without smoothing."""
    age: float = 0.0
    """Seconds by which the frame that the network saw is older than this one; 0 if it saw this."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """The frame as it came, HxWx3 RGB uint8."""
        return self.frame.image

    @property
    def alpha(self) -> NDArray[np.float32]:
        """HxW in [0, 1]."""
        return self.matte.alpha

    @property
    def foreground(self) -> NDArray[np.uint8]:
        """The person's own colours, HxWx3 RGB uint8."""
        return self.result("foreground")

    def rgba(self) -> NDArray[np.uint8]:
        """The cut-out, HxWx4 uint8, straight alpha."""
        return self.result("rgba")

    def composite(self) -> NDArray[np.uint8]:
        """The person before the background, HxWx3 RGB uint8."""
        return self.result("composite")

    def result(self, kind: str) -> NDArray[np.uint8]:
        """The pixels of one kind, as `Matte.result` makes them."""
        background = self.background
        if isinstance(background, MovingBackground):
            background = background.at(self.frame.seconds)
        return self.matte.result(kind, background, self.method)  # type: ignore[arg-type]


def matte_stream(
    frames: Iterable[NDArray[np.uint8] | Frame],
    predictor: Predictor,
    background: Background | MovingBackground | NDArray[np.uint8] | str = GREEN,
    foreground: str = "fast",
    smooth: bool = True,
    batch_size: int = 1,
) -> Iterator[MattedFrame]:
    """Frames of a video, all of one size -> one `MattedFrame` each.

    Args:
        frames: HxWx3 RGB uint8 or `Frame`; bare arrays count as 25 frames per second.
        predictor: makes the mattes.
        background: a `Background`, an image HxWx3, or text as `parse_background` takes it.
        foreground: a method of `estimate_foreground`.
        smooth: steady the matte over time (`Smoother`).
        batch_size: so many frames go through the network together, which delays live images.

    Raises PortraitmattingError for unknown methods and backgrounds at the call, and for frames that
    are no images on the way.
    """
    check_word("foreground method", foreground, METHODS)
    if batch_size < 1:
        raise PortraitmattingError(f"batch size {batch_size}: use 1 or more")
    if not isinstance(background, MovingBackground):
        background = as_background(background)
    smoother = Smoother() if smooth else None

    def matted() -> Iterator[MattedFrame]:
        source = (
            frame if isinstance(frame, Frame) else Frame(frame, index, Fraction(1, 25), 1)
            for index, frame in enumerate(frames)
        )
        while batch := list(itertools.islice(source, batch_size)):
            before = time.perf_counter()
            mattes = predictor.predict_batch([frame.image for frame in batch])
            seconds = (time.perf_counter() - before) / len(batch)
            for frame, matte in zip(batch, mattes, strict=True):
                before = time.perf_counter()
                matte = smoothed(matte, smoother)
                if frame.alpha is not None:  # what is transparent in the source stays so
                    bound = to_unit(frame.alpha)
                    matte = replace(matte, alpha=np.minimum(matte.alpha, bound))
                yield MattedFrame(
                    frame,
                    matte,
                    background,
                    foreground,
                    predictor.short_side,
                    network_seconds=seconds,
                    smoothing_seconds=time.perf_counter() - before,
                    matting_seconds=seconds,
                )

    return matted()


@dataclass(frozen=True)
class Converted:
    """What `matte_video` wrote, and what the source lacked."""

    frames: int
    transparent: bool
    damaged: int
    """Packets of the source that could not be used: their frames or sound are missing."""
    tracks_left_out: int = 0
    """Tracks of sound or subtitles that the result cannot hold or FFmpeg does not know."""
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
    """Matte every frame of the video `source` into `target`, which gets its name when it is whole.

    Time stamps are the source's; frames are upright. Sound, subtitles and chapters are copied,
    except into a folder. What is transparent in the source stays so. Reading, the network and
    writing overlap; memory does not grow with the length. Raises PortraitmattingError for what
    cannot be read or written; what is damaged or missing in the source is reported in the result.

    Args:
        source: A video file, a folder of numbered images, or their pattern (frame_%04d.png).
        target: Its suffix chooses the format: .mp4 and .mkv (H.264), .webm (VP9), .mov (ProRes
            4444); without one it is a folder of PNG files.
        predictor: Makes the mattes.
        background: A `Background`, or text as `parse_video_background` takes it; default: none, or
            green where the format cannot be transparent.
        foreground: A method of `estimate_foreground`.
        smooth: Whether to steady the matte over time.
        preset: The network's working size, as for images.
        batch_size: Frames that go through the network together; default: 8 on a GPU, 1 on a CPU,
            where larger ones gain nothing.
        progress: Whether to show a progress bar.
        kind: "composite", "rgba", "alpha" (the matte, in grey) or "foreground" (the person's
            colours, opaque); default: rgba without a `background` where the format can be
            transparent, else composite.
        frame_rate: Frames per second of numbered images; default: 25.
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
        bar.total = writer.count  # before, it was an estimate
    # Sound may be longer than the images: only now everything has been copied.
    damaged = reader.damaged + writer.damaged
    missing = reader.missing
    return Converted(writer.count, kind == "rgba", damaged, writer.tracks_left_out, missing)
