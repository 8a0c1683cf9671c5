"""Put a person on another background, and the backgrounds to choose from.

A `Background` is a callable (image, alpha) -> background: image HxWx3 RGB uint8 | uint16 | float
in 0..1 and alpha HxW float in 0..1 in, HxWx3 of the image's dtype out. It may look at the scene
(a blur of it does) or ignore it (a colour does).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from portraitmatting.choices import BACKGROUND_SYNTAX, parse_background_syntax, parse_color
from portraitmatting.errors import ImageError, PortraitmattingError
from portraitmatting.images.colour import convert_rgb
from portraitmatting.images.files import read_image
from portraitmatting.images.pixels import check_range, to_dtype, to_unit

Background = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class SrgbBackground:
    """A background that does not look at the scene, and whose colours mean sRGB: `composite`
    converts them into the image's profile."""

    paint: Callable[[NDArray[Any], bytes | None], NDArray[Any]]
    """(image, its ICC profile) -> background of its size and dtype."""

    def __call__(self, image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        return self.paint(image, None)


def composite(
    foreground: NDArray[Any],
    alpha: NDArray[Any],
    background: Background | NDArray[Any] | str,
    image: NDArray[Any] | None = None,
    icc_profile: bytes | None = None,
) -> NDArray[Any]:
    """Foreground over a background, alpha F + (1 - alpha) B in float, rounded last.

    Args:
        foreground: HxWx3, uint8 | uint16 | float in 0..1.
        alpha: HxW float in 0..1.
        background: whatever `as_background` takes.
        image: HxWx3, the image itself, for a background that looks at the scene, as a blur does;
            without it, that sees the foreground.
        icc_profile: the foreground's; colours and images of a background are sRGB and converted
            into it.

    Returns:
        HxWx3 of the foreground's dtype.

    Raises PortraitmattingError on other shapes or ranges.
    """
    weight = check_alpha(foreground, alpha)[..., None]
    check_range(foreground, "foreground")
    scene = foreground if image is None else image
    back = paint(background, scene, alpha, icc_profile)
    result = np.empty_like(foreground)
    for rows in _strips(foreground):
        below = to_unit(back[rows])
        mixed = below + weight[rows] * (to_unit(foreground[rows]) - below)
        result[rows] = to_dtype(mixed, foreground.dtype)
    return result


def paint(
    background: Background | NDArray[Any] | str,
    image: NDArray[Any],
    alpha: NDArray[Any],
    icc_profile: bytes | None = None,
) -> NDArray[Any]:
    """The background's pixels, HxWx3, for an image HxWx3, its alpha HxW and its profile. Raises
    PortraitmattingError where that is no image of this size."""
    if isinstance(background, np.ndarray) and background.shape == image.shape:
        back = background if icc_profile is None else convert_rgb(background, None, icc_profile)
    elif isinstance(painter := as_background(background), SrgbBackground):
        back = painter.paint(image, icc_profile)
    else:
        back = painter(image, alpha)
    check_range(back, "background")
    if back.shape != image.shape:
        raise PortraitmattingError(
            f"background {back.shape} does not fit foreground {image.shape}: give both one size"
        )
    return back


def rgba(foreground: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """foreground HxWx3 and alpha HxW float in 0..1 -> HxWx4, straight (not premultiplied) alpha,
    of the foreground's dtype (uint8 | uint16 | float); black where alpha is 0. Raises
    PortraitmattingError on others."""
    weight = check_alpha(foreground, alpha)
    result = np.empty((*alpha.shape, 4), foreground.dtype)
    for rows in _strips(foreground):
        level = to_dtype(weight[rows], foreground.dtype)
        # By OpenCV in a fifth of the time that NumPy takes.
        kept = cv2.bitwise_and(foreground[rows], foreground[rows], mask=(level > 0).view(np.uint8))
        cv2.merge([*cv2.split(kept), level], result[rows])
    return result


def _strips(image: NDArray[Any]) -> list[slice]:
    """Of rows: what is computed in float takes little memory beside the whole."""
    step = max(1, 2**20 // image.shape[1])
    return [slice(top, top + step) for top in range(0, image.shape[0], step)]


def check_alpha(image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float32]:
    """alpha as float32 in [0, 1], if it is one for `image`; otherwise PortraitmattingError."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise PortraitmattingError(f"expected an HxWx3 RGB image, got {image.shape}")
    if alpha.shape != image.shape[:2]:
        raise PortraitmattingError(
            f"alpha {alpha.shape} does not fit the image {image.shape[:2]}: give both one size"
        )
    if alpha.dtype.kind != "f":
        raise PortraitmattingError(
            f"alpha must be floating point in 0..1, got {alpha.dtype}: divide by its largest value"
        )
    return to_unit(alpha, "alpha")


def color(value: str) -> Background:
    """One colour everywhere: "#rrggbb", "#rgb" or a CSS name, as sRGB. Raises PortraitmattingError
    for anything else."""
    rgb = np.array(parse_color(value), np.uint8)

    def paint(image: NDArray[Any], icc_profile: bytes | None) -> NDArray[Any]:
        pixel = convert_rgb(to_dtype(rgb[None, None], _depth(image.dtype)), None, icc_profile)
        return np.broadcast_to(pixel.astype(image.dtype), image.shape)

    return SrgbBackground(paint)


def _depth(dtype: DTypeLike) -> DTypeLike:
    """The dtype that colours are converted in."""
    return np.float32 if np.dtype(dtype).kind == "f" else dtype


def image_background(pixels: NDArray[Any]) -> Background:
    """An image HxWx3 RGB, uint8 | uint16 | float, scaled to cover the image and cropped around
    its middle, never squashed."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PortraitmattingError(f"expected an HxWx3 RGB background, got {pixels.shape}")

    @functools.lru_cache(maxsize=1)  # a video, and most folders, ask for one size again and again
    def fitted(height: int, width: int, dtype: str, icc_profile: bytes | None) -> NDArray[Any]:
        covering = to_dtype(_cover(pixels, height, width), _depth(dtype))
        covering = convert_rgb(covering, None, icc_profile).astype(dtype, copy=False)
        covering.setflags(write=False)
        return covering

    def paint(image: NDArray[Any], icc_profile: bytes | None) -> NDArray[Any]:
        return fitted(image.shape[0], image.shape[1], image.dtype.str, icc_profile)

    return SrgbBackground(paint)


def _cover(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    own_height, own_width = pixels.shape[:2]
    scale = max(height / own_height, width / own_width)
    # The part of the image that will be seen, so that no more than that is scaled.
    seen_height = min(own_height, max(1, round(height / scale)))
    seen_width = min(own_width, max(1, round(width / scale)))
    top, left = (own_height - seen_height) // 2, (own_width - seen_width) // 2
    part = to_unit(pixels[top : top + seen_height, left : left + seen_width], "background")
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.clip(cv2.resize(part, (width, height), interpolation=interpolation), 0, 1)


@dataclass(frozen=True, eq=False)
class Blur:
    """A `Background`: the scene itself out of focus; `strength` is the blur's standard deviation as
    a part of the image's short side, above 0 up to 0.5, else PortraitmattingError.

    The person is first painted over with what surrounds her, so that her colours do not glow
    around her.
    """

    strength: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 0.5:
            raise PortraitmattingError(
                f"blur strength must be above 0 up to 0.5, got {self.strength}"
            )

    def __call__(self, image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        height, width = image.shape[:2]
        size, sigma = self.small(height, width)
        # To a high power, since even a pixel that is one tenth hers is tinted by her.
        absent = (1 - check_alpha(image, alpha)[..., None]) ** 8
        layers = np.dstack([to_unit(image, "image") * absent, absent])
        small = cv2.resize(layers, size[::-1], interpolation=cv2.INTER_AREA)
        scene = self.unfocus(small, sigma)
        scene = cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC)
        return to_dtype(np.clip(scene, 0, 1), image.dtype)

    def small(self, height: int, width: int) -> tuple[tuple[int, int], float]:
        """At which size (h, w) an image is blurred, and the standard deviation in pixels there: a
        wide blur leaves nothing that a smaller image could not hold, and there it is cheap."""
        sigma = self.strength * min(height, width)
        shrink = max(1.0, sigma / 4)
        size = max(1, round(height / shrink)), max(1, round(width / shrink))
        return size, sigma / shrink

    @staticmethod
    def unfocus(layers: NDArray[Any], sigma: float) -> NDArray[Any]:
        """hxwx4 float32: colours times weight, and weight in 0..1 -> colours hxwx3, blurred."""
        return cv2.GaussianBlur(_filled(layers), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _filled(layers: NDArray[Any]) -> NDArray[Any]:
    """HxWx4 of colours times weight, and weight in 0..1 -> HxWx3 colours without holes: the less
    a pixel weighs, the more it takes from a coarser copy (pull-push, Gortler et al., "The
    Lumigraph", SIGGRAPH 1996, section 3.2)."""
    colours, weight = layers[..., :3], layers[..., 3:]
    height, width = weight.shape[:2]
    if height == width == 1:
        return colours / np.maximum(weight, 1e-6)
    half = (width + 1) // 2, (height + 1) // 2
    coarse: NDArray[Any] = 4 * cv2.resize(layers, half, interpolation=cv2.INTER_AREA)
    coarse = coarse / np.maximum(coarse[..., 3:], 1)
    below = cv2.resize(_filled(coarse), (width, height), interpolation=cv2.INTER_LINEAR)
    return colours + (1 - weight) * below


def checkerboard(squares: int = 45) -> Background:
    """Grey and white squares, `squares` of them along the image's short side, as editors show
    transparency."""
    if squares < 1:
        raise PortraitmattingError(f"a checkerboard takes 1 square or more, got {squares}")

    @functools.lru_cache(maxsize=1)
    def drawn(height: int, width: int, dtype: str, icc_profile: bytes | None) -> NDArray[Any]:
        size = max(1, round(min(height, width) / squares))
        rows, columns = (np.arange(side) // size for side in (height, width))
        greys = np.repeat(np.array([[255], [204]], np.uint8), 3, axis=1)
        tones = convert_rgb(to_dtype(greys[None], _depth(dtype)), None, icc_profile)[0]
        board = tones.astype(dtype)[(rows[:, None] + columns) % 2]
        board.setflags(write=False)
        return board

    def paint(image: NDArray[Any], icc_profile: bytes | None) -> NDArray[Any]:
        return drawn(image.shape[0], image.shape[1], image.dtype.str, icc_profile)

    return SrgbBackground(paint)


def as_background(value: Background | NDArray[Any] | str) -> Background:
    """Text as `parse_background` takes it, an image HxWx3 of any size, or a `Background` already.
    Raises PortraitmattingError for other text and shapes."""
    if isinstance(value, str):
        return parse_background(value)
    return image_background(value) if isinstance(value, np.ndarray) else value


def parse_background(text: str) -> Background:
    """For command lines: "#rrggbb", "#rgb", a colour's name, "blur", "blur:0.05", "checkerboard"
    or the path of an image. Raises PortraitmattingError that lists these for anything else."""
    parsed = parse_background_syntax(text)
    if parsed == "checkerboard":
        return checkerboard()
    if parsed == "blur":
        return Blur()
    if isinstance(parsed, float):
        return Blur(parsed)
    if isinstance(parsed, tuple):
        return color(text)
    try:
        image = read_image(parsed)
    except ImageError as error:
        raise PortraitmattingError(
            f"background {text!r} is not {BACKGROUND_SYNTAX} that is an image ({error})"
        ) from error
    return image_background(convert_rgb(image.pixels, image.icc_profile))
