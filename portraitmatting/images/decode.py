"""The bytes of an image file -> RGB pixels, upright.

Every kind of file has one decoder that reads it correctly: tiff.py for TIFF, codecs.py for PNG and
for more than 8 bits per colour, Pillow for everything else. Nothing is written to disk, and no
other program is started, as Pillow would for EPS.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import imagecodecs
import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (makes Pillow read JPEG XL)
from numpy.typing import NDArray
from PIL import (  # noqa: F401  (each makes Pillow read its kind)
    AvifImagePlugin,
    Image,
    ImageCms,
    Jpeg2KImagePlugin,
    MpoImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from portraitmatting.errors import ImageError, one_line
from portraitmatting.images import codecs
from portraitmatting.images.colour import adobe_rgb, profile_of_codes, to_rgb
from portraitmatting.images.listing import readable_kind
from portraitmatting.images.metadata import (
    Metadata,
    is_adobe_rgb,
    parse_exif,
    read_metadata,
    read_orientation,
)
from portraitmatting.images.pixels import to_dtype
from portraitmatting.images.tiff import TiffImage

pillow_heif.register_heif_opener()
Image.preinit()  # BMP, GIF, JPEG, PNG and PNM; to load all that Pillow has takes 80 ms

_PILLOW_FORMATS = {
    "JPEG": "JPEG", "WebP": "WEBP", "GIF": "GIF", "BMP": "BMP", "AVIF": "AVIF", "HEIC": "HEIF",
    "JPEG XL": "JXL", "JPEG 2000": "JPEG2000", "PNM": "PPM", "PNG": "PNG", "TIFF": "TIFF",
}  # fmt: skip

# warnings.catch_warnings is not safe between threads: only one of ours may be in it at a time.
_quiet_lock = threading.Lock()

# EXIF orientation -> the function that turns the stored HW or HWC array upright.
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
_ROWS_AT_ONCE = 256  # laying over white takes four times the memory of these rows

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image file's content, upright."""

    pixels: NDArray[Any]
    """HxWx3 RGB, uint8 | uint16, contiguous; transparent pixels are laid over white."""
    icc_profile: bytes | None = None
    """The meaning of these RGB values; None for sRGB."""
    alpha: NDArray[Any] | None = None
    """HxW of the dtype of `pixels`, 0 where the file is transparent; None if it is opaque."""
    metadata: Metadata | None = None
    """EXIF, XMP and resolution for results."""


