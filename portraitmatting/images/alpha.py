"""Mattes on disk: their levels as they are, without regard to colour profiles."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import ImageError
from portraitmatting.images.decode import Stored, decode_with
from portraitmatting.images.files import read_with

_OTHER_SCALES = (1, 2, 100, 255, 1023, 4095)
"""Largest levels of mattes that were not scaled to their file's depth: masks of 0 and 1, trimaps of
0 to 2, percentages, and 8, 10 or 12 bits in 16."""


def read_alpha(path: Path) -> NDArray[np.float32]:
    """A matte on disk -> HxW float32 in [0, 1], each level divided exactly by 255 or 65535.

    Grey images as they are, and floating point from 0 to 1; of a cut-out its transparency, unless
    that is opaque throughout. Raises ImageError for what cannot be read, for colours, and for
    levels that do not span the file's depth, such as a mask of 0 and 1 in 8 bits.
    """
    levels: NDArray[Any] = read_with(partial(decode_with, _levels), path)
    full = np.iinfo(levels.dtype).max
    largest = levels.max()
    # A faint matte may end at such a level, but not with a hundredth of all its pixels.
    if largest in _OTHER_SCALES and largest != full and np.mean(levels == largest) > 0.01:
        raise ImageError(
            f"{path}: ends at level {largest} of {full}: multiply it by {full / largest:g} to make "
            "it a matte"
        )
    # Divided, not multiplied by 1/full: metrics compare alpha with thresholds such as 51/255 = .2.
    return np.asarray(levels.astype(np.float32) / np.float32(full))


def _levels(stored: Stored) -> NDArray[Any]:
    """HxW uint8 | uint16, upright."""
    alpha, colours = stored.alpha, stored.colours
    if alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        return stored.upright(alpha)
    if colours.ndim == 3:
        if colours.shape[2] != 3 or (colours != colours[..., :1]).any():
            raise ImageError("a colour image, not a matte: expected grey or transparency")
        colours = colours[..., 0]
    return stored.upright(colours)
