"""Where samples come from: five kinds of folders, from which scenes are drawn at random.

Images are RGB HWC and mattes HW, float32 in [0, 1].
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.files import read_alpha, read_image
from portraitmatting.images.listing import list_images
from portraitmatting.images.pixels import to_unit
from portraitmatting.training.augment import own_colours, random_view
from portraitmatting.training.config import DataSource

Array = NDArray[np.float32]

_CANVAS = 480
"""Short side of a scene that is composed of several people."""
_WHOLE = 0.05
"""A person whose alpha nowhere exceeds this at the image's border counts as whole."""


class Scene(NamedTuple):
    """An image with its matte, from which a sample is cropped."""

    image: Array
    alpha: Array
    name: str
    """The files that it comes from."""
    background: Array | None = None
    """An image of any size to put behind the person after the crop."""


DrawScene = Callable[[np.random.Generator], Scene]


class Source(NamedTuple):
    """A folder to draw scenes from."""

    size: int
    """How many images it has."""
    draw: DrawScene
    files: dict[str, list[Path]]
    """All files that scenes are made of, by folder."""


class _Entries:
    """Draws one of the entries: each alike, or with `balance` first one of the subfolders."""

    def __init__(self, entries: Sequence[tuple[Path, ...]], balance: bool = False) -> None:
        groups: dict[Path | None, list[tuple[Path, ...]]] = {}
        for entry in entries:
            groups.setdefault(entry[0].parent if balance else None, []).append(entry)
        self._groups = list(groups.values())

    def __call__(self, rng: np.random.Generator) -> tuple[Path, ...]:
        groups = self._groups
        group = groups[rng.integers(len(groups))] if len(groups) > 1 else groups[0]
        return group[rng.integers(len(group))]


def open_source(config: DataSource) -> Source:
    """List a folder and check that every image has what its kind needs.

    `photos` contains image/NAME.* and alpha/NAME.png; `masks` contains image/NAME.*, mask/NAME.png
    (binary) and teacher/NAME.png (another model's matte); `backgrounds` contains images without
    people, `cutouts` images with an alpha channel, whose colours do not count where it is 0;
    `scenes` contains what `photos` or `cutouts` does.
    """
    paired_with = {"photos": ["alpha"], "masks": ["mask", "teacher"]}.get(config.kind)
    if config.kind == "scenes" and (Path(config.folder) / "image").is_dir():
        paired_with = ["alpha"]
    entries: list[tuple[Path, ...]]
    if paired_with:
        entries = paired(config.folder, *paired_with)
    else:
        entries = [(path,) for path in _images(config.folder)]
    files = {config.folder: [path for entry in entries for path in entry]}
    backgrounds: _Entries | None = None
    if config.backgrounds and config.kind != "backgrounds":
        images = _images(config.backgrounds)
        files.setdefault(config.backgrounds, []).extend(images)
        backgrounds = _Entries([(path,) for path in images])
    makers = {"photos": _photos, "masks": _photos, "cutouts": _cutouts, "scenes": _scenes}
    make = makers.get(config.kind, _backgrounds)
    return Source(len(entries), make(config, _Entries(entries, config.balance), backgrounds), files)


def _photos(config: DataSource, entries: _Entries, backgrounds: _Entries | None) -> DrawScene:
    def draw(rng: np.random.Generator) -> Scene:
        entry = entries(rng)
        if config.kind == "masks":
            image = _read(entry[0])
            mask, teacher = (read_matte(path, image.shape) for path in entry[1:])
            alpha = soften(mask, teacher, config.band)
        else:
            image, alpha = read_person(entry)
        if backgrounds and rng.random() < config.replace:
            (path,) = backgrounds(rng)
            return Scene(image, alpha, f"{entry[0]} over {path}", _read(path))
        return Scene(image, alpha, str(entry[0]))

    return draw


def _cutouts(config: DataSource, entries: _Entries, backgrounds: _Entries | None) -> DrawScene:
    assert backgrounds is not None

    def draw(rng: np.random.Generator) -> Scene:
        entry, (back,) = entries(rng), backgrounds(rng)
        image, alpha = _with_room(*read_person(entry), rng)
        return Scene(image, alpha, f"{entry[0]} over {back}", _read(back))

    return draw


def _backgrounds(config: DataSource, entries: _Entries, backgrounds: _Entries | None) -> DrawScene:
    def draw(rng: np.random.Generator) -> Scene:
        (path,) = entries(rng)
        image = _read(path)
        return Scene(image, np.zeros(image.shape[:2], np.float32), str(path))

    return draw


def _scenes(config: DataSource, entries: _Entries, backgrounds: _Entries | None) -> DrawScene:
    """Scenes of one to `people` people, who are whole, that is, nowhere cut by the border."""
    assert backgrounds is not None
    is_whole: dict[Path, bool] = {}

    def whole_person(rng: np.random.Generator) -> tuple[Array, Array, str]:
        for _ in range(1000):
            entry = entries(rng)
            if not is_whole.get(entry[0], True):
                continue
            image, alpha = read_person(entry)
            border = max(side.max() for side in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))
            is_whole[entry[0]] = bool(border <= _WHOLE and alpha.max() > 0.5)
            if is_whole[entry[0]]:
                return image, alpha, str(entry[0])
        raise PortraitmattingError(
            f"scenes {config.folder}: hardly a matte stays clear of its image's border: take "
            "people who are whole, or leave this source out"
        )

    def draw(rng: np.random.Generator) -> Scene:
        (back,) = backgrounds(rng)
        width, height = ((1, 1), (3, 4), (4, 3))[rng.integers(3)]
        unit = _CANVAS / min(width, height)
        image = random_view(_read(back), (round(height * unit), round(width * unit)), rng)
        alpha = np.zeros(image.shape[:2], np.float32)
        names = []
        for _ in range(int(rng.integers(1, config.people + 1))):
            person, matte, name = whole_person(rng)
            _paste(image, alpha, person, matte, config.foreground, rng)
            names.append(name)
        return Scene(image, alpha, f"{' and '.join(names)} over {back}")

    return draw


