"""Live frames in, each with its matte out, however long the network takes."""

import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.matte import Matte
from portraitmatting.predictor import Estimate, Predictor
from portraitmatting.video.auto_size import AutoSize
from portraitmatting.video.carrying import MatteCarrier
from portraitmatting.video.reader import Frame
from portraitmatting.video.smoothing import Smoother
from portraitmatting.video.stream import MattedFrame, steadied

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

    def __iter__(self) -> Iterator[MattedFrame]:
        return self.frames()

    def frames(self) -> Generator[MattedFrame, None, None]:
        """The same; closing it ends the network's thread."""
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
            matte = Matte(frame.image, alpha, _trimap(alpha), str(self._predictor.device))
        carried = time.perf_counter()
        matte = steadied(matte, self._smoother)
        return MattedFrame(
            frame,
            matte,
            self._background,
            self._method,
            self._answer.short_side,
            self._answer.seconds,
            time.perf_counter() - carried,
            carried - before,
            frame.seconds - self._answer.frame.seconds,
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


def _trimap(alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0 where alpha is 0, 255 where it is 1, 128 between."""
    return np.uint8(128) * (alpha > 0) + np.uint8(127) * (alpha == 1)
