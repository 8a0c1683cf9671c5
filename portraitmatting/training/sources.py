"""Where samples come from: four kinds of folders, each a list of scenes to draw at random.

A scene is an image with its matte before augmentation: RGB HWC and alpha HW, float32 in [0, 1].
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import estimate_foreground
from portraitmatting.images.files import list_images, read_image
from portraitmatting.images.pixels import to_unit
from portraitmatting.training.augment import recolour
from portraitmatting.training.config import DataSource

Array = NDArray[np.float32]


class Scene(NamedTuple):
    """An image, its matte, and the files they come from."""

    image: Array
    alpha: Array
    name: str


class Source(NamedTuple):
    """A folder's images: how many, and how to draw a scene of one."""

    size: int
    draw: Callable[[np.random.Generator], Scene]


def open_source(config: DataSource) -> Source:
    """List a folder and check that every image has what its kind needs.

    `photos` holds image/NAME.* and alpha/NAME.png; `masks` holds image/NAME.*, mask/NAME.png
    (binary) and teacher/NAME.png (a matte from another model); `cutouts` and `backgrounds` hold
    images, the former with an alpha channel, whose colours may mean nothing where it is 0.
    """
    makers = {"photos": _photos, "masks": _masks, "cutouts": _cutouts, "backgrounds": _backgrounds}
    return makers[config.kind](config)


def _photos(config: DataSource) -> Source:
    pairs = paired(config.folder, "alpha")
    behind = _images(config.backgrounds) if config.backgrounds else []

    def draw(rng: np.random.Generator) -> Scene:
        image_path, alpha_path = pairs[rng.integers(len(pairs))]
        image = _read(image_path)
        alpha = read_alpha(alpha_path, image.shape)
        name = str(image_path)
        if behind and rng.random() < config.replace:
            path = behind[rng.integers(len(behind))]
            foreground = estimate_foreground(image, alpha, method="fast")
            image = _over(foreground, alpha, _read(path), rng)
            name = f"{name} over {path}"
        return Scene(image, alpha, name)

    return Source(len(pairs), draw)


def _masks(config: DataSource) -> Source:
    triples = paired(config.folder, "mask", "teacher")

    def draw(rng: np.random.Generator) -> Scene:
        image_path, mask_path, teacher_path = triples[rng.integers(len(triples))]
        image = _read(image_path)
        mask, teacher = (read_alpha(path, image.shape) for path in (mask_path, teacher_path))
        return Scene(image, soften(mask, teacher, config.band), str(image_path))

    return Source(len(triples), draw)


def _cutouts(config: DataSource) -> Source:
    cutouts = _images(config.folder)
    behind = _images(str(config.backgrounds))

    def draw(rng: np.random.Generator) -> Scene:
        path, back = cutouts[rng.integers(len(cutouts))], behind[rng.integers(len(behind))]
        image, alpha = read_cutout(path)
        # Over black nothing is left of the colours that the cut-out's transparency hides.
        foreground = estimate_foreground(image * alpha[..., None], alpha, method="fast")
        foreground, alpha = _with_room(foreground, alpha, rng)
        image = _over(foreground, alpha, _read(back), rng)
        return Scene(image, alpha, f"{path} over {back}")

    return Source(len(cutouts), draw)


def _backgrounds(config: DataSource) -> Source:
    paths = _images(config.folder)

    def draw(rng: np.random.Generator) -> Scene:
        path = paths[rng.integers(len(paths))]
        image = _read(path)
        return Scene(image, np.zeros(image.shape[:2], np.float32), str(path))

    return Source(len(paths), draw)


def soften(mask: Array, teacher: Array, band: float) -> Array:
    """The mask, cut at one half, with the teacher's alpha within `band` short sides of its edge."""
    solid = (mask >= 0.5).astype(np.uint8)
    if solid.min() == solid.max():
        return solid.astype(np.float32)
    distance = np.maximum(*(cv2.distanceTransform(m, cv2.DIST_L2, 5) for m in (solid, 1 - solid)))
    near = distance <= band * min(mask.shape)
    return np.where(near, teacher, solid).astype(np.float32)


def _over(foreground: Array, alpha: Array, background: Array, rng: np.random.Generator) -> Array:
    """The person, in another light half of the time, over a random view of `background`."""
    if rng.random() < 0.5:
        foreground = recolour(foreground, rng)
    weight = alpha[..., None]
    behind = _view(background, alpha.shape, rng)
    return np.asarray(weight * foreground + (1 - weight) * behind, np.float32)


def _view(picture: Array, size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A random crop of the image, of `size`'s shape, at most as large as fits."""
    height, width = size
    fit = min(picture.shape[0] / height, picture.shape[1] / width) * rng.uniform(0.5, 1.0)
    rows, columns = max(1, int(height * fit)), max(1, int(width * fit))
    top = int(rng.integers(picture.shape[0] - rows + 1))
    left = int(rng.integers(picture.shape[1] - columns + 1))
    part = picture[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    method = cv2.INTER_AREA if fit > 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (width, height), interpolation=method), np.float32)


def _with_room(image: Array, alpha: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """The cut-out on a larger empty canvas, on its lower edge; cut sides stay at the border."""
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
    images = _images(str(root / "image"))
    found = []
    for image in images:
        name = image.relative_to(root / "image").with_suffix(".png")
        beside = [root / other / name for other in others]
        for path in beside:
            if not path.is_file():
                raise PortraitmattingError(f"{image} has no {path}: add it or take the image away")
        found.append((image, *beside))
    return found


def read_alpha(path: Path, shape: tuple[int, ...]) -> Array:
    """A grey image as alpha; `shape`, (H, W, ...), is that of the image it belongs to."""
    alpha = _read(path)[..., 0]
    if alpha.shape != shape[:2]:
        sizes = [f"{w}x{h}" for h, w in (alpha.shape, shape[:2])]
        raise PortraitmattingError(
            f"{path} is {sizes[0]}, its image {sizes[1]}: resize one of them"
        )
    return np.ascontiguousarray(alpha)


def read_cutout(path: Path) -> tuple[Array, Array]:
    """Colours and alpha of an image with transparency."""
    try:
        with Image.open(path) as picture:
            clear = picture.has_transparency_data
            pixels = np.asarray(picture.convert("RGBA"))
    except OSError as error:
        raise PortraitmattingError(f"{path}: cannot be read ({error})") from None
    if not clear:
        raise PortraitmattingError(
            f"{path}: expected an image with an alpha channel, such as an RGBA PNG"
        )
    unit = to_unit(pixels)
    return np.ascontiguousarray(unit[..., :3]), np.ascontiguousarray(unit[..., 3])


def _images(folder: str) -> list[Path]:
    root = Path(folder)
    if not root.is_dir():
        raise PortraitmattingError(f"{folder}: no such folder")
    found = [root / path for path in list_images(root)]
    if not found:
        raise PortraitmattingError(f"{folder}: holds no images")
    return found


def _read(path: Path) -> Array:
    return to_unit(read_image(path).pixels)