@dataclass
class Stored:
    """The result of a decoder: the file's levels, neither converted nor turned."""

    colours: NDArray[Any]
    """HxW grey, HxWx3 RGB or HxWx4 CMYK (0 for no ink), uint8 | uint16."""
    alpha: NDArray[Any] | None = None
    premultiplied: bool = False
    icc_profile: bytes | None = None
    orientation: int = 1
    metadata: Metadata | None = None

    def upright(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """HxW or HxWxC as stored -> turned by its orientation, contiguous."""
        return np.ascontiguousarray(_UPRIGHT.get(self.orientation, np.asarray)(pixels))


def decode(data: bytes) -> DecodedImage:
    """The bytes of a whole image file -> its content, as in `read_image`. Raises ImageError, which
    does not name the file."""
    return decode_with(_finish, data)


def decode_with(finish: Callable[[Stored], _Result], data: bytes) -> _Result:
    """Decode an image file, and return `finish` of its levels; errors as those of `decode`."""
    if not data:
        raise ImageError("the file is empty (0 bytes): copy or download it again")
    kind = readable_kind(data)
    try:
        return finish(_DECODERS.get(kind, _decode_with_pillow)(data, kind))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ImageError(f"above {limit} megapixels: scale the image down") from error
    # For damaged files decoders raise nearly any error: struct.error, KeyError, ...
    except Exception as error:
        if isinstance(error, MemoryError) or _is_short_of_memory(data, kind):
            raise ImageError(
                "not enough memory to read it: close other programs, or scale the image down"
            ) from error
        reason = one_line(str(error))
        if isinstance(error, Image.UnidentifiedImageError | LookupError) or len(reason) < 4:
            reason = f"begins like {kind}"
        raise ImageError(f"damaged or incomplete ({reason}): copy or export it again") from error


def _decode_png(data: bytes, kind: str) -> Stored:
    png = codecs.split_png(data)
    codecs.check_size(png.width, png.height)
    if png.color_type != 3:
        stored = _split_alpha(codecs.decode_png(png))
    else:
        with _quiet():
            image = Image.open(BytesIO(png.pixels), formats=["PNG"])
        stored = _from_pillow(image)
    with _quiet():
        exif = parse_exif(png.exif)
        stored.orientation = read_orientation(exif, png.xmp)
        stored.metadata = read_metadata(exif, png.xmp, png.dpi)
    stored.icc_profile = png.icc_profile
    return stored


def _decode_tiff(data: bytes, kind: str) -> Stored:
    tiff = TiffImage(data)
    codecs.check_size(tiff.width, tiff.height)
    if tiff.is_for_pillow:
        return _decode_with_pillow(data, kind)
    colours, alpha, premultiplied = tiff.read()
    with _quiet():
        exif = parse_exif(data)
        xmp = _xmp_bytes(exif.get(700))
        metadata = read_metadata(exif, xmp, None)
        profile = tiff.icc_profile
        if profile is None and colours.shape[2:] == (3,) and is_adobe_rgb(exif):
            profile = adobe_rgb()
    return Stored(colours, alpha, premultiplied, profile, tiff.orientation, metadata)


def _decode_pnm(data: bytes, kind: str) -> Stored:
    pixels = codecs.decode_pnm(data)
    return _decode_with_pillow(data, kind) if pixels is None else _split_alpha(pixels)


def _decode_jxl(data: bytes, kind: str) -> Stored:
    header = codecs.JxlHeader(data)
    codecs.check_size(header.width, header.height)
    # The plugin ends the process if it gets no memory: better to fail here.
    codecs.check_memory(header.width, header.height)
    stored = _decode_with_pillow(data, kind)
    if header.depth > 8:
        pixels = np.asarray(imagecodecs.jpegxl_decode(data, index=0))
        if pixels.dtype == np.uint16:
            deep = _split_alpha(pixels)
            stored.colours, stored.alpha = deep.colours, deep.alpha
    return stored


def _decode_with_pillow(data: bytes, kind: str) -> Stored:
    pillow_format = _PILLOW_FORMATS[kind]
    if kind == "HEIC" and b"avif" in data[8:64]:
        pillow_format = "AVIF"
    with _quiet():
        image = Image.open(BytesIO(data), formats=[pillow_format])
        if kind == "TIFF":
            image.load()  # only TIFF warns during decoding; of others threads decode in parallel
        exif = parse_exif(image)
        xmp = _xmp_bytes(image.info.get("xmp"))
        metadata = read_metadata(exif, xmp, image.info.get("dpi"))
        orientation = read_orientation(exif, xmp)
        profile = image.info.get("icc_profile") or _other_profile(data, image, exif)
    pixels = None
    if pillow_format == "AVIF":
        pixels = codecs.decode_avif(data)
    elif pillow_format == "HEIF" and (bits := image.info.get("bit_depth", 8)) > 8:
        pixels = codecs.decode_heic(data, bits)
    if pixels is None:
        stored = _from_pillow(image)
        if kind == "JPEG":
            _check_jpeg_end(data, image, stored.colours)
    else:
        stored = _split_alpha(pixels)
    # The decoder turns JPEG XL, except files that hold a recompressed JPEG; Pillow turns TIFF.
    turned = kind == "TIFF" or (kind == "JPEG XL" and not getattr(image, "jpeg", False))
    stored.orientation = 1 if turned else orientation
    stored.icc_profile, stored.metadata = profile, metadata
    return stored


def from_pillow(image: Image.Image) -> DecodedImage:
    """An image of Pillow's as if it came from a file: upright, with its profile and transparency.
    Raises ImageError, one line, if it cannot be decoded."""
    if not image.width or not image.height:
        raise ImageError(f"the PIL image has no pixels: {image.width}x{image.height}")
    try:
        with _quiet():
            image.load()  # this turns some kinds, and removes their orientation
            exif, xmp = parse_exif(image), _xmp_bytes(image.info.get("xmp"))
            metadata = read_metadata(exif, xmp, image.info.get("dpi"))
            orientation = read_orientation(exif, xmp)
        stored = _from_pillow(image)
        stored.orientation, stored.metadata = orientation, metadata
        stored.icc_profile = image.info.get("icc_profile")
        return _finish(stored)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # of a damaged file, which is read only now
        reason = one_line(str(error)) or type(error).__name__
        raise ImageError(f"the PIL image cannot be read ({reason}): load it from a file") from error


def _other_profile(data: bytes, image: Image.Image, exif: Image.Exif) -> bytes | None:
    """A profile from other information in files without an ICC profile."""
    if nclx := image.info.get("nclx_profile"):
        return profile_of_codes(nclx["color_primaries"], nclx["transfer_characteristics"])
    if image.format == "AVIF" and (start := data.find(b"colrnclx")) > 0:
        codes = data[start + 8 : start + 12]
        return profile_of_codes(int.from_bytes(codes[:2], "big"), int.from_bytes(codes[2:], "big"))
    return adobe_rgb() if image.mode == "RGB" and is_adobe_rgb(exif) else None


def _from_pillow(image: Image.Image) -> Stored:
    """The pixels of an open image."""
    image.load()
    mode = image.mode
    if mode == "F":
        return Stored(to_dtype(np.asarray(image), np.uint16))
    if mode == "I" or mode.startswith("I;16"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError("holds 32-bit integers: export it with 8 or 16 bits")
        return Stored(grey.astype(np.uint16))
    if image.has_transparency_data:
        target = "LA" if mode in ("L", "LA", "La", "1") else "RGBA"
        stored = _split_alpha(np.asarray(image if mode == target else image.convert(target)))
        if image.format == "BMP" and stored.alpha is not None and not stored.alpha.any():
            stored.alpha = None  # old programs leave the fourth byte of 32 bits empty
        return stored
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return Stored(np.asarray(converted))
    if mode in ("L", "RGB", "CMYK"):
        return Stored(np.asarray(image))
    return Stored(np.asarray(image.convert("L" if mode == "1" else "RGB")))


def _split_alpha(pixels: NDArray[Any]) -> Stored:
    """HxW, or HxWx1 to HxWx4: grey or RGB, with straight alpha last if the count is even."""
    if pixels.ndim == 2:
        return Stored(pixels)
    channels = pixels.shape[2]
    alpha = pixels[..., -1] if channels in (2, 4) else None
    return Stored(pixels[..., 0] if channels < 3 else pixels[..., :3], alpha)


def _check_jpeg_end(data: bytes, image: Image.Image, colours: NDArray[np.uint8]) -> None:
    """Raise ImageError if the scan is truncated: libjpeg fills the missing part with middle grey,
    and Pillow does not report it if an end marker follows. If an image ends in that grey, more
    bytes of scan must not change it."""
    if not (colours[-1, -1] == 128).all() or (end := data.rfind(b"\xff\xd9")) < 0:
        return
    longer = data[:end] + b"\x5a" * 64 + data[end:]
    if not np.array_equal(np.asarray(Image.open(BytesIO(longer), formats=["JPEG"])), colours):
        raise ImageError("damaged or incomplete (its scan ends early): copy or export it again")


def _finish(stored: Stored) -> DecodedImage:
    """RGB over white, upright."""
    pixels, profile = to_rgb(stored.colours, stored.icc_profile)
    alpha = stored.alpha
    if alpha is not None and alpha.min() == np.iinfo(alpha.dtype).max:
        alpha = None
    if alpha is not None:
        pixels = _over_white(pixels, alpha, stored.premultiplied)
    return DecodedImage(
        stored.upright(pixels),
        profile,
        None if alpha is None else stored.upright(alpha),
        stored.metadata,
    )


def _over_white(pixels: NDArray[Any], alpha: NDArray[Any], premultiplied: bool) -> NDArray[Any]:
    full = np.float32(np.iinfo(pixels.dtype).max)
    result = np.empty_like(pixels, order="C")
    for top in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        share = alpha[rows, :, None].astype(np.float32) / full
        colours = pixels[rows] if premultiplied else pixels[rows] * share
        result[rows] = np.rint((colours + full * (1 - share)).clip(0, full))
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings about odd EXIF, or about sizes that are large but allowed."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _xmp_bytes(xmp: Any) -> bytes:
    if isinstance(xmp, str):
        return xmp.encode()
    return xmp if isinstance(xmp, bytes) else b""


def _is_short_of_memory(data: bytes, kind: str) -> bool:
    """Whether memory may have been the problem: without it most decoders report damage."""
    try:
        if kind == "JPEG XL":  # its plugin would decode it again
            return False
        if kind == "WebP":  # not even opened then
            width, height = codecs.webp_size(data)
        else:
            with _quiet():
                width, height = Image.open(BytesIO(data), formats=[_PILLOW_FORMATS[kind]]).size
        codecs.check_memory(width, height)
    except MemoryError:
        return True
    except Exception:
        return False
    return False


_DECODERS: dict[str, Callable[[bytes, str], Stored]] = {
    "PNG": _decode_png,
    "TIFF": _decode_tiff,
    "PNM": _decode_pnm,
    "JPEG XL": _decode_jxl,
}
