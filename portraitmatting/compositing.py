"""Put a person on another background, and the backgrounds to choose from.

A `Background` is a callable (image, alpha) -> background. It gets the image HxWx3 RGB, uint8 |
uint16 | float in 0..1, and alpha HxW float in 0..1, and returns HxWx3 of the image's dtype. It may
depend on the scene, as a blur does, or only on its size, as a colour does.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.choices import BACKGROUND_SYNTAX, parse_background_syntax, parse_color
from portraitmatting.errors import ImageError, PortraitmattingError
from portraitmatting.images.colour import convert_rgb
from portraitmatting.images.files import read_image
from portraitmatting.images.pixels import check_range, to_dtype, to_unit

Background = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class SrgbBackground:
    """A `Background` that does not depend on the scene and is given in sRGB: `composite` has it
    converted to the image's ICC profile."""

    make: Callable[[int, int, str, bytes | None], NDArray[Any]]
    """(height, width, dtype, ICC profile) -> the background of this kind."""

    def __call__(
        self, image: NDArray[Any], alpha: NDArray[Any], icc_profile: bytes | None = None
    ) -> NDArray[Any]:
        return self.make(image.shape[0], image.shape[1], image.dtype.str, icc_profile)


def composite(
    foreground: NDArray[Any],
    alpha: NDArray[Any],
    background: Background | NDArray[Any] | str,
    image: NDArray[Any] | None = None,
    icc_profile: bytes | None = None,
) -> NDArray[Any]:
    """Foreground over a background: alpha F + (1 - alpha) B, computed in float32, then rounded.

    Args:
        foreground: HxWx3 RGB, uint8 | uint16 | float in 0..1.
        alpha: HxW float in 0..1.
        background: a colour, "blur", the path of an image, an image HxWx3 of any size or a
            `Background`, as `as_background` takes them.
        image: HxWx3, the original image, for backgrounds that depend on the scene, such as a blur;
            the foreground by default.
        icc_profile: that of the foreground, or None for sRGB. Backgrounds given as colours or
            images are sRGB and converted to it.

    Returns:
        HxWx3 of the foreground's dtype.

    Raises PortraitmattingError for other shapes or ranges.
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
    """The pixels of a background for an image: HxWx3, of any supported dtype.

    Raises PortraitmattingError if `background` is unknown or does not give an image of this size.

    Args:
        background: as `as_background` takes it.
        image: HxWx3 RGB, uint8 | uint16 | float in 0..1.
        alpha: the image's, HxW float in 0..1.
        icc_profile: the image's, or None for sRGB.
    """
    if isinstance(background, np.ndarray) and background.shape == image.shape:
        back = background if icc_profile is None else convert_rgb(background, None, icc_profile)
    elif isinstance(painter := as_background(background), SrgbBackground):
        back = painter(image, alpha, icc_profile)
    else:
        back = painter(image, alpha)
    if not isinstance(back, np.ndarray):
        raise PortraitmattingError(
            f"a background gives an array HxWx3, this one gives {type(back).__name__}"
        )
    check_range(back, "background")
    if back.shape != image.shape:
        raise PortraitmattingError(
            f"background {back.shape} does not fit foreground {image.shape}: give both one size"
        )
    return back


def rgba(foreground: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """The cut-out: foreground HxWx3 (uint8 | uint16 | float in 0..1) and alpha HxW float in 0..1 ->
    HxWx4 of the foreground's dtype, with straight (not premultiplied) alpha, black where alpha is
    0. Raises PortraitmattingError for other arrays."""
    weight = check_alpha(foreground, alpha)
    result = np.empty((*alpha.shape, 4), foreground.dtype)
    for rows in _strips(foreground):
        level = to_dtype(weight[rows], foreground.dtype)
        # OpenCV takes a fifth of NumPy's time.
        kept = cv2.bitwise_and(foreground[rows], foreground[rows], mask=(level > 0).view(np.uint8))
        cv2.merge([*cv2.split(kept), level], result[rows])
    return result


def _strips(image: NDArray[Any]) -> list[slice]:
    """The image's rows in strips, so that intermediate results in float take little memory."""
    step = max(1, 2**20 // image.shape[1])
    return [slice(top, top + step) for top in range(0, image.shape[0], step)]


def check_alpha(image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float32]:
    """`alpha` as HxW float32 in [0, 1]. Raises PortraitmattingError unless `image` is HxWx3 and
    alpha a float array of its height and width."""
    for array, shape in ((image, "HxWx3"), (alpha, "HxW")):
        if not isinstance(array, np.ndarray):
            raise PortraitmattingError(
                f"expected a NumPy array {shape}, got {type(array).__name__}"
            )
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
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
    """One sRGB colour everywhere: "#rrggbb", "#rgb" or a CSS name. Raises PortraitmattingError for
    anything else."""
    rgb = np.array(parse_color(value), np.uint8)

    def make(height: int, width: int, dtype: str, icc_profile: bytes | None) -> NDArray[Any]:
        return np.broadcast_to(_from_srgb(rgb[None, None], dtype, icc_profile), (height, width, 3))

    return SrgbBackground(make)


def _from_srgb(pixels: NDArray[Any], dtype: str, icc_profile: bytes | None) -> NDArray[Any]:
    """HxWx3 sRGB, uint8 | uint16 | float -> the same as `dtype`, converted to the ICC profile."""
    depth = np.float32 if np.dtype(dtype).kind == "f" else dtype  # what `convert_rgb` takes
    return convert_rgb(to_dtype(pixels, depth), None, icc_profile).astype(dtype, copy=False)


def image_background(pixels: NDArray[Any]) -> Background:
    """An sRGB image HxWx3, uint8 | uint16 | float in 0..1, of any size: scaled to cover the whole
    frame with its aspect kept, and cropped around its middle. Raises PortraitmattingError for other
    arrays."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PortraitmattingError(f"expected an HxWx3 RGB background, got {pixels.shape}")

    @functools.lru_cache(maxsize=1)  # all frames of a video have one size, as do most folders
    def make(height: int, width: int, dtype: str, icc_profile: bytes | None) -> NDArray[Any]:
        covering = _from_srgb(_cover(pixels, height, width), dtype, icc_profile)
        covering.setflags(write=False)
        return covering

    return SrgbBackground(make)


def _cover(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """HxWx3 -> float32 in [0, 1] of `height` x `width`, as `image_background` says."""
    own_height, own_width = pixels.shape[:2]
    scale = max(height / own_height, width / own_width)
    # Only the part that will be seen is scaled.
    seen_height = min(own_height, max(1, round(height / scale)))
    seen_width = min(own_width, max(1, round(width / scale)))
    top, left = (own_height - seen_height) // 2, (own_width - seen_width) // 2
    part = to_unit(pixels[top : top + seen_height, left : left + seen_width], "background")
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.clip(cv2.resize(part, (width, height), interpolation=interpolation), 0, 1)


@dataclass(frozen=True, eq=False)
class Blur:
    """A `Background`: the scene itself, out of focus.

    The person is first painted over with the surrounding colours: otherwise the blur would spread
    the person's colours into a halo.
    """

    strength: float = 0.03
    """The standard deviation of the blur as a share of the image's short side: above 0, up to 0.5;
    other values raise PortraitmattingError."""

    def __post_init__(self) -> None:
        if not isinstance(self.strength, Real) or not 0 < self.strength <= 0.5:
            raise PortraitmattingError(
                f"blur strength must be above 0 up to 0.5, got {self.strength}"
            )

    def __call__(self, image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        height, width = image.shape[:2]
        size, sigma = self.small(height, width)
        # A high power, because even 10 % of the person in a pixel tints it.
        absent = (1 - check_alpha(image, alpha)[..., None]) ** 8
        layers = np.dstack([to_unit(image, "image") * absent, absent])
        small = cv2.resize(layers, size[::-1], interpolation=cv2.INTER_AREA)
        scene = self.unfocus(small, sigma)
        scene = cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC)
        return to_dtype(np.clip(scene, 0, 1), image.dtype)

    def small(self, height: int, width: int) -> tuple[tuple[int, int], float]:
        """The size (h, w) at which an image is blurred, and the standard deviation in its pixels.
        It is smaller than the image for a wide blur, which is cheaper and looks the same."""
        sigma = self.strength * min(height, width)
        shrink = max(1.0, sigma / 4)
        size = max(1, round(height / shrink)), max(1, round(width / shrink))
        return size, sigma / shrink

    @staticmethod
    def unfocus(layers: NDArray[Any], sigma: float) -> NDArray[Any]:
        """hxwx4 float32 (colours times weight, then weight in 0..1) -> blurred colours hxwx3."""
        return cv2.GaussianBlur(_filled(layers), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _filled(layers: NDArray[Any]) -> NDArray[Any]:
    """HxWx4 (colours times weight, then weight in 0..1) -> colours HxWx3 without holes.

    Pull-push (Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.2): the smaller a pixel's
    weight, the more of its colour comes from a coarser copy.
    """
    colors, weight = layers[..., :3], layers[..., 3:]
    height, width = weight.shape[:2]
    if height == width == 1:
        return colors / np.maximum(weight, 1e-6)
    half = (width + 1) // 2, (height + 1) // 2
    coarse: NDArray[Any] = 4 * cv2.resize(layers, half, interpolation=cv2.INTER_AREA)
    coarse = coarse / np.maximum(coarse[..., 3:], 1)
    below = cv2.resize(_filled(coarse), (width, height), interpolation=cv2.INTER_LINEAR)
    return colors + (1 - weight) * below


def checkerboard(squares: int = 45) -> Background:
    """Grey and white squares, `squares` of them along the image's short side, as image editors show
    transparency. Raises PortraitmattingError for fewer than one."""
    if not isinstance(squares, Real) or not squares >= 1:
        raise PortraitmattingError(f"a checkerboard takes 1 square or more, got {squares}")

    @functools.lru_cache(maxsize=1)
    def make(height: int, width: int, dtype: str, icc_profile: bytes | None) -> NDArray[Any]:
        size = max(1, round(min(height, width) / squares))
        rows, columns = (np.arange(side) // size for side in (height, width))
        greys = np.repeat(np.array([[255], [204]], np.uint8), 3, axis=1)
        tones = _from_srgb(greys[None], dtype, icc_profile)[0]
        board = tones[(rows[:, None] + columns) % 2]
        board.setflags(write=False)
        return board

    return SrgbBackground(make)


def as_background(value: Background | NDArray[Any] | str) -> Background:
    """A `Background` from a text that `parse_background` knows, or from an sRGB image HxWx3 of any
    size; a `Background` stays itself. Raises PortraitmattingError for anything else."""
    if isinstance(value, str):
        return parse_background(value)
    if isinstance(value, np.ndarray):
        return image_background(value)
    if isinstance(value, type) or not callable(value):
        name = value.__name__ if isinstance(value, type) else type(value).__name__
        raise PortraitmattingError(
            f"expected a background (a colour, blur, checkerboard or a file's path as text, an "
            f"array HxWx3, or a function of image and alpha), got {name}"
        )
    return value


def parse_background(text: str) -> Background:
    """The background that a text names: "#rrggbb", "#rgb", a CSS colour, "blur", "blur:0.05",
    "checkerboard" or the path of an image. For anything else raises PortraitmattingError, which
    lists these."""
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
