"""Trimaps: HxW uint8, 0 background, 128 unknown, 255 foreground."""

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import ImageError

BACKGROUND, UNKNOWN, FOREGROUND = 0, 1, 2
"""The classes, in the order of the network's trimap logits."""
VALUES = np.array([0, 128, 255], np.uint8)
"""The grey value of each class."""


def draw_trimap(alpha: NDArray[np.floating], radius: float) -> NDArray[np.uint8]:
    """HxW float alpha in [0, 1] -> HxW uint8 trimap whose unknown band reaches `radius` pixels
    (0 or more, else ImageError) past every soft pixel and to both sides of every hard edge.

    A pixel is foreground where all pixels within that distance are opaque, background where all
    are empty. "Opaque" and "empty" mean less than half a grey level of 8 bits from 1 or 0. What is
    outside the image is ignored.
    """
    if not radius >= 0:
        raise ImageError(f"trimap radius {radius} is negative: use 0 or more pixels")
    trimap = np.full(alpha.shape, VALUES[UNKNOWN])
    trimap[_inside(radius, alpha > 1 - 0.5 / 255)] = VALUES[FOREGROUND]
    trimap[_inside(radius, alpha < 0.5 / 255)] = VALUES[BACKGROUND]
    return trimap


def unknown_region(trimap: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """HxW uint8 trimap -> HxW bool, True where 128 is the nearest of 0, 128 and 255.

    Nearest instead of equal, so that trimaps saved as JPEG or with 127 count as they were meant.
    """
    _, unknown, foreground = VALUES.tolist()
    return np.asarray((trimap > unknown // 2) & (trimap < (unknown + foreground) // 2))


def _inside(radius: float, region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region that are more than `radius` from its outside."""
    # A distance transform instead of an erosion: its cost does not grow with the radius.
    if region.all():  # no outside, for which OpenCV's result is undefined
        return region
    distance = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance > radius)
