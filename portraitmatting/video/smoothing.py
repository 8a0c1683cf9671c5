"""Steady mattes: no flicker where nothing moves, no lag where something does."""

import cv2
import numpy as np
from numpy.typing import NDArray

_SMALL = 180
"""Short side at which motion is looked for: averaging takes most of the noise away."""
_KEEP = 0.8
"""How much of the last matte stays where nothing moves: a time constant of five frames."""
_NOISES = 4.0
"""A change counts as motion from so many times the frame's typical change on."""
_LOUDEST = 10.0
"""...but from so many of 255 levels on at the latest, as when everything moves."""
_QUIETEST = 1.0
_SOFTNESS = 0.3
_REACH = 15
"""Width of the surroundings, in pixels of the small image, that motion counts for: a flat sleeve
changes at its edges only."""


class Smoother:
    """Averages the mattes of one video over time, wherever the image stays the same.

    Call it with each frame in order: image HxWx3 RGB uint8 and alpha HxW float32 in [0, 1] ->
    steadied alpha, likewise. It adds no delay. A frame of another size starts afresh.

    A first-order recursive filter whose weight goes to zero where motion is detected, as in Dubois
    and Sabri, "Noise Reduction in Image Sequences Using Motion-Compensated Temporal Filtering",
    IEEE Trans. Communications 32(7), 1984; here on mattes, guided by the image. The noise is the
    median change per frame. Their motion compensation is left out: with optical flow it calmed a
    hand-held camera somewhat, but smeared moving edges.
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
        moving = _motion(before, scene)
        keep = _KEEP * (1 - cv2.resize(moving, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR))
        self._alpha = np.clip(alpha + keep * (last - alpha), 0, 1)
        return self._alpha


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    shrink = max(1.0, min(height, width) / _SMALL)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.blur(small.astype(np.float32), (3, 3)))


def _motion(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two small images hxwx3 in 0..255 -> hxw, 0 where nothing moves, 1 where something does."""
    change = np.abs(after - before).max(axis=2)
    threshold = np.clip(_NOISES * np.median(change), _QUIETEST, _LOUDEST)
    moving = np.clip((change / threshold - 1) / _SOFTNESS, 0, 1)
    return np.asarray(cv2.dilate(moving, np.ones((_REACH, _REACH), np.uint8)), np.float32)
