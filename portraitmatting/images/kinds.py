"""Kinds of image files, recognised by name and by content; imports nothing heavy."""

import os
import re
from pathlib import PurePath

READABLE = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff",
    ".bmp", ".dib", ".gif", ".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx",
    ".ppm", ".pgm", ".pbm", ".pnm",
})  # fmt: skip
"""Suffixes of files that `read_image` reads."""

_UNREAD = frozenset({
    # cameras' raw files
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc",
    ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2",
    ".srf", ".srw", ".x3f",
    # editors' documents and vector graphics
    ".afphoto", ".ai", ".cdr", ".clip", ".emf", ".eps", ".kra", ".ora", ".pdn", ".procreate",
    ".psb", ".psd", ".sai", ".sketch", ".svg", ".svgz", ".wmf", ".xcf",
    # others
    ".avifs", ".bpg", ".cur", ".dcm", ".dds", ".djvu", ".dpx", ".exr", ".fits", ".flif", ".hdp",
    ".hdr", ".heics", ".icns", ".ico", ".j2c", ".jls", ".jpc", ".jpf", ".jpm", ".jps", ".jxr",
    ".pam", ".pcx", ".pfm", ".pic", ".qoi", ".ras", ".sgi", ".tga", ".vtf", ".wdp", ".webp2",
    ".xbm", ".xpm",
})  # fmt: skip
"""Suffixes of image files that are not read."""

HEAD = 512
"""As many bytes from a file's beginning tell its kind."""

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n",
    "WebP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "AVIF": rb".{4}ftyp(?:avif|avis)",
    "HEIC": rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    "PNM": rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d",
    # From here on those that are not read.
    "Canon raw": rb".{4}ftypcrx |II\*\0.{4}CR|II\x1a\0.{2}HEAPCCDR",
    "camera raw": rb"FUJIFILMCCD-RAW|IIU\0|IIR[OS]|MMOR|FOVb|\0MRM",
    "Photoshop": rb"8BPS",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*(?:<svg\b|(?:<\?xml|<!--|<!doctype svg).*<svg\b)",
    "GIMP": rb"gimp xcf",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance": rb"#\?(?:RADIANCE|RGBE)",
    "icon": rb"\0\0[\1\2]\0[\1-\x40]\0...\0|icns",
    "JPEG XR": rb"II\xbc[\0\1]",
    "image of a rare kind": (
        rb"DDS |qoif|BPG\xfb|FLIF|AT&TFORM.{4}DJV|%!PS-Adobe|\xd7\xcd\xc6\x9a|P7\n|P[fF]\n|SDPX"
        rb"|XPDS|SIMPLE  =|\x59\xa6\x6a\x95|\x01\xda[\0\1][\1\2]\0[\1-\3]|.{128}DICM|/\* XPM"
    ),
    "TIFF": rb"II\*\0|MM\0\*|II\+\0\x08\0|MM\0\+\0\x08",
}
_KINDS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _SIGNATURES.items()}
_READ = frozenset(list(_SIGNATURES)[:10]) | {"TIFF"}


def kind_of(head: bytes) -> str | None:
    """What sort of image begins with these bytes (`HEAD` of them are enough), if any."""
    head = head[:HEAD]
    return next((name for name, pattern in _KINDS.items() if pattern.match(head)), None)


def is_read(kind: str) -> bool:
    """Whether `read_image` reads this kind that `kind_of` returned."""
    return kind in _READ


def unread_suffix(path: PurePath) -> str | None:
    """The suffix, if it is that of an image file that is not read; for storage where looking into
    files is dear."""
    suffix = path.suffix.lower()
    return suffix if suffix in _UNREAD else None


def unread_kind(path: str | os.PathLike[str]) -> str | None:
    """What a summary calls a file that is passed over although its name or its content is that of
    an image: its suffix, or "no suffix". None for all other files, and for those that are read.

    Only regular files are opened, and what cannot be opened is no image.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix in READABLE:
        return None
    if suffix in _UNREAD:
        return suffix
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return None
    return (suffix or "no suffix") if kind_of(head) else None


def explain_unread(data: bytes, kind: str | None) -> str:
    """What data that is not read seems to be, as an error says it, and the way out."""
    if kind is not None:
        return f"a file of the kind {kind}, which is not read: export it as PNG, TIFF or JPEG"
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image: download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not an image: run `git lfs pull`"
    what = "text" if head and head.isascii() and b"\0" not in head else "data of an unknown kind"
    return (
        f"{what}, not an image: PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIC, JPEG XL, JPEG 2000 "
        "and PNM can be read"
    )
