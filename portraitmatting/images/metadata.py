"""What results keep of their images besides pixels: EXIF, XMP and the resolution for printing."""

import re
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base

# Of the first EXIF directory, whose other tags describe the storage of pixels in the source file.
_KEPT = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist,
    Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent,
    Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject,
)  # fmt: skip
# A result has its own size, and a profile where its colours are not sRGB.
_REPLACED = (Base.ColorSpace, Base.ExifImageWidth, Base.ExifImageHeight, IFD.Interop)

_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))(\d)')
_XMP_THUMBNAILS = re.compile(rb"<xmp:Thumbnails>.*?</xmp:Thumbnails>", re.DOTALL)


@dataclass(frozen=True)
class Metadata:
    """`exif`: a TIFF structure, as PNG and WebP hold it, upright and without thumbnail; `xmp`: an
    XMP packet in UTF-8; `dpi`: dots per inch, horizontally and vertically."""

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


def parse_exif(source: bytes | Image.Image) -> Image.Exif:
    """The EXIF of a TIFF structure, a whole TIFF file or an open image; empty if it is damaged."""
    try:
        if isinstance(source, Image.Image):
            exif = source.getexif()
        else:
            exif = Image.Exif()
            exif.load(source)
        _ = dict(exif)
        return exif
    except Exception:  # Pillow raises nearly any error here
        return Image.Exif()


def read_orientation(exif: Image.Exif, xmp: bytes) -> int:
    """The orientation, 1 to 8 as in EXIF, of EXIF or else of XMP."""
    value = exif.get(Base.Orientation)
    if value is None and (match := _XMP_ORIENTATION.search(xmp)):
        value = int(match[2])
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def is_adobe_rgb(exif: Image.Exif) -> bool:
    """Whether a camera has recorded that its colours are Adobe RGB (in DCF 2.0: "uncalibrated", and
    R03 for interoperability)."""
    try:
        space = exif.get_ifd(IFD.Exif).get(Base.ColorSpace)
        index = exif.get_ifd(IFD.Interop).get(1) if space == 65535 else None
        return space == 2 or str(index).rstrip("\0 ") == "R03"
    except Exception:
        return False


def read_metadata(exif: Image.Exif, xmp: bytes, dpi: tuple[float, float] | None) -> Metadata | None:
    """The metadata for results; None if there is nothing. Damaged parts are left out without an
    error: the pixels do not depend on them. Without `dpi` the resolution is that of EXIF."""
    kept_xmp = _XMP_THUMBNAILS.sub(b"", _XMP_ORIENTATION.sub(rb"\g<1>1", xmp.rstrip(b"\0 ")))
    metadata = Metadata(_upright_exif(exif), kept_xmp or None, _read_dpi(exif, dpi))
    return None if metadata == Metadata() else metadata


def _upright_exif(exif: Image.Exif) -> bytes | None:
    try:
        kept = Image.Exif()
        kept.endian = exif.endian  # the byte order of maker notes, too
        for tag in _KEPT:
            if tag in exif:
                kept[tag] = exif[tag]
        for directory in (IFD.Exif, IFD.GPSInfo):
            values = exif.get_ifd(directory).items()
            chosen = {tag: value for tag, value in values if tag not in _REPLACED}
            if chosen:
                kept[directory] = chosen
        if not len(kept):
            return None
        kept[Base.Orientation] = 1
        return kept.tobytes().removeprefix(b"Exif\0\0")
    except Exception:
        return None


def _read_dpi(exif: Image.Exif, dpi: Any) -> tuple[float, float] | None:
    try:
        if dpi is None:
            scale = {2: 1, 3: 2.54}[exif.get(Base.ResolutionUnit, 2)]
            dpi = [scale * exif[tag] for tag in (Base.XResolution, Base.YResolution)]
        x, y = (float(value) for value in dpi)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 1 <= x <= 65535 and 1 <= y <= 65535 else None
