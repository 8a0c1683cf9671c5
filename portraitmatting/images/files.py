"""Images on disk: read any common kind as RGB, write atomically, list a tree."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from portraitmatting.atomic import atomic_path
from portraitmatting.choices import KINDS
from portraitmatting.errors import ImageError, one_line
from portraitmatting.images.decode import DecodedImage, Stored, decode, decode_with
from portraitmatting.images.encode import encode_image
from portraitmatting.images.kinds import READABLE, unread_kind
from portraitmatting.images.metadata import Metadata

JOURNAL, RECORDS = ".portraitmatting.jsonl", ".portraitmatting"
"""What a folder job and a distributed one keep beside the folders of their results."""

_Result = TypeVar("_Result")


def read_image(path: str | os.PathLike[str]) -> DecodedImage:
    """Any file that holds an image, whatever its suffix says: docs/images.md lists the kinds.

    uint16 where the file has more than 8 bits per colour, else uint8. The orientation of EXIF is
    applied. Transparent images are laid over white, of animated ones the first frame counts. CMYK,
    Lab and grey with a profile of their own become sRGB. Raises ImageError, one line, for what
    cannot be read whole, for pixels that are no intensities from black to white, and for images
    above Pillow's limit of 179 megapixels (twice PIL.Image.MAX_IMAGE_PIXELS), which guards against
    decompression bombs.
    """
    return read_with(decode, path)


def read_with(decoder: Callable[[bytes], _Result], path: str | os.PathLike[str]) -> _Result:
    """What `decoder` makes of a file's bytes; its ImageError names the file."""
    name = one_line(os.fspath(path)) or "''"
    try:
        data = Path(path).read_bytes()
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

    PNG and TIFF keep uint16; WebP and JPEG hold 8 bits, to which uint16 is rounded. Floats are
    rounded to 8 bits. All but JPEG are lossless, save that colours under full transparency become
    black; JPEG has no transparency.

    Args:
        path: .png, .webp, .tif, .tiff, .jpg or .jpeg.
        pixels: HxW grey, HxWx3 RGB or HxWx4 RGBA (straight alpha), uint8 | uint16 | float in 0..1.
        icc_profile: of RGB pixels; left out with grey ones, which it would not describe.
        metadata: EXIF, XMP and resolution, in JPEG up to 64 KB of each kind.

    Raises ImageError, one line, for anything that keeps the file from being written.
    """
    path = Path(path)
    name = one_line(str(path))
    try:
        data = encode_image(pixels, path.suffix, icc_profile, metadata)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    except (OSError, UnicodeError, ValueError) as error:  # a name that the system does not take
        reason = getattr(error, "strerror", None) or one_line(str(error))
        raise ImageError(f"{name}: cannot be written: {reason}: choose another output") from error


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
        folder: where to look.
        exclude: a folder to leave out, such as an output folder inside the input.
        unread: counts image files of kinds that are not read, as `unread_kind` names them.
        skip_results: leave out the folders in which a job keeps results, beside its journal.

    Raises ImageError where a folder cannot be listed.
    """
    walk = walk_images(folder, exclude, unread, skip_results)
    return sorted(path for paths in walk for path in paths)


def walk_images(
    folder: str | os.PathLike[str],
    exclude: str | os.PathLike[str] | None = None,
    unread: Counter[str] | None = None,
    skip_results: bool = False,
) -> Iterator[list[Path]]:
    """What `list_images` lists, while it is looked for: one real folder's images at a time."""
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
    """The same for every name of a folder."""
    try:
        status = os.stat(folder)
    except OSError:
        return os.path.realpath(folder)
    # Some network drives have no numbers.
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


_OTHER_SCALES = (1, 2, 100, 255, 1023, 4095)
"""Largest levels of mattes that were not scaled to their file's depth: masks of 0 and 1, trimaps of
0 to 2, percentages, and 8, 10 or 12 bits in 16."""


def read_alpha(path: Path) -> NDArray[np.float32]:
    """A matte on disk -> HxW float32 in [0, 1], each level divided exactly by 255 or 65535.

    Grey images as they are, and floating point from 0 to 1; of a cut-out its transparency, unless
    that is opaque throughout. Raises ImageError for what cannot be read, for colours, and for
    levels that do not span the file's depth, such as a mask of 0 and 1 in 8 bits.
    """
    levels: NDArray[Any] = read_with(partial(decode_with, _levels), path)
    full = np.iinfo(levels.dtype).max
    largest = levels.max()
    # A faint matte may end at such a level, but not with a hundredth of all its pixels.
    if largest in _OTHER_SCALES and largest != full and np.mean(levels == largest) > 0.01:
        raise ImageError(
            f"{path}: ends at level {largest} of {full}: multiply it by {full / largest:g} to make "
            "it a matte"
        )
    # Divided, not multiplied by 1/full: metrics compare alpha with thresholds such as 51/255 = .2.
    return np.asarray(levels.astype(np.float32) / np.float32(full))


def _levels(stored: Stored) -> NDArray[Any]:
    """HxW uint8 | uint16, upright."""
    alpha, colours = stored.alpha, stored.colours
    if alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        return stored.upright(alpha)
    if colours.ndim == 3:
        if colours.shape[2] != 3 or (colours != colours[..., :1]).any():
            raise ImageError("a colour image, not a matte: expected grey or transparency")
        colours = colours[..., 0]
    return stored.upright(colours)
