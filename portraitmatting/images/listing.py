"""Which files are images: by suffix, by content, and below a folder. Imports nothing heavy."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from portraitmatting.choices import KINDS
from portraitmatting.errors import ImageError, one_line

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
"""Bytes from a file's beginning that are enough to recognise its kind."""

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
    # Kinds from here on are not read, except TIFF.
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

JOURNAL, RECORDS = ".portraitmatting.jsonl", ".portraitmatting"
"""Files of the folder job and of the distributed job beside the folders of their results."""


def kind_of(head: bytes) -> str | None:
    """The kind of image that begins with these bytes (`HEAD` of them are enough), if any."""
    head = head[:HEAD]
    return next((name for name, pattern in _KINDS.items() if pattern.match(head)), None)


def unread_suffix(path: PurePath) -> str | None:
    """The suffix, if it is that of an image file of a kind that is not read. Does not open the
    file, which takes long in object stores."""
    suffix = path.suffix.lower()
    return suffix if suffix in _UNREAD else None


def unread_kind(path: str | os.PathLike[str]) -> str | None:
    """The suffix (or "no suffix") of an image file, by name or content, of a kind that is not read.
    None for all other files.

    Only regular files are opened; a file that cannot be opened counts as no image.
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


def readable_kind(data: bytes) -> str:
    """The kind of image that begins with these bytes; raises ImageError, which says what else they
    seem to be, if it is none that is read."""
    kind = kind_of(data)
    if kind in _READ:
        return kind
    if kind is not None:
        raise ImageError(
            f"a file of the kind {kind}, which is not read: export it as PNG, TIFF or JPEG"
        )
    head = data[:HEAD].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        raise ImageError("an HTML page, not an image: download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise ImageError("a Git LFS pointer, not an image: run `git lfs pull`")
    is_text = head and head.isascii() and b"\0" not in head
    raise ImageError(
        f"{'text' if is_text else 'data of an unknown kind'}, not an image: PNG, JPEG, WebP, TIFF, "
        "BMP, GIF, AVIF, HEIC, JPEG XL, JPEG 2000 and PNM can be read"
    )


def list_images(
    folder: str | os.PathLike[str],
    exclude: str | os.PathLike[str] | None = None,
    unread: Counter[str] | None = None,
    skip_results: bool = False,
) -> list[Path]:
    """The images below `folder`, by suffix, as sorted paths relative to it.

    Hidden names are left out. Symlinks are followed, but each real folder is visited once, so that
    loops end. Dangling links are listed: reading them reports them.

    Args:
        folder: the folder.
        exclude: a folder to leave out, such as an output folder inside the input.
        unread: counts image files of kinds that are not read, by `unread_kind`.
        skip_results: leave out folders of a job's results, which are beside its journal.

    Raises ImageError if a folder cannot be listed.
    """
    walk = walk_images(folder, exclude, unread, skip_results)
    return sorted(path for paths in walk for path in paths)


def walk_images(
    folder: str | os.PathLike[str],
    exclude: str | os.PathLike[str] | None = None,
    unread: Counter[str] | None = None,
    skip_results: bool = False,
) -> Iterator[list[Path]]:
    """The images below `folder`, as `list_images` describes them, one folder at a time.

    Args:
        folder: as in `list_images`.
        exclude: as in `list_images`.
        unread: as in `list_images`.
        skip_results: as in `list_images`.
    """
    root = Path(folder)
    visited = set() if exclude is None else {_identity(exclude)}
    waiting = [Path()]
    while waiting:
        below = waiting.pop()
        identity = _identity(root / below)
        if identity in visited:
            continue
        visited.add(identity)
        folders, paths = _list_folder(root, below, unread, skip_results)
        if paths:
            yield paths
        waiting += reversed(folders)


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int] | str:
    """A value that is the same for all paths of a folder."""
    try:
        status = os.stat(folder)
    except OSError:
        return os.path.realpath(folder)
    # Some network drives have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _list_folder(
    root: Path, below: Path, unread: Counter[str] | None, skip_results: bool
) -> tuple[list[Path], list[Path]]:
    """The folders and the images in one folder, sorted, relative to `root`."""
    try:
        with os.scandir(root / below) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(
            f"{one_line(str(root / below))}: cannot be listed: {error.strerror}: check the path"
        ) from error
    holds_results = skip_results and any(entry.name in (JOURNAL, RECORDS) for entry in entries)
    folders: list[Path] = []
    paths: list[Path] = []
    for entry in entries:
        if entry.name.startswith(".") or (holds_results and entry.name in KINDS):
            continue
        path = below / entry.name
        if os.path.isdir(entry.path):
            folders.append(path)
        elif path.suffix.lower() not in READABLE:
            if unread is not None and (kind := unread_kind(entry.path)):
                unread[kind] += 1
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            paths.append(path)
    return folders, paths
