"""Pixels -> the bytes of an image file, by suffix."""

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from portraitmatting.choices import DEEP_FORMATS, FORMATS
from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.images.metadata import Metadata
from portraitmatting.images.pixels import to_dtype

WRITABLE = frozenset(f".{name}" for name in FORMATS)
SIXTEEN_BIT = frozenset(f".{name}" for name in DEEP_FORMATS)

# For cut-outs these take half the time of zlib's level 2 in Pillow, and files are a tenth smaller.
_PNG_OPTIONS = {
    "level": 1,
    "strategy": imagecodecs.PNG.STRATEGY.RLE,
    "filter": imagecodecs.PNG.FILTER.PAETH,
}
_PNG_HEADER = 33  # bytes of signature and IHDR chunk, which other chunks may follow
_TIFF_LEVEL = 2
_JPEG_QUALITY = 95
_JPEG_SEGMENT = 65504  # bytes that fit into one segment together with its name
_STRIP_BYTES = 1 << 20


def encode_image(
    pixels: NDArray[Any],
    suffix: str,
    icc_profile: bytes | None = None,
    metadata: Metadata | None = None,
) -> bytes:
    """The bytes of the file that `write_image` would write.

    Args:
        pixels, icc_profile, metadata: as in `write_image`.
        suffix: of the file's name.

    Raises ImageError, which does not name the file.
    """
    suffix = suffix.lower()
    if suffix not in WRITABLE:
        raise ImageError(
            f"cannot write {suffix or 'a file without suffix'!r}: use {', '.join(sorted(WRITABLE))}"
        )
    if not isinstance(pixels, np.ndarray):
        raise ImageError(f"expected a NumPy array of pixels, got {type(pixels).__name__}")
    channels = {2: 1, 3: pixels.shape[-1]}.get(pixels.ndim) if pixels.size else None
    if channels not in (1, 3, 4):
        raise ImageError(f"expected HxW, HxWx3 or HxWx4 pixels, got {pixels.shape}")
    if channels == 4 and suffix in (".jpg", ".jpeg"):
        raise ImageError("JPEG has no transparency: write .png, .webp or .tif instead")
    deep = pixels.dtype == np.uint16 and suffix in SIXTEEN_BIT
    try:
        pixels = to_dtype(pixels, np.uint16 if deep else np.uint8)
    except PortraitmattingError as error:
        raise ImageError(str(error)) from error
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[..., 0]
    if channels == 4:  # invisible colours would take a fifth of a cut-out's bytes
        pixels = np.where(pixels[..., 3:] > 0, pixels, 0)
    pixels = np.ascontiguousarray(pixels)
    profile = None if channels == 1 else icc_profile
    metadata = metadata or Metadata()
    try:
        if suffix == ".png":
            return _encode_png(pixels, profile, metadata)
        if suffix in (".tif", ".tiff"):
            return _encode_tiff(pixels, profile, metadata)
        return _encode_with_pillow(pixels, suffix, profile, metadata)
    # For sizes above the format's limit.
    except (OSError, ValueError, imagecodecs.PngError) as error:
        reason = one_line(str(error)).rstrip(".")
        raise ImageError(f"cannot be written: {reason}: use another format or size") from error


def _encode_with_pillow(
    pixels: NDArray[np.uint8], suffix: str, icc_profile: bytes | None, metadata: Metadata
) -> bytes:
    options: dict[str, Any] = {"icc_profile": icc_profile}
    exif, xmp = metadata.exif or b"", metadata.xmp or b""
    if suffix == ".webp":
        options |= {"format": "WEBP", "lossless": True, "method": 0, "quality": 0}
        if metadata.dpi:  # only its EXIF can hold that
            directory = _load_exif(metadata.exif)
            directory[Base.XResolution], directory[Base.YResolution] = metadata.dpi
            directory[Base.ResolutionUnit] = 2
            exif = directory.tobytes()
    else:
        options |= {"format": "JPEG", "quality": _JPEG_QUALITY, "subsampling": 0}
        exif = exif and b"Exif\0\0" + exif
        exif, xmp = (data if len(data) <= _JPEG_SEGMENT else b"" for data in (exif, xmp))
        if metadata.dpi:
            options["dpi"] = metadata.dpi
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, exif=exif, xmp=xmp, **options)
    return buffer.getvalue()


def _load_exif(exif: bytes | None) -> Image.Exif:
    directory = Image.Exif()
    if exif:
        directory.load(exif)
    return directory


def _encode_png(pixels: NDArray[Any], icc_profile: bytes | None, metadata: Metadata) -> bytes:
    chunks = b""
    if icc_profile:
        chunks += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
    if metadata.dpi:
        per_metre = [round(value / 0.0254) for value in metadata.dpi]
        chunks += _png_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if metadata.exif:
        chunks += _png_chunk(b"eXIf", metadata.exif)
    if metadata.xmp:
        chunks += _png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    data = bytes(imagecodecs.png_encode(pixels, **_PNG_OPTIONS))
    return data[:_PNG_HEADER] + chunks + data[_PNG_HEADER:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _encode_tiff(pixels: NDArray[Any], icc_profile: bytes | None, metadata: Metadata) -> bytes:
    """A TIFF file. Pillow writes no 16-bit RGB, and OpenCV neither ICC profiles nor the tag that
    the fourth channel is alpha.

    Deflate with horizontal differencing (TIFF 6.0, section 14, and Adobe's technote 2 on
    compression 8), which all common programs read. Raises ValueError above 4 GB.
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = max(1, _STRIP_BYTES // (width * channels * pixels.itemsize))
    strips = [
        zlib.compress(_differences(pixels[top : top + rows]), _TIFF_LEVEL)
        for top in range(0, height, rows)
    ]
    sizes = [len(strip) for strip in strips]
    if sum(sizes) >= 2**32 - 2**20:
        raise ValueError("a TIFF holds at most 4 GB")
    tags = ImageFileDirectory_v2()
    exif = _load_exif(metadata.exif)
    for tag in exif:
        tags[tag] = exif.get_ifd(tag) if tag in (IFD.Exif, IFD.GPSInfo) else exif[tag]
    if metadata.xmp:
        tags[700] = metadata.xmp
    if metadata.dpi:
        (tags[282], tags[283]), tags[296] = metadata.dpi, 2  # per inch
    tags[256], tags[257] = width, height
    tags[258] = (8 * pixels.itemsize,) * channels
    tags[259] = 8  # Deflate
    tags[262] = 1 if channels == 1 else 2  # grey, black is zero | RGB
    # Pillow's directory counts strip offsets from its own end.
    tags[273] = tuple(np.cumsum([0, *sizes[:-1]]).tolist())
    tags[277] = channels
    tags[278] = rows
    tags[279] = tuple(sizes)
    tags[284] = 1  # colours side by side
    tags[317] = 2  # horizontal differencing
    if channels == 4:
        tags[338] = 2  # the extra channel is straight alpha
    if icc_profile:
        tags.tagtype[34675] = 7
        tags[34675] = icc_profile
    header = b"II*\0" + (8).to_bytes(4, "little")
    return b"".join([header, tags.tobytes(8), *strips])


def _differences(strip: NDArray[Any]) -> bytes:
    """Each pixel minus its left neighbour, modulo the depth, little-endian."""
    delta = strip.copy()
    delta[:, 1:] -= strip[:, :-1]
    return delta.astype(delta.dtype.newbyteorder("<"), copy=False).tobytes()
