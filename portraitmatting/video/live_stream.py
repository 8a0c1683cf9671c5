"""Live frames in, each with its matte out, however long the network takes."""

import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.choices import MULTIPLE, preset_short_side
from portraitmatting.compositing import Background
from portraitmatting.errors import PortraitmattingError
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.matte import Matte
from portraitmatting.predictor import Estimate, Predictor
from portraitmatting.video.backgrounds import MovingBackground
from portraitmatting.video.reader import Frame
from portraitmatting.video.stream import MattedFrame, Smoother, smoothed

_SHORT_SIDE = 192
"""Of the grey images between which motion is estimated."""
_FINEST_SCALE = 1
"""Flow is estimated down to half of that size. Stopping at a quarter takes half the time, but the
error of carried mattes grows by a quarter to a half."""
_SLACK = 1.0, 0.1
"""Forward and backward flow may disagree by so many pixels, and by this part of their length."""
_UNRELIABLE = 0.7
"""If more than this part of the matte's edge is unreliable, nothing is carried. Typical values
are .3 to .6 when the person moves by 240 pixels a second, and .85 to 1 after a cut."""
_EDGE = 5
"""Width in pixels of the matte that is counted as its edge."""
_FADE = 0.4
"""The part that stays, from frame to frame, of the difference between the old matte and the new."""


@dataclass(eq=False)
class SeenFrame:
    """What the carrier keeps of a frame."""

    grey: NDArray[np.uint8]
    flow: NDArray[np.float32]
    """hxwx2: for each pixel of the newest frame, the distance (x, y) to its place in this one."""
    shown: NDArray[np.float32] | None = None
    """Its matte as it was shown."""


@dataclass(eq=False)
class _Source:
    """The frame and the matte of the network that are carried."""

    seen: SeenFrame
    matte: NDArray[np.float32]
    fading: NDArray[np.float32] | None
    """The matte shown for this frame, minus the network's; it fades out."""


