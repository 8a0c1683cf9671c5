"""From one uploaded photo to the files that the page offers."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import cv2
from numpy.typing import NDArray
from PIL import Image, ImageColor

from portraitmatting import (
    PortraitmattingError,
    Predictor,
    read_image,
    write_image,
)
from portraitmatting.choices import PRESETS

CHOICES = {
    "background": ("colour", "blur", "checkerboard", "image"),
    "preset": tuple(PRESETS),
    "foreground": ("ml", "fast", "cf", "none"),
}
"""What may be chosen by name."""
KINDS = ("alpha", "rgba", "composite")
"""The results, as their files' names end."""

_CLOSED_FORM_MEGAPIXELS = 2  # "cf" takes half a GB for each: more would end the server
_PREVIEW_SIDE = 1600

_Progress = Callable[[float, str], Any]


@dataclass(frozen=True)
class Upload:
    path: Path
    name: str
    """What its sender calls it; not to be trusted."""

    @property
    def stem(self) -> str:
        """The name without folders and suffix, safe as part of a file's name anywhere."""
        stem = re.split(r"[/\\]", self.name)[-1].rpartition(".")[0] or self.name
        # 60 letters of any script are less than the 255 bytes that file systems allow.
        return re.sub(r"[^\w-]+", "-", stem).strip("-_")[:60] or "photo"

    def read(self, megapixels: float) -> Any:
        """The image in it, with its profile; `PortraitmattingError` that calls it by `name`."""
        name = self.stem + re.sub(r"[^\w.]", "", Path(self.name).suffix)[:8]
        if not self.path.is_file():
            raise PortraitmattingError(f"{name}: no longer on the server: send it again")
        if (size := _megapixels(self.path)) > megapixels:
            raise PortraitmattingError(
                f"{name}: {size:.1f} megapixels, and this page takes up to {megapixels:g}: "
                "scale the image down"
            )
        try:
            return read_image(self.path)
        except PortraitmattingError as error:
            reason = str(error).removeprefix(f"{self.path}: ")
            raise PortraitmattingError(f"{name}: {reason}") from error


@dataclass(frozen=True)
class Choices:
    """What the user wants. Raises `PortraitmattingError` for what cannot be."""

    background: str = "colour"
    colour: str = "#ffffff"
    picture: Upload | None = None
    """The background, if that is "image"."""
    preset: str = "quality"
    foreground: str = "ml"

    def __post_init__(self) -> None:
        if self.background == "chequer":  # its name in earlier versions
            object.__setattr__(self, "background", "checkerboard")
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES.get(field.name)
            if known and value not in known:
                raise PortraitmattingError(f"{field.name} {value!r}: use {', '.join(known)}")
        if self.background == "image" and self.picture is None:
            raise PortraitmattingError("background 'image': give a background image too")
        _ = self.hex_colour

    @property
    def hex_colour(self) -> str:
        """#rrggbb. Nothing else goes on to the library, which would take a path, too."""
        # Gradio's picker says rgba(12.3, 45, 67, 1).
        match = re.fullmatch(r"rgba?\(([\d., ]{5,60})\)", str(self.colour))
        try:
            if match:
                rgb = tuple(min(255, round(float(part))) for part in match[1].split(",")[:3])
            else:
                rgb = ImageColor.getrgb(str(self.colour))[:3]
            red, green, blue = rgb
        except ValueError as error:
            raise PortraitmattingError(
                f"{str(self.colour)[:60]!r} is no colour: use #rrggbb or a name"
            ) from error
        return f"#{red:02x}{green:02x}{blue:02x}"


@dataclass(frozen=True, eq=False)
class Result:
    """All in the photo's size and depth (uint8 | uint16): RGB, HxW, RGBA, RGB."""

    image: NDArray[Any]
    alpha: NDArray[Any]
    rgba: NDArray[Any]
    composite: NDArray[Any]
    icc_profile: bytes | None

    def write(self, folder: Path, stem: str) -> list[Path]:
        """A PNG file for each of `KINDS`."""
        paths = [folder / f"{stem}-{kind}.png" for kind in KINDS]
        for path, kind in zip(paths, KINDS, strict=True):
            write_image(path, getattr(self, kind), self.icc_profile)
        return paths

    def write_previews(self, folder: Path) -> list[Path]:
        """Small enough for a page, and in kinds of files that every browser shows: the image, the
        composite, the alpha and the cut-out."""
        suffixes = {"image": ".jpg", "composite": ".jpg", "alpha": ".png", "rgba": ".webp"}
        paths = []
        for kind, suffix in suffixes.items():
            paths.append(folder / f"preview-{kind}{suffix}")
            write_image(paths[-1], _shrunk(getattr(self, kind)), self.icc_profile)
        return paths


def matte_photo(
    predictor: Predictor, photo: Upload, choices: Choices, megapixels: float, progress: _Progress
) -> Result:
    """The whole way. `megapixels` is how large images may be; `progress` is told the part that is
    done and what comes next. Raises `PortraitmattingError`, one line, for whatever its user can
    mend."""
    progress(0, "Reading")
    picture = photo.read(megapixels)
    image = picture.pixels
    pixels = image.shape[0] * image.shape[1] / 1e6
    if choices.foreground == "cf" and pixels > _CLOSED_FORM_MEGAPIXELS:
        raise PortraitmattingError(
            f"foreground 'cf' takes too much memory above {_CLOSED_FORM_MEGAPIXELS} megapixels "
            f"(the photo has {pixels:.1f}): use ml or fast"
        )
    background: Any = choices.hex_colour if choices.background == "colour" else choices.background
    if choices.background == "image":
        background = cast(Upload, choices.picture).read(megapixels).pixels
    progress(0.1, "Matting")
    matte = predictor.at_preset(choices.preset).predict(image)
    progress(0.5, "Estimating foreground colours")
    results = {
        kind: matte.result(kind, background, cast(Any, choices.foreground)) for kind in KINDS
    }
    progress(0.7, "Writing")
    return Result(image=image, **results, icc_profile=picture.icc_profile)


def _megapixels(path: Path) -> float:
    """By the file's header, before memory is taken for its pixels; 0 where `read_image` will say
    what is wrong."""
    try:
        with Image.open(path) as image:
            return image.width * image.height / 1e6
    except Exception:  # damaged files make decoders raise nearly anything
        return 0


def _shrunk(pixels: NDArray[Any]) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    scale = _PREVIEW_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