def _paste(
    image: Array,
    alpha: Array,
    person: Array,
    matte: Array,
    foreground: str,
    rng: np.random.Generator,
) -> None:
    """Put a person in front of the scene, in place: .35 to .9 of its height, never enlarged."""
    rows, columns = (np.flatnonzero((matte > 0).any(axis=axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    height, width = matte[box].shape
    wanted = min(1.0, rng.uniform(0.35, 0.9) * alpha.shape[0] / height, alpha.shape[1] / width)
    size = (max(1, int(width * wanted)), max(1, int(height * wanted)))
    person, matte = (
        np.asarray(cv2.resize(a[box], size, interpolation=cv2.INTER_AREA), np.float32)
        for a in (person, matte)
    )
    matte = np.clip(matte, 0, 1)
    person = own_colours(person, matte, foreground, rng)
    if rng.random() < 0.5:
        person, matte = person[:, ::-1], matte[:, ::-1]
    top = int(rng.uniform(0.3, 1) * (alpha.shape[0] - size[1]))
    left = int(rng.uniform(0, 1) * (alpha.shape[1] - size[0]))
    part = (slice(top, top + size[1]), slice(left, left + size[0]))
    image[part] += matte[..., None] * (person - image[part])
    alpha[part] += matte * (1 - alpha[part])


def soften(mask: Array, teacher: Array, band: float) -> Array:
    """The mask, cut at 0.5, with the teacher's alpha up to `band` short sides from its edge."""
    solid = (mask >= 0.5).astype(np.uint8)
    if solid.min() == solid.max():
        return solid.astype(np.float32)
    distance = np.maximum(*(cv2.distanceTransform(m, cv2.DIST_L2, 5) for m in (solid, 1 - solid)))
    near = distance <= band * min(mask.shape)
    return np.where(near, teacher, solid).astype(np.float32)


def _with_room(image: Array, alpha: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """The cut-out on a larger empty canvas: its bottom, and sides that cut the person, stay at the
    border."""
    height, width = alpha.shape
    above = int(rng.uniform(0, 0.4) * height)
    cut_left, cut_right = alpha[:, 0].max() > 0.5, alpha[:, -1].max() > 0.5
    left = 0 if cut_left else int(rng.uniform(0, 0.5) * width)
    right = 0 if cut_right else int(rng.uniform(0, 0.5) * width)
    room = ((above, 0), (left, right))
    return np.pad(image, (*room, (0, 0))), np.pad(alpha, room)


def paired(folder: str, *others: str) -> list[tuple[Path, ...]]:
    """Every image under `folder`/image, with the PNG of its name in each of the other folders."""
    root = Path(folder)
    entries = []
    for image in _images(str(root / "image")):
        name = image.relative_to(root / "image").with_suffix(".png")
        partners = [root / other / name for other in others]
        for path in partners:
            if not path.is_file():
                raise PortraitmattingError(f"{image} has no {path}: add it or take the image away")
        entries.append((image, *partners))
    return entries


def read_person(entry: tuple[Path, ...]) -> tuple[Array, Array]:
    """Image and alpha of a photo with its matte, or of a cut-out, which is put over black."""
    if len(entry) == 1:
        colours, alpha = read_cutout(entry[0])
        # Transparent pixels may have any colours, which black hides.
        return colours * alpha[..., None], alpha
    image = _read(entry[0])
    return image, read_matte(entry[1], image.shape)


def read_matte(path: Path, shape: tuple[int, ...]) -> Array:
    """A matte, HW, of an image of `shape` (H, W, ...)."""
    alpha = read_alpha(path)
    if alpha.shape != shape[:2]:
        sizes = [f"{w}x{h}" for h, w in (alpha.shape, shape[:2])]
        raise PortraitmattingError(
            f"{path} is {sizes[0]}, its image {sizes[1]}: resize one of them"
        )
    return alpha


def read_cutout(path: Path) -> tuple[Array, Array]:
    """Colours and alpha of an image with transparency."""
    try:
        with Image.open(path) as image:
            has_alpha = image.has_transparency_data
            pixels = np.asarray(image.convert("RGBA"))
    except OSError as error:
        raise PortraitmattingError(f"{path}: cannot be read ({error})") from None
    if not has_alpha:
        raise PortraitmattingError(
            f"{path}: expected an image with an alpha channel, such as an RGBA PNG"
        )
    unit = to_unit(pixels)
    return np.ascontiguousarray(unit[..., :3]), np.ascontiguousarray(unit[..., 3])


def _images(folder: str) -> list[Path]:
    root = Path(folder)
    if not root.is_dir():
        raise PortraitmattingError(f"{folder}: no such folder")
    paths = [root / path for path in list_images(root)]
    if not paths:
        raise PortraitmattingError(f"{folder}: holds no images")
    return paths


def _read(path: Path) -> Array:
    return to_unit(read_image(path).pixels)
