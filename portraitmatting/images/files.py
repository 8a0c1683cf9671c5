"""Images on disk: read any common kind as RGB, write atomically, list a tree.

The files themselves are taken apart in decode.py and put together in encode.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from portraitmatting.atomic import atomic_path
from portraitmatting.errors import ImageError, one_line
from portraitmatting.images.decode import DecodedImage, decode
from portraitmatting.images.encode import encode_image
from portraitmatting.images.metadata import Metadata

READABLE = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff",
    ".bmp", ".gif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm",
})  # fmt: skip


def read_image(path: str | os.PathLike[str]) -> DecodedImage:
    """Any file that holds an image -> `Image`, whatever its suffix says.

    uint16 where the file has 16 bits per colour, else uint8. EXIF orientation is applied.
    Transparent images are laid over white, of animated ones the first frame counts. CMYK, Lab
    and grey with a profile of their own go through it to sRGB. Raises ImageError, one line, for
    what cannot be read whole, floating-point pixels, and images above Pillow's limit of
    179 megapixels (twice PIL.Image.MAX_IMAGE_PIXELS), which guards against decompression bombs.
    """
    name = one_line(os.fspath(path))
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be opened ({reason}): check the path") from error
    try:
        return decode(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def write_image(
    path: str | os.PathLike[str],
    pixels: NDArray[Any],
    icc_profile: bytes | None = None,
    metadata: Metadata | None = None,
) -> None:
    """HxW grey, HxWx3 RGB or HxWx4 RGBA (straight alpha), uint8 | uint16 | float in 0..1, to
    .png, .webp, .tif, .tiff, .jpg or .jpeg, by the suffix.

    PNG and TIFF keep uint16; WebP and JPEG hold 8 bits, to which uint16 is rounded. Floats are
    rounded to 8 bits. All but JPEG are lossless, save that colours under full transparency become
    black; JPEG has no transparency. The RGB `icc_profile` goes along, except with grey pixels,
    which it would not describe, and so does `metadata` (in JPEG up to 64 KB of each kind). The
    file appears whole or not at all. Raises ImageError, one line, for anything that keeps the file
    from being written.
    """
    path = Path(path)
    name = one_line(str(path))
    try:
        data = encode_image(pixels, path.suffix, icc_profile, metadata)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    except OSError as error:
        reason = error.strerror or one_line(str(error))
        raise ImageError(f"{name}: cannot be written: {reason}: choose another output") from error


def list_images(
    folder: str | os.PathLike[str], exclude: str | os.PathLike[str] | None = None
) -> list[Path]:
    """The images below `folder`, by suffix, as sorted paths relative to it.

    Hidden names are left out, and so is the folder `exclude` (an output folder inside the input).
    Symlinks are followed, but each real folder is visited once, so that loops end. Dangling links
    are listed: reading them tells the user. Raises ImageError where a folder cannot be listed.
    """
    return sorted(path for paths in walk_images(folder, exclude) for path in paths)


def walk_images(
    folder: str | os.PathLike[str], exclude: str | os.PathLike[str] | None = None
) -> Iterator[list[Path]]:
    """What `list_images` lists, while it is looked for: one real folder's images at a time."""
    visited = set() if exclude is None else {os.path.realpath(exclude)}
    return _walk(Path(folder), Path(), visited)


def _walk(root: Path, below: Path, visited: set[str]) -> Iterator[list[Path]]:
    folder = root / below
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(
            f"{one_line(str(folder))}: cannot be listed: {error.strerror}: check the path"
        ) from error
    folders: list[Path] = []
    paths: list[Path] = []
    for entry in found:
        if entry.name.startswith("."):
            continue
        path = below / entry.name
        if os.path.isdir(entry.path):
            folders.append(path)
        elif path.suffix.lower() in READABLE and (
            os.path.isfile(entry.path) or not os.path.exists(entry.path)
        ):
            paths.append(path)
    if paths:
        yield paths
    for path in folders:
        yield from _walk(root, path, visited)
