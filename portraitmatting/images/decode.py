"""The bytes of an image file -> RGB pixels.

Pillow reads what has 8 bits, OpenCV what has 16 bits per colour, which Pillow would cut down to
8. OpenCV gets bytes, never file names: on Windows it cannot open names outside the code page.
"""

import io
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from portraitmatting.errors import ImageError, one_line
from portraitmatting.images.metadata import Metadata, read_metadata
from portraitmatting.images.pixels import to_dtype

# Not all that Pillow opens: its EPS, for one, starts another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM")

# warnings.catch_warnings is not safe between threads, so only one of ours is in it at a time.
_quiet = threading.Lock()

# EXIF orientation -> what brings the stored HWC array upright.
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image file's content, upright."""

    pixels: NDArray[Any]
    """HxWx3 RGB, uint8 | uint16, contiguous; what is transparent lies over white."""
    icc_profile: bytes | None = None
    """What these RGB values mean; None stands for sRGB."""
    alpha: NDArray[Any] | None = None
    """HxW of the dtype of `pixels`, 0 where the file is transparent; None if it is opaque."""
    metadata: Metadata | None = None
    """What a result keeps: EXIF, XMP and resolution."""


def decode(data: bytes) -> DecodedImage:
    """The bytes of a whole image file -> its content, as `read_image` describes. Raises ImageError
    that says what is wrong and the way out, but cannot name the file."""
    if not data:
        raise ImageError("the file is empty (0 bytes): copy or download it again")
    try:
        return _decode(data)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ImageError(f"above {limit} megapixels: scale the image down") from error
    except UnidentifiedImageError as error:
        raise ImageError(_what_is(data)) from error
    # Damaged files make decoders raise nearly anything: struct.error, KeyError, MemoryError...
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise ImageError(f"damaged or incomplete ({reason}): copy or export it again") from error


def _decode(data: bytes) -> DecodedImage:
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF, and sizes that are large but allowed
        Image.init()
        formats = [name for name in _FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(data), formats=formats)
        turn = _UPRIGHT.get(_orientation(image), np.asarray)
        deep = _has_16_bit_colours(image, data)
        if image.format == "TIFF" and not deep:
            image.load()  # of other formats only the header warns, and threads decode in parallel
        metadata = read_metadata(image)
    profile = image.info.get("icc_profile")
    alpha: NDArray[Any] | None = None
    pixels: NDArray[Any]
    if deep:
        pixels, alpha = _decode_16_bit(data, premultiplied=_is_premultiplied(image))
    else:
        image.load()
        if image.mode == "F":
            raise ImageError("holds floating-point pixels: export it with 8 or 16 bits")
        if image.mode == "I" or image.mode.startswith("I;16"):
            pixels = _grey_16_bit(image)
        else:
            pixels, alpha, profile = _rgb_8_bit(image, profile)
    if alpha is not None:
        opaque = alpha.min() == np.iinfo(alpha.dtype).max
        alpha = None if opaque else np.ascontiguousarray(turn(alpha))
    pixels = np.ascontiguousarray(turn(pixels))
    return DecodedImage(pixels, _rgb_profile(profile), alpha, metadata)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # both decoders turn the pixels of a TIFF themselves
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _has_16_bit_colours(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] == 16 and image.mode in ("RGB", "RGBA", "LA")
    bits = image.tag_v2.get(258, ()) if image.format == "TIFF" else ()  # type: ignore[attr-defined]
    return 16 in bits and image.mode in ("RGB", "RGBA", "RGBX")


def _is_premultiplied(image: Image.Image) -> bool:
    return image.format == "TIFF" and 1 in image.tag_v2.get(338, ())  # type: ignore[attr-defined]


def _decode_16_bit(data: bytes, premultiplied: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 3:
        raise ImageError("damaged, or 16 bits in an unusual layout: export it again as plain RGB")
    rgb = stored[..., 2::-1]
    if stored.shape[2] == 3:
        return rgb, None
    alpha = stored[..., 3:].astype(np.float32) / 65535
    colours = rgb if premultiplied else rgb * alpha
    over_white = to_dtype((colours / 65535 + (1 - alpha)).clip(0, 1), np.uint16)
    return over_white, stored[..., 3]


def _grey_16_bit(image: Image.Image) -> NDArray[Any]:
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError("holds 32-bit integers: export it with 8 or 16 bits")
    return np.repeat(grey.astype(np.uint16)[..., None], 3, axis=2)


def _rgb_8_bit(
    image: Image.Image, profile: bytes | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, bytes | None]:
    """Pixels, alpha, and the profile if it still tells what the pixels mean."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        over_white = Image.alpha_composite(white, image).convert("RGB")
        return np.asarray(over_white), np.asarray(image.getchannel("A")), profile
    if image.mode == "LAB":
        return np.asarray(_to_srgb(image, ImageCms.createProfile("LAB"))), None, None
    space = {"CMYK": b"CMYK", "L": b"GRAY"}.get(image.mode)
    if profile and profile[16:20] == space:
        try:
            return np.asarray(_to_srgb(image, io.BytesIO(profile))), None, None
        except (ImageCms.PyCMSError, OSError):
            profile = None  # a broken profile: convert without
    return np.asarray(image.convert("RGB")), None, None if image.mode == "CMYK" else profile


def _to_srgb(image: Image.Image, source: Any) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    assert converted is not None  # it is None only when converting in place
    return converted


def _rgb_profile(profile: bytes | None) -> bytes | None:
    sound = profile and profile[36:40] == b"acsp" and profile[16:20] == b"RGB "
    return profile if sound else None


def _what_is(data: bytes) -> str:
    """What data that no decoder knows seems to be, and the way out."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image: download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not an image: run `git lfs pull`"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "HEIC is not supported: convert it to JPEG or PNG"
    signatures: dict[str, bytes | tuple[bytes, ...]] = {
        "JPEG": b"\xff\xd8",
        "PNG": b"\x89PNG",
        "WebP": b"RIFF",
        "TIFF": (b"II*\0", b"MM\0*"),
        "GIF": b"GIF8",
        "BMP": b"BM",
        "AVIF": b"\0\0\0 ftypavif",
    }
    for kind, signature in signatures.items():
        if data.startswith(signature):
            return (
                f"begins like a {kind}, but is damaged, incomplete or of an unusual kind: "
                "export it again as 8 or 16 bit PNG, TIFF or JPEG"
            )
    kind = "text" if head and head.isascii() and b"\0" not in head else "data of an unknown kind"
    return f"{kind}, not an image: PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF and PPM can be read"
