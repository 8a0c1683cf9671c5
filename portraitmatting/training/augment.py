"""Random changes of an image and its matte; all choices come from the generator that is passed in.

Images are RGB HWC float32 in [0, 1], mattes HW float32 in [0, 1].
"""

import io
import math

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from portraitmatting.foreground import estimate_foreground
from portraitmatting.training.config import Augment

Image = NDArray[np.float32]
Alpha = NDArray[np.float32]


def crop(
    image: Image, alpha: Alpha, size: tuple[int, int], settings: Augment, rng: np.random.Generator
) -> tuple[Image, Alpha]:
    """A random view of the scene, from a close-up of a face to all of it, turned, stretched and
    mirrored.

    Args:
        image: the scene.
        alpha: its matte.
        size: (height, width) of the view.
        settings: chances and limits.
        rng: the source of all choices.

    Returns:
        The view and its matte. Beyond their borders both are mirrored.
    """
    height, width = alpha.shape
    whole = max(height / size[0], width / size[1])
    largest = min(height / size[0], width / size[1])
    if rng.random() < settings.close_up:
        step = largest * rng.uniform(settings.smallest_crop, 0.8)
        centre = _face(alpha, rng)
    else:
        # From a little less than fits inside to what shows everything.
        step = rng.uniform(0.85 * largest, min(whole, 1.3 * largest))
        centre = (rng.uniform(0.4, 0.6) * width, rng.uniform(0.4, 0.6) * height)
    stretch = math.exp(rng.uniform(-1, 1) * math.log1p(settings.aspect) / 2)
    steps = (step * stretch, step / stretch)
    reach = [size[i] * steps[i] / 2 for i in (0, 1)]
    # Inside the image where possible: mirrored borders are only a makeshift.
    centre = (_within(centre[0], reach[1], width), _within(centre[1], reach[0], height))
    angle = math.radians(rng.uniform(-1, 1) * settings.rotation) if rng.random() < 0.5 else 0.0
    mirror = -1.0 if rng.random() < settings.flip else 1.0
    return _warp(image, alpha, size, centre, steps, angle, mirror)


def _within(centre: float, reach: float, length: int) -> float:
    """`centre`, moved until `reach` on both sides is inside; the middle if it does not fit."""
    return length / 2 if 2 * reach >= length else min(max(centre, reach), length - reach)


def _face(alpha: Alpha, rng: np.random.Generator) -> tuple[float, float]:
    """(x, y) of a random pixel in the upper 40 % of the person, or anywhere if there is none."""
    height, width = alpha.shape
    rows = np.flatnonzero((alpha > 0.5).any(axis=1))
    if len(rows) == 0:
        return rng.uniform(0, width), rng.uniform(0, height)
    bottom = rows[0] + max(1, int(0.4 * (rows[-1] - rows[0])))
    ys, xs = np.nonzero(alpha[rows[0] : bottom] > 0.5)
    pick = int(rng.integers(len(xs)))
    return float(xs[pick]), float(rows[0] + ys[pick])


def _warp(
    image: Image,
    alpha: Alpha,
    size: tuple[int, int],
    centre: tuple[float, float],
    step: tuple[float, float],
    angle: float,
    mirror: float,
) -> tuple[Image, Alpha]:
    """Sample `size` pixels around `centre` (x, y), `step` (y, x) source pixels apart."""
    shrink = min(1.0, 1 / max(step))
    if shrink < 0.75:
        # Sampling would skip source pixels and turn hair into dots: average first.
        small = (max(1, round(alpha.shape[1] * shrink)), max(1, round(alpha.shape[0] * shrink)))
        fx, fy = small[0] / alpha.shape[1], small[1] / alpha.shape[0]
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA).astype(
            np.float32, copy=False
        )
        alpha = cv2.resize(alpha, small, interpolation=cv2.INTER_AREA).astype(
            np.float32, copy=False
        )
        centre, step = (centre[0] * fx, centre[1] * fy), (step[0] * fy, step[1] * fx)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array(
        [[cos * step[1] * mirror, -sin * step[0]], [sin * step[1] * mirror, cos * step[0]]]
    )
    middle = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    matrix = np.column_stack([turn, np.array(centre) - turn @ middle])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image, alpha = (
        np.asarray(
            cv2.warpAffine(
                a, matrix, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_REFLECT_101
            ),
            np.float32,
        )
        for a in (image, alpha)
    )
    return image, np.clip(alpha, 0, 1)


