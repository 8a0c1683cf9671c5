"""A matte carried along with the image: from the frame that the network saw to the newest one."""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

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


@dataclass(eq=False)
class MatteCarrier:
    """Carries the network's last matte to the newest frame by optical flow.

    For every frame call `see`; `carry` is its matte. Give any frame's sight to the network with
    `ask`, and its matte, when it is there, to `take_over`: from then on that one is carried.

    Flow is dense inverse search (Kroeger et al., "Fast Optical Flow using Dense Inverse Search",
    ECCV 2016) from the newest frame to the matte's, started from the sum of the flows from frame to
    frame, so that errors do not add up and large motion is followed. Flow that is not undone by the
    flow the other way round (Sundaram et al., ECCV 2010) is unreliable.
    """

    _flow: Any = field(default_factory=lambda: _dense_flow(), repr=False)
    _newest: Sight | None = None
    _asked: Sight | None = None
    _source: _Source | None = None

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


def _dense_flow() -> Any:
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flow.setFinestScale(_FINEST_SCALE)
    return flow


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
    places = flow + np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
    x, y = cv2.split(places)
    moved = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)
