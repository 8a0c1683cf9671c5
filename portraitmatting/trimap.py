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
    """HxW float alpha in [0, 1] -> HxW uint8 trimap.

    The unknown band reaches `radius` pixels beyond every soft pixel and to both sides of every hard
    edge. A pixel is foreground if all pixels within that distance are opaque, and background if all
    are empty: if their alpha is 1 or 0 when rounded to 8 bits. Only pixels of the image count.
    Raises ImageError for a negative radius.
    """
    if not radius >= 0:
        raise ImageError(f"trimap radius {radius} is negative: use 0 or more pixels")
    trimap = np.full(alpha.shape, VALUES[UNKNOWN])
    trimap[_inside(radius, alpha > 1 - 0.5 / 255)] = VALUES[FOREGROUND]
    trimap[_inside(radius, alpha < 0.5 / 255)] = VALUES[BACKGROUND]
    return trimap


def unknown_region(trimap: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """HxW uint8 trimap -> HxW bool, True where 128 is the nearest of 0, 128 and 255.

    Nearest and not equal, because JPEG changes values a little, and some tools write 127.
    """
    _, unknown, foreground = VALUES.tolist()
    return np.asarray((trimap > unknown // 2) & (trimap < (unknown + foreground) // 2))


def _inside(radius: float, region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region HxW that are more than `radius` away from all pixels outside it."""
    # Unlike an erosion's, the cost of a distance transform does not grow with the radius.
    if region.all():  # nothing is outside: OpenCV's result is undefined
        return region
    distance = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance > radius)
