"""What a caller may give as an image: a path, bytes, an open file, a PIL image or an array."""

import os
from dataclasses import replace
from typing import IO, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.images.decode import DecodedImage, decode, from_pillow
from portraitmatting.images.files import read_image
from portraitmatting.images.pixels import peak, to_dtype, to_unit

Source: TypeAlias = (
    str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[Any] | DecodedImage
)
"""What `as_image` takes."""


def as_image(source: Source) -> DecodedImage:
    """The image that `source` holds, its pixels as `as_rgb` gives them.

    Arrays are HxW or HxWx1 (grey), HxWx3 (RGB), HxWx2 or HxWx4 (the same with straight alpha last),
    uint8, uint16 or float in [0, 1]. Transparent pixels come over white; alpha, profile and
    metadata are kept beside them. Raises PortraitmattingError for anything that is not an image,
    and for files that cannot be read.
    """
    if isinstance(source, DecodedImage):
        return replace(source, pixels=as_rgb(source.pixels))
    if isinstance(source, str | os.PathLike):
        return read_image(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode(bytes(source))
    if isinstance(source, Image.Image):
        return from_pillow(source)
    if hasattr(source, "read"):
        return decode(_read_open(cast("IO[bytes]", source)))
    try:
        array = np.asarray(source)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, tensors on a GPU
        array = np.empty(0, object)
    if array.dtype.kind not in "uifb" or not array.ndim:
        raise PortraitmattingError(
            "expected an image (a path, a file's bytes, a PIL image or an array HxW, HxWx3 or "
            f"HxWx4), got {type(source).__name__}"
        )
    # Arrays that were read from a file may have the other byte order.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    pixels, alpha = _split_alpha(array)
    return DecodedImage(as_rgb(pixels), None, alpha)


def as_rgb(image: NDArray[Any]) -> NDArray[Any]:
    """`image` as HxWx3 of its own dtype: uint8, uint16, or float32 in [0, 1] (from any float).

    Takes HxW and HxWx1 grey and HxWx3 RGB; raises `PortraitmattingError` for anything else.
    RGB integers come back as they are, not as a copy.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        shape = "x".join(map(str, image.shape))
        raise PortraitmattingError(
            f"expected an RGB (HxWx3) or grey (HxW) image, got {shape}{_advice(image)}"
        )
    return to_unit(image, "the image") if peak(image.dtype) == 1 else image


def _split_alpha(image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """HxWx4 RGBA or HxWx2 grey with straight alpha -> its colours over white, as files are read,
    and alpha HxW; any other image as it is, and None."""
    if image.ndim != 3 or image.shape[2] not in (2, 4) or not image.size:
        return image, None
    alpha = image[..., -1]
    weight = to_unit(alpha, "the alpha channel")[..., None]
    colours = to_unit(image[..., :-1], "the image")
    return to_dtype(1 + weight * (colours - 1), image.dtype), alpha


def _advice(image: NDArray[Any]) -> str:
    """What to do with an array that is nearly an image; empty for others."""
    if image.ndim == 3 and image.size and image.shape[2] == 4:
        return ": drop its alpha channel"
    if image.ndim == 3 and image.size and image.shape[0] in (1, 3):
        return ": put the colours last"
    return ""


def _read_open(file: IO[bytes]) -> bytes:
    """What is left of an open file. Errors cannot name it: not every file knows its name."""
    try:
        data: object = file.read()
    except (OSError, ValueError) as error:  # ValueError: a closed file, or not the text it claims
        reason = one_line(str(error)) or type(error).__name__
        raise ImageError(f"the open file cannot be read ({reason}): give its path") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(
            f'the open file gives {type(data).__name__}, not bytes: open it with "rb", or give its '
            "path"
        )
    return bytes(data)
