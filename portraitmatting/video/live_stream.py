"""Live frames in, each with its matte out, however long the network takes."""

import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.choices import MULTIPLE, preset_short_side
from portraitmatting.compositing import Background
from portraitmatting.errors import PortraitmattingError
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.matte import Matte
from portraitmatting.predictor import Estimate, Predictor
from portraitmatting.video.reader import Frame
from portraitmatting.video.stream import MattedFrame, Smoother, smoothed

_SHORT_SIDE = 192
"""Of the grey images between which motion is estimated."""
_FINEST_SCALE = 1
"""Flow is estimated down to half of that size; stopping at a quarter costs half as much, and the
carried mattes' error grows by a quarter to a half."""
_SLACK = 1.0, 0.1
"""Forward and backward flow may disagree by so many pixels, and by this part of their length."""
_UNRELIABLE = 0.7
"""Of the matte's edge: with more of it unreliable, nothing is carried. At 240 pixels a second it is
.3 to .6, after a cut .85 to 1."""
_EDGE = 5
"""Width in pixels of the matte that is counted as its edge."""
_FADE = 0.4
"""What remains, from frame to frame, of the difference between an older matte and a new one."""


@dataclass(eq=False)
class Sight:
    """A frame as the carrier remembers it."""

    grey: NDArray[np.uint8]
    flow: NDArray[np.float32]
    """hxwx2: for each pixel of the newest frame, how far away (x, y) it was in this one."""
    shown: NDArray[np.float32] | None = None
    """The matte that was carried to it."""


@dataclass(eq=False)
class _Source:
    """The frame and matte that are carried."""

    sight: Sight
    matte: NDArray[np.float32]
    fading: NDArray[np.float32] | None
    """What the older matte, carried to this frame, had more."""


