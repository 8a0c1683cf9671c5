"""Image files on disk: read any common kind as RGB, read mattes, write."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from portraitmatting.atomic import atomic_path
from portraitmatting.errors import ImageError, one_line
from portraitmatting.images.decode import DecodedImage, Stored, decode, decode_with
from portraitmatting.images.encode import encode_image
from portraitmatting.images.metadata import Metadata

_Result = TypeVar("_Result")


def read_image(path: str | os.PathLike[str]) -> DecodedImage:
    """Read an image file of any kind in docs/images.md, whatever its suffix is.

    Pixels are uint16 if the file has more than 8 bits per colour, else uint8. The orientation of
    EXIF is applied. Transparent images are laid over white; of animations the first frame is read.
    CMYK, Lab, and grey with a profile become sRGB. Raises ImageError, one line, for files that
    cannot be read completely, for pixels that are no intensities from black to white, and for
    images above Pillow's limit of 179 megapixels (twice PIL.Image.MAX_IMAGE_PIXELS), which protects
    from decompression bombs.
    """
    return read_with(decode, path)


def read_with(decoder: Callable[[bytes], _Result], path: str | os.PathLike[str]) -> _Result:
    """Decode a file's bytes; an ImageError of `decoder` gets the file's name."""
    path = _as_path(path)
    name = one_line(str(path))
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be opened ({reason}): check the path") from error
    try:
        return decoder(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def write_image(
    path: str | os.PathLike[str],
    pixels: NDArray[Any],
    icc_profile: bytes | None = None,
    metadata: Metadata | None = None,
) -> None:
    """Write an image file; it appears whole or not at all.

    PNG and TIFF keep uint16; for WebP and JPEG it is rounded to 8 bits, as are floats for all. All
    but JPEG are lossless, except that fully transparent colours become black; JPEG has no
    transparency.

    Args:
        path: .png, .webp, .tif, .tiff, .jpg or .jpeg.
        pixels: HxW grey, HxWx3 RGB or HxWx4 RGBA (straight alpha), uint8 | uint16 | float in 0..1.
        icc_profile: of RGB pixels; not written with grey ones, which it does not describe.
        metadata: EXIF, XMP and resolution, in JPEG up to 64 KB of each kind.

    Raises ImageError, one line, if the file cannot be written.
    """
    path = _as_path(path)
    name = one_line(str(path))
    try:
        data = encode_image(pixels, path.suffix, icc_profile, metadata)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    except (OSError, UnicodeError, ValueError) as error:  # or a name that the system refuses
        reason = getattr(error, "strerror", None) or one_line(str(error))
        raise ImageError(f"{name}: cannot be written: {reason}: choose another output") from error


_OTHER_SCALES = (1, 2, 100, 255, 1023, 4095)
"""The largest levels of mattes that are not scaled to the file's depth: masks of 0 and 1, trimaps
of 0 to 2, percentages, and 8, 10 or 12 bits in 16."""


def read_alpha(path: Path) -> NDArray[np.float32]:
    """Read a matte as HxW float32 in [0, 1], each level divided exactly by 255 or 65535.

    The file is a grey image, or a cut-out, whose alpha is taken. Raises ImageError for files that
    cannot be read, for opaque colour images, and for levels that do not span the file's depth, such
    as a mask of 0 and 1 in 8 bits.
    """
    levels: NDArray[Any] = read_with(partial(decode_with, _levels), path)
    full = np.iinfo(levels.dtype).max
    largest = levels.max()
    # The largest level of a faint matte may be one of these, but not in 1 % of its pixels.
    if largest in _OTHER_SCALES and largest != full and np.mean(levels == largest) > 0.01:
        raise ImageError(
            f"{path}: ends at level {largest} of {full}: multiply it by {full / largest:g} to make "
            "it a matte"
        )
    # Divided, not multiplied by 1/full: metrics compare alpha with thresholds such as 51/255 = .2.
    return np.asarray(levels.astype(np.float32) / np.float32(full))


def _levels(stored: Stored) -> NDArray[Any]:
    """The matte as HxW uint8 | uint16, upright."""
    alpha, colours = stored.alpha, stored.colours
    if alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        return stored.upright(alpha)
    if colours.ndim == 3:
        if colours.shape[2] != 3 or (colours != colours[..., :1]).any():
            raise ImageError("a colour image, not a matte: expected grey or transparency")
        colours = colours[..., 0]
    return stored.upright(colours)


def _as_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ImageError(f"expected an image file's path, got {path!r}")
    return Path(path)
