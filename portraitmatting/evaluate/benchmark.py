"""Benchmark folders: each image with its ground truth and its trimap."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.listing import list_images


class Sample(NamedTuple):
    """An image with its ground truth. `name` is the path below the image folder, without
    suffix, in POSIX form; `trimap` is None where the benchmark has none."""

    name: str
    image: Path
    ground_truth: Path
    trimap: Path | None


@dataclass(frozen=True)
class Benchmark:
    """The samples of a folder in natural order (frame 2 before frame 10), and its layout's name."""

    folder: Path
    layout: str
    samples: tuple[Sample, ...]


class _Layout(NamedTuple):
    name: str
    image: str
    alpha: str


# P3M-10k: Li et al., "Privacy-Preserving Portrait Matting", ACM MM 2021. AIM-500: Li et al., "Deep
# Automatic Natural Image Matting", IJCAI 2021. PPM-100: Ke et al., "MODNet", AAAI 2022; there
# are copies of it with either pair of folder names.
_LAYOUTS = (
    _Layout("P3M-10k", "blurred_image", "mask"),
    _Layout("P3M-10k", "original_image", "mask"),
    _Layout("AIM-500", "original", "mask"),
    _Layout("PPM-100", "image", "matte"),
    _Layout("PPM-100", "fg", "alpha"),
    _Layout("plain", "image", "alpha"),
)
_TRIMAP = "trimap"
# Where the folders of a layout may be, below the given one. Folders of one line belong together.
_PARTS = (
    (".",),
    ("validation/P3M-500-P", "validation/P3M-500-NP"),
    ("P3M-500-P", "P3M-500-NP"),
    ("val",),
    ("validation",),
)


def find_benchmark(folder: str | os.PathLike[str]) -> Benchmark:
    """Recognise a benchmark by its folders, with ground truth (and trimaps) of the same names.

    P3M-10k (the whole, or one part of its validation set), PPM-100, AIM-500, or plain `image/` with
    `alpha/` and perhaps `trimap/`; image trees may be nested. Raises PortraitmattingError, one
    line, for a folder that is none of these, is empty, or lacks the alpha of an image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise PortraitmattingError(f"{root}: no such folder")
    for names in _PARTS:
        parts = [(name, layout) for name in names if (layout := _layout_of(root / name))]
        if parts:
            break
    else:
        raise PortraitmattingError(
            f"{root}: no benchmark found: expected image/ and alpha/ in it, "
            "or the folders of P3M-10k, PPM-100 or AIM-500"
        )
    samples: list[Sample] = []
    for name, layout in parts:
        prefix = f"{Path(name).name}/" if len(parts) > 1 else ""
        samples += _samples(root / name, layout, prefix)
    folders = " and ".join(
        f"{(Path(name) / layout.image).as_posix()}/ with {layout.alpha}/" for name, layout in parts
    )
    return Benchmark(root, f"{parts[0][1].name}: {folders}", tuple(samples))


def index_by_name(folder: Path) -> dict[str, Path]:
    """Every image below `folder` under its relative POSIX path without suffix, in natural order.

    Raises PortraitmattingError for two that differ by suffix only.
    """
    paths: dict[str, Path] = {}
    for path in sorted(list_images(folder), key=_natural):
        name = path.with_suffix("").as_posix()
        if name in paths:
            raise PortraitmattingError(
                f"{paths[name]} and {folder / path} differ by suffix only: keep one of them"
            )
        paths[name] = folder / path
    return paths


def _layout_of(folder: Path) -> _Layout | None:
    for layout in _LAYOUTS:
        if (folder / layout.image).is_dir() and (folder / layout.alpha).is_dir():
            return layout
    return None


def _samples(folder: Path, layout: _Layout, prefix: str) -> list[Sample]:
    images = index_by_name(folder / layout.image)
    ground_truths = index_by_name(folder / layout.alpha)
    if not images:
        raise PortraitmattingError(f"{folder / layout.image}: holds no images")
    if missing := [name for name in images if name not in ground_truths]:
        more = f" (nor for {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise PortraitmattingError(
            f"no alpha for {images[missing[0]]}{more}: "
            f"add {folder / layout.alpha / missing[0]}.png or take the image away"
        )
    has_trimaps = (folder / _TRIMAP).is_dir()
    trimaps = index_by_name(folder / _TRIMAP) if has_trimaps else {}
    return [
        Sample(
            prefix + name,
            image,
            ground_truths[name],
            # A missing trimap keeps its path, so that reading it fails: a drawn one would mix two
            # protocols.
            trimaps.get(name, folder / _TRIMAP / f"{name}.png") if has_trimaps else None,
        )
        for name, image in images.items()
    ]


def _natural(path: Path) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces]