class MatteCarrier:
    """Carries the network's last matte to the newest frame by optical flow.

    For every frame call `see`, then `carry` for its matte. Call `ask` when a frame is given to the
    network and `take_over` with the network's matte of it: from then on that one is carried.

    Flow is dense inverse search (Kroeger et al., "Fast Optical Flow using Dense Inverse Search",
    ECCV 2016) from the newest frame to the matte's, started from the sum of the flows from frame to
    frame, so that errors do not add up and large motion is followed. Flow is unreliable where
    the flow in the other direction does not lead back (Sundaram et al., ECCV 2010).
    """

    def __init__(self) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._flow.setFinestScale(_FINEST_SCALE)
        self._newest: SeenFrame | None = None
        self._asked: SeenFrame | None = None
        self._source: _Source | None = None

    def see(self, image: NDArray[np.uint8]) -> SeenFrame:
        """The next frame, HxWx3 RGB uint8. A frame of another size starts again."""
        grey = _small_grey(image)
        last, self._newest = self._newest, SeenFrame(grey, np.zeros((*grey.shape, 2), np.float32))
        if last is None or last.grey.shape != grey.shape:
            self._asked = self._source = None
            return self._newest
        step = self._flow.calc(grey, last.grey, None)
        for seen in {self._asked, self._source.seen if self._source else None}:
            if seen is not None:
                seen.flow = step + _moved(seen.flow, step)
        return self._newest

    def ask(self, seen: SeenFrame) -> None:
        """The network is given this frame."""
        self._asked = seen

    def take_over(self, matte: NDArray[np.float32], fade: bool = True) -> None:
        """The network's matte, hxw float32, of the frame of `ask`; with `fade` it replaces the
        older one over a few frames instead of at once."""
        if self._asked is None:  # the size of frames has changed since
            return
        shown = self._asked.shown if fade else None
        fading = None if shown is None or shown.shape != matte.shape else shown - matte
        self._source, self._asked = _Source(self._asked, matte, fading), None

    @property
    def up_to_date(self) -> bool:
        """Whether the network's matte is of the newest frame itself."""
        return self._source is not None and self._source.seen is self._newest

    def carry(self) -> NDArray[np.float32] | None:
        """The matte of the newest frame, hxw float32 in [0, 1], of the network's size; None if
        there is none yet, or flow is unreliable at its edge."""
        source, newest = self._source, self._newest
        if source is None or newest is None:
            return None
        matte = source.matte
        if source.fading is not None:
            source.fading *= _FADE
            matte = np.clip(matte + source.fading, 0, 1)
        own = source.seen is newest
        newest.shown = matte if own else self._carried(source.seen, newest, matte)
        return newest.shown

    def _carried(
        self, source: SeenFrame, newest: SeenFrame, matte: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        source.flow = self._flow.calc(newest.grey, source.grey, source.flow)
        back = self._flow.calc(source.grey, newest.grey, None)
        height, width = matte.shape
        # Flow counts pixels of the grey image, the matte has another size.
        scale = np.array([width / newest.grey.shape[1], height / newest.grey.shape[0]], np.float32)
        carried = _moved(matte, cv2.resize(source.flow, (width, height)) * scale)
        wrong = np.abs(source.flow + _moved(back, source.flow)).max(axis=2)
        unreliable = wrong > _SLACK[0] + _SLACK[1] * np.abs(source.flow).max(axis=2)
        edge = cv2.dilate(cv2.inRange(carried, 0.02, 0.98), np.ones((_EDGE, _EDGE), np.uint8))
        edge = cv2.resize(edge, newest.grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
        counted = unreliable[edge > 0] if edge.any() else unreliable
        return None if counted.mean() > _UNRELIABLE else carried


def _small_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    # At least 32 pixels a side: the search needs room for its patches.
    scale = max(32, min(_SHORT_SIDE, height, width)) / min(height, width)
    size = round(width * scale), round(height * scale)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _moved(values: NDArray[np.float32], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each pixel's value from where it was according to `flow` (hxwx2)."""
    height, width = flow.shape[:2]
    grid = np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
    x, y = cv2.split(grid + flow)
    moved = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


_FRAMES_PER_MATTE = 3
"""Frames for each pass of the network: mattes are carried to those in between."""
_PASSES = 5
"""Passes that are timed before the size changes."""
_SAFE = 0.85
"""A larger size must need no more than this part of the time there is, or sizes would swing."""
_HARDLY_SLOWER = 1.1
"""A size that takes at most so many times as long as the smallest one is used in any case."""


class AutoSize:
    """Chooses, pass by pass, the largest working size between the presets "live" and "quality" at
    which the network alone gives a matte for every third of `target` frames per second.

    Report each pass with `network_took`; `short_side` is the size to use next. The network's time
    is modelled as a constant plus a part that grows with the area, both measured when the size
    changes; until then all of it counts as growing.
    """

    def __init__(self, predictor: Predictor, target: float = 24) -> None:
        if not target > 0:
            raise PortraitmattingError(f"target rate {target:g}: use more than 0 frames per second")
        own = predictor.short_side
        low, high = (preset_short_side(own, name) for name in ("live", "quality"))
        self._sizes = range(low, high + 1, MULTIPLE)
        self._budget = _FRAMES_PER_MATTE / target
        self.short_side = preset_short_side(own, "fast")
        self._seconds: list[float] = []
        self._slope: float | None = None
        """Seconds per area (short side squared), once two sizes have been measured."""
        self._last: tuple[int, float] | None = None
        """The last size and what it took."""

    def network_took(self, seconds: float) -> None:
        """The seconds of one pass of the network at the current size; may change `short_side`."""
        self._seconds.append(seconds)
        if len(self._seconds) <= _PASSES:
            return
        # The first pass at a new size is slower. The median ignores single slow passes.
        typical = sorted(self._seconds[1:])[_PASSES // 2]
        self._seconds.clear()
        size = self.short_side
        if self._last is not None and self._last[0] != size:
            slope = (typical - self._last[1]) / (size**2 - self._last[0] ** 2)
            self._slope = min(max(slope, 0.0), typical / size**2)
        self._last = size, typical
        self.short_side = self._best(typical)

    def _best(self, typical: float) -> int:
        slope = typical / self.short_side**2 if self._slope is None else self._slope

        def expected(size: int) -> float:
            return typical + slope * (size**2 - self.short_side**2)

        room = max(self._budget, _HARDLY_SLOWER * expected(self._sizes[0]))
        best = max((size for size in self._sizes if expected(size) <= room), default=self._sizes[0])
        if best > self.short_side and expected(best) > _SAFE * room:
            return max(self.short_side, best - MULTIPLE)
        return best


_KEEPS_UP = 0.5
"""A network that needs at most this part of a frame's time is waited for."""


class _Answer(NamedTuple):
    estimate: Estimate
    seconds: float
    short_side: int
    frame: Frame


class LiveStream:
    """Iterable over live frames, each with its own matte, as `MattedFrame`s.

    The network runs in a thread of its own, each time on the newest frame. If it keeps up with
    `target_rate`, each frame waits for it. Otherwise its last matte is carried to each frame
    (`MatteCarrier`) and brought to full size by the frame's own colours (`guided_upsample`); the
    frame waits for the network only where that is not reliable: at the beginning, after a cut.

    Args:
        frames: live ones, such as a `Camera`.
        predictor: makes the mattes.
        background: behind the person.
        method: of `estimate_foreground`.
        smooth: steady the matte over time (`Smoother`).
        target_rate: frames per second.
        auto_size: chooses the working size; default: the predictor's.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        predictor: Predictor,
        background: Background | MovingBackground,
        method: str = "fast",
        smooth: bool = True,
        target_rate: float = 24,
        auto_size: AutoSize | None = None,
    ) -> None:
        self._frames, self._predictor, self._background = frames, predictor, background
        self._method, self._auto = method, auto_size
        self._smoother = Smoother() if smooth else None
        self._patience = _KEEPS_UP / target_rate
        self._carrier = MatteCarrier()
        self._pending: Future[_Answer] | None = None
        self._answer: _Answer | None = None
        self.passes = 0
        """How often the network has answered."""

    def __iter__(self) -> Generator[MattedFrame, None, None]:
        """Closing the generator ends the network's thread."""
        with ThreadPoolExecutor(1, "network") as pool:
            for frame in self._frames:
                yield self._matted(frame, pool)

    def _matted(self, frame: Frame, pool: ThreadPoolExecutor) -> MattedFrame:
        before = time.perf_counter()
        if self._pending is not None and self._pending.done():
            self._receive()
        seen = self._carrier.see(frame.image)
        coarse: NDArray[np.float32] | None = None
        while True:
            if self._pending is None:
                self._carrier.ask(seen)
                self._pending = pool.submit(self._estimate, frame)
            waits = self._answer is not None and self._answer.seconds <= self._patience
            if not waits:
                coarse = self._carrier.carry()
            if coarse is not None:
                break
            self._receive(fade=False)
            if self._carrier.up_to_date:
                break
        assert self._answer is not None
        if coarse is None:
            matte = self._predictor.finish(self._answer.estimate)
        else:
            alpha = guided_upsample(frame.image, coarse)
            trimap = np.uint8(128) * (alpha > 0) + np.uint8(127) * (alpha == 1)  # 0, 128, 255
            matte = Matte(frame.image, alpha, trimap, str(self._predictor.device))
        carried = time.perf_counter()
        matte = smoothed(matte, self._smoother)
        return MattedFrame(
            frame,
            matte,
            self._background,
            self._method,
            self._answer.short_side,
            network_seconds=self._answer.seconds,
            smoothing_seconds=time.perf_counter() - carried,
            matting_seconds=carried - before,
            age=frame.seconds - self._answer.frame.seconds,
        )

    def _receive(self, fade: bool = True) -> None:
        """Wait for the network's answer, or its error."""
        assert self._pending is not None
        self._answer, self._pending = self._pending.result(), None
        self.passes += 1
        self._carrier.take_over(self._answer.estimate.alpha[0].numpy(), fade)
        if self._auto is not None:
            self._auto.network_took(self._answer.seconds)
            self._predictor = self._predictor.at_short_side(self._auto.short_side)

    def _estimate(self, frame: Frame) -> _Answer:
        predictor = self._predictor
        prepared = predictor.prepare(frame.image)
        before = time.perf_counter()
        (estimate,) = predictor.estimate([prepared])
        if estimate.arrived is not None:
            estimate.arrived.synchronize()
        seconds = time.perf_counter() - before
        return _Answer(estimate, seconds, predictor.short_side, frame)
