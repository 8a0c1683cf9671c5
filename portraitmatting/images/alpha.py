"""Mattes on disk."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from portraitmatting.errors import ImageError
from portraitmatting.images.files import read_image


def read_alpha(path: Path) -> NDArray[np.float32]:
    """A matte on disk -> HxW float32 in [0, 1], each level divided exactly by 255 or 65535.

    Grey images as they are, without regard to colour profiles; of a cut-out its transparency,
    unless that is opaque throughout. Raises ImageError for what cannot be read, and for colours.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:
        read_image(path)  # says better than Pillow what is wrong with the file
        raise ImageError(f"{path}: cannot be read as a matte: {error}") from error
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _divided(np.asarray(image), 65535)
    if image.has_transparency_data:
        transparency = np.asarray(image.convert("RGBA"))[..., 3]
        if transparency.min() < 255:
            return _divided(transparency, 255)
    rgb = np.asarray(image.convert("RGB"))
    grey = rgb[..., 0]
    if not (np.array_equal(grey, rgb[..., 1]) and np.array_equal(grey, rgb[..., 2])):
        raise ImageError(f"{path}: a colour image, not a matte: expected grey or transparency")
    return _divided(grey, 255)


def _divided(levels: NDArray[np.generic], peak: int) -> NDArray[np.float32]:
    # Divided, not multiplied by 1/peak: metrics compare alpha with thresholds such as 51/255 = .2.
    return np.asarray(levels.astype(np.float32) / np.float32(peak))
