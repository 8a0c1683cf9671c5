"""What a result keeps of its source besides pixels: EXIF, XMP and the resolution for printing."""

import re
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base

# Of the first EXIF directory. Its other tags describe how the source file stored its pixels.
_KEPT = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist,
    Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent,
    Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject,
)  # fmt: skip
# A result has its own size, and a profile where its colours are not sRGB.
_REPLACED = (Base.ColorSpace, Base.ExifImageWidth, Base.ExifImageHeight, IFD.Interop)

_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))\d')
_XMP_THUMBNAILS = re.compile(rb"<xmp:Thumbnails>.*?</xmp:Thumbnails>", re.DOTALL)


@dataclass(frozen=True)
class Metadata:
    """`exif`: a TIFF structure, as PNG and WebP hold it, upright and without thumbnail; `xmp`: an
    XMP packet in UTF-8; `dpi`: dots per inch, horizontally and vertically."""

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


def read_metadata(image: Image.Image) -> Metadata | None:
    """Of an image whose file is still open; None if there is nothing to keep. What is damaged is
    left out, since it says nothing about the pixels."""
    metadata = Metadata(_read_exif(image), _read_xmp(image), _read_dpi(image))
    return None if metadata == Metadata() else metadata


def _read_exif(image: Image.Image) -> bytes | None:
    try:
        source, kept = image.getexif(), Image.Exif()
        kept.endian = source.endian  # maker notes take it for theirs
        for tag in _KEPT:
            if tag in source:
                kept[tag] = source[tag]
        for directory in (IFD.Exif, IFD.GPSInfo):
            values = {
                tag: value
                for tag, value in source.get_ifd(directory).items()
                if tag not in _REPLACED
            }
            if values:
                kept[directory] = values
        if not len(kept):
            return None
        kept[Base.Orientation] = 1
        return kept.tobytes().removeprefix(b"Exif\0\0")
    except Exception:  # Pillow raises nearly anything here, too
        return None


def _read_xmp(image: Image.Image) -> bytes | None:
    xmp: Any = image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if not isinstance(xmp, bytes) or not xmp.strip(b"\0 "):
        return None
    return _XMP_THUMBNAILS.sub(b"", _XMP_ORIENTATION.sub(rb"\g<1>1", xmp.rstrip(b"\0")))


def _read_dpi(image: Image.Image) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 1 <= x <= 65535 and 1 <= y <= 65535 else None