def recolour(image: Image, rng: np.random.Generator) -> Image:
    """A random exposure, gamma, contrast, white balance and saturation."""
    image = np.power(image, np.float32(math.exp(rng.uniform(-0.35, 0.35))))
    balance = np.exp(rng.uniform(-0.1, 0.1, 3) + rng.uniform(-0.15, 0.15)).astype(np.float32)
    image = image * balance
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(rng.uniform(0.6, 1.4))
    level = np.float32(image.mean())
    return np.clip(level + (image - level) * np.float32(rng.uniform(0.8, 1.2)), 0, 1)


def own_colours(image: Image, alpha: Alpha, foreground: str, rng: np.random.Generator) -> Image:
    """The person's colours, recoloured half of the time.

    Args:
        image: the person's image.
        alpha: its matte.
        foreground: a method of `estimate_foreground`.
        rng: the source of all choices.
    """
    colours = estimate_foreground(np.clip(image, 0, 1), alpha, method=foreground)  # type: ignore[arg-type]
    return recolour(colours, rng) if rng.random() < 0.5 else colours


def replace_background(
    image: Image, alpha: Alpha, background: Image, foreground: str, rng: np.random.Generator
) -> Image:
    """The person over a random view of another background.

    Args:
        image: the person's image.
        alpha: its matte.
        background: an image of any size.
        foreground: how the person's colours are estimated, as in `estimate_foreground`.
        rng: the source of all choices.
    """
    colours = own_colours(image, alpha, foreground, rng)
    view = random_view(background, alpha.shape, rng)
    weight = alpha[..., None]
    return np.asarray(weight * colours + (1 - weight) * view, np.float32)


def random_view(image: Image, size: tuple[int, ...], rng: np.random.Generator) -> Image:
    """A random crop of the image, mirrored half of the time, scaled to `size` (height, width)."""
    height, width = size
    fit = min(image.shape[0] / height, image.shape[1] / width) * rng.uniform(0.5, 1.0)
    rows, columns = max(1, int(height * fit)), max(1, int(width * fit))
    top = int(rng.integers(image.shape[0] - rows + 1))
    left = int(rng.integers(image.shape[1] - columns + 1))
    part = image[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    method = cv2.INTER_AREA if fit > 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (width, height), interpolation=method), np.float32)


def degrade(image: Image, settings: Augment, rng: np.random.Generator) -> Image:
    """Random changes as cameras and uploads make them: colour, blur, sensor noise, JPEG."""
    if rng.random() < settings.colour:
        image = recolour(image, rng)
    if rng.random() < settings.grey:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < settings.blur:
        image = _blur(image, rng)
    if rng.random() < settings.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + noise * np.float32(rng.uniform(0.005, 0.05))
    image = np.clip(image, 0, 1)
    if rng.random() < settings.jpeg:
        image = _jpeg(image, int(rng.integers(40, 95)))
    return image.astype(np.float32, copy=False)


def _blur(image: Image, rng: np.random.Generator) -> Image:
    """Out of focus, or blurred along a line of 3 to 7 pixels."""
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5)), np.float32)
    length = int(rng.integers(1, 4)) * 2 + 1
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1 / length
    turn = cv2.getRotationMatrix2D((length // 2, length // 2), rng.uniform(0, 180), 1.0)
    kernel = np.asarray(cv2.warpAffine(kernel, turn, (length, length)), np.float32)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.float32)


def _jpeg(image: Image, quality: int) -> Image:
    encoded = io.BytesIO()
    PIL.Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(
        encoded, "JPEG", quality=quality
    )
    return np.asarray(PIL.Image.open(encoded), np.float32) / np.float32(255)