class MatteCarrier:
    """Carries the network's last matte to the newest frame by optical flow.

    For every frame call `see`; `carry` is its matte. Give any frame's sight to the network with
    `ask`, and its matte, when it is there, to `take_over`: from then on that one is carried.

    Flow is dense inverse search (Kroeger et al., "Fast Optical Flow using Dense Inverse Search",
    ECCV 2016) from the newest frame to the matte's, started from the sum of the flows from frame to
    frame, so that errors do not add up and large motion is followed. Flow that is not undone by the
    flow the other way round (Sundaram et al., ECCV 2010) is unreliable.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._flow.setFinestScale(_FINEST_SCALE)
        self._newest: Sight | None = None
        self._asked: Sight | None = None
        self._source: _Source | None = None

    def see(self, image: NDArray[np.uint8]) -> Sight:
        """The next frame, HxWx3 RGB uint8. One of another size starts afresh."""
        grey = _small_grey(image)
        last, self._newest = self._newest, Sight(grey, np.zeros((*grey.shape, 2), np.float32))
        if last is None or last.grey.shape != grey.shape:
            self._asked = self._source = None
            return self._newest
        step = self._flow.calc(grey, last.grey, None)
        kept = [self._asked, self._source.sight if self._source else None]
        for sight in {id(sight): sight for sight in kept if sight is not None}.values():
            sight.flow = step + _moved(sight.flow, step)
        return self._newest

    def ask(self, sight: Sight) -> None:
        """The network has been given this frame, the newest."""
        self._asked = sight

    def take_over(self, matte: NDArray[np.float32], fade: bool = True) -> None:
        """The network's matte hxw float32 of the frame asked for; with `fade` it replaces the older
        one within a few frames, without a jump."""
        if self._asked is None:  # frames have another size since
            return
        shown = self._asked.shown if fade else None
        fading = None if shown is None or shown.shape != matte.shape else shown - matte
        self._source, self._asked = _Source(self._asked, matte, fading), None

    @property
    def up_to_date(self) -> bool:
        """Whether the network's matte is that of the newest frame itself."""
        return self._source is not None and self._source.sight is self._newest

    def carry(self) -> NDArray[np.float32] | None:
        """The matte of the newest frame, hxw float32 in [0, 1], of the network's size; None where
        there is none yet, or flow is unreliable at its edge."""
        source, newest = self._source, self._newest
        if source is None or newest is None:
            return None
        matte = source.matte
        if source.fading is not None:
            source.fading *= _FADE
            matte = np.clip(matte + source.fading, 0, 1)
        own = source.sight is newest
        newest.shown = matte if own else self._carried(source.sight, newest, matte)
        return newest.shown

    def _carried(
        self, source: Sight, newest: Sight, matte: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        source.flow = self._flow.calc(newest.grey, source.grey, source.flow)
        back = self._flow.calc(source.grey, newest.grey, None)
        height, width = matte.shape
        # As long as the network's matte has its size: pixels there, not of the grey image.
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
    # At least 32 pixels a side, below which the search finds no place for its patches.
    scale = max(32, min(_SHORT_SIDE, height, width)) / min(height, width)
    size = round(width * scale), round(height * scale)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _moved(values: NDArray[np.float32], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each pixel's value from where `flow` (hxwx2) says that it was."""
    height, width = flow.shape[:2]
    coordinates = flow + np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(
        np.float32
    )
    x, y = cv2.split(coordinates)
    moved = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


_FRAMES_PER_MATTE = 3
"""Displayed frames for which one pass of the network must do: mattes are carried in between."""
_PATIENCE = 5
"""Passes before the size changes."""
_SPARE = 0.85
"""A larger size must promise to leave this much of the time unused, or sizes would swing."""
_HARDLY_SLOWER = 1.1
"""A size that is at most so many times as slow as the smallest one is taken in any case."""


class AutoSize:
    """Chooses, pass by pass, the largest working size between the presets "live" and "quality" at
    which the network alone gives a matte for every third of `target` frames per second.

    Tell it what the network took; `short_side` is what to use next. The network's time is taken as
    a constant and a part that grows with the area, both measured as sizes change; until then all of
    it is taken to grow.
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
        """What the network alone took for a frame at the present size; may change `short_side`."""
        self._seconds.append(seconds)
        if len(self._seconds) <= _PATIENCE:
            return
        # The first frame at a new size pays for warming up. The median ignores a hiccup.
        typical = sorted(self._seconds[1:])[_PATIENCE // 2]
        self._seconds.clear()
        size = self.short_side
        if self._last is not None and self._last[0] != size:
            slope = (typical - self._last[1]) / (size**2 - self._last[0] ** 2)
            self._slope = min(max(slope, 0.0), typical / size**2)
        self._last = size, typical
        self.short_side = self._best(typical)

    def _best(self, typical: float) -> int:
        slope = typical / self.short_side**2 if self._slope is None else self._slope

        def promise(size: int) -> float:
            return typical + slope * (size**2 - self.short_side**2)

        room = max(self._budget, _HARDLY_SLOWER * promise(self._sizes[0]))
        best = max((size for size in self._sizes if promise(size) <= room), default=self._sizes[0])
        if best > self.short_side and promise(best) > _SPARE * room:
            return max(self.short_side, best - MULTIPLE)
        return best


_KEEPS_UP = 0.5
"""A network that takes no more than this part of a frame's time is waited for."""


class _Answer(NamedTuple):
    estimate: Estimate
    seconds: float
    short_side: int
    frame: Frame


class LiveStream:
    """Iterable over live frames, all with a matte of their own, as `MattedFrame`s.

    The network runs in a thread of its own, always on the newest frame that it can get. A network
    that keeps up with `target_rate` is waited for. Otherwise its last matte is carried to each
    frame (`MatteCarrier`) and brought to full size by the frame's own colours (`guided_upsample`);
    the network is waited for where that is not reliable: at the first frame, after a cut.

    Args:
        frames: live ones, such as a `Camera`.
        predictor: makes the mattes.
        background: behind the person.
        method: of `estimate_foreground`.
        smooth: steady the matte over time (`Smoother`).
        target_rate: frames per second.
        auto_size: chooses the working size; None: the predictor's.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        predictor: Predictor,
        background: Background,
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
        sight = self._carrier.see(frame.image)
        coarse: NDArray[np.float32] | None = None
        while True:
            if self._pending is None:
                self._carrier.ask(sight)
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
