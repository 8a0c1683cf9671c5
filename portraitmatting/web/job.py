"""From one uploaded photo to the files that the page offers for download."""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray
from PIL import Image

from portraitmatting.choices import PRESETS, parse_color
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.colour import convert_rgb
from portraitmatting.images.decode import DecodedImage, decode
from portraitmatting.images.files import write_image
from portraitmatting.images.metadata import Metadata
from portraitmatting.predictor import Predictor
from portraitmatting.transforms import shrunk

CHOICES = {
    "background": ("colour", "blur", "checkerboard", "image"),
    "preset": tuple(PRESETS),
    "foreground": ("ml", "fast", "cf", "none"),
}
"""Choice to its possible values."""
KINDS = ("alpha", "rgba", "composite")
"""The results; files are named after them."""

_CLOSED_FORM_MEGAPIXELS = 2  # "cf" takes half a GB for each: more would end the server
_CROP_MARGIN = 0.05
_PREVIEW_SIDE = 1600
_network = threading.Lock()  # one photo at a time, whoever sent it

_Progress = Callable[[float, str], Any]


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    data: bytes
    name: str
    """As its sender calls it; not to be trusted."""

    @property
    def stem(self) -> str:
        """The name without folders and suffix, safe in a file's name on every system."""
        stem = re.split(r"[/\\]", self.name)[-1].rpartition(".")[0] or self.name
        # 60 letters of any script are less than the 255 bytes that file systems allow.
        return re.sub(r"[^\w-]+", "-", stem).strip("-_")[:60] or "photo"

    def read(self, megapixels: float) -> DecodedImage:
        """Its image. Raises `PortraitmattingError`, which begins with the name."""
        name = self.stem + re.sub(r"[^\w.]", "", Path(self.name).suffix)[:8]
        if (size := _megapixels(self.data)) > megapixels:
            raise PortraitmattingError(
                f"{name}: {size:.1f} megapixels, and this page takes up to {megapixels:g}: "
                "scale the image down"
            )
        try:
            return decode(self.data)
        except PortraitmattingError as error:
            raise PortraitmattingError(f"{name}: {error}") from error


@dataclass(frozen=True)
class Choices:
    """What the user chose. Raises `PortraitmattingError` for unknown or missing values."""

    background: str = "colour"
    colour: str = "#ffffff"
    background_image: Upload | None = None
    """The background, if that is "image"."""
    preset: str = "quality"
    foreground: str = "ml"
    crop: bool = False
    """Whether results are cut to the person and a margin."""

    def __post_init__(self) -> None:
        if self.background == "chequer":  # its name in earlier versions
            object.__setattr__(self, "background", "checkerboard")
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES.get(field.name)
            if known and value not in known:
                raise PortraitmattingError(f"{field.name} {value!r}: use {', '.join(known)}")
        if self.background == "image" and self.background_image is None:
            raise PortraitmattingError("background 'image': give a background image too")
        _ = self.hex_colour

    @property
    def hex_colour(self) -> str:
        """#rrggbb. Nothing else is passed on as a background, which could also be a path."""
        text = str(self.colour)[:60]
        # Gradio's picker gives rgba(12.3, 45, 67, 1).
        if match := re.fullmatch(r"rgba?\(([\d., ]{5,60})\)", text):
            try:
                text = "rgb({},{},{})".format(
                    *(min(255, round(float(part))) for part in match[1].split(",")[:3])
                )
            except (ValueError, IndexError):
                raise PortraitmattingError(
                    f"{text!r} is no colour: use #rrggbb or a name"
                ) from None
        red, green, blue = parse_color(text)
        return f"#{red:02x}{green:02x}{blue:02x}"


@dataclass(frozen=True, eq=False)
class Result:
    """Images of one size and the photo's dtype, uint8 | uint16; None for what was not asked for."""

    image: NDArray[Any]
    """HxWx3 RGB."""
    icc_profile: bytes | None
    metadata: Metadata | None
    is_empty: bool
    """Whether the photo shows no person."""
    alpha: NDArray[Any] | None = None
    """HxW."""
    rgba: NDArray[Any] | None = None
    """HxWx4."""
    composite: NDArray[Any] | None = None
    """HxWx3 RGB."""

    def write(self, folder: Path, stem: str) -> list[Path]:
        """A PNG file for each of `KINDS`."""
        paths = [folder / f"{stem}-{kind}.png" for kind in KINDS]
        for path, kind in zip(paths, KINDS, strict=True):
            write_image(path, getattr(self, kind), self.icc_profile, self.metadata)
        return paths

    def write_previews(self, folder: Path) -> list[Path]:
        """Small files of formats that every browser shows: the image, the composite, the alpha and
        the cut-out."""
        suffixes = {"image": ".jpg", "composite": ".jpg", "alpha": ".png", "rgba": ".webp"}
        paths = []
        for kind, suffix in suffixes.items():
            paths.append(folder / f"preview-{kind}{suffix}")
            write_image(paths[-1], shrunk(getattr(self, kind), _PREVIEW_SIDE), self.icc_profile)
        return paths


def matte_photo(
    predictor: Predictor,
    photo: Upload,
    choices: Choices,
    megapixels: float,
    progress: _Progress,
    kinds: Sequence[str] = KINDS,
) -> Result:
    """From a photo to its results; one at a time, others wait.

    Args:
        predictor: for the preset "quality".
        photo: what was uploaded.
        choices: what the user wants.
        megapixels: the largest size of an image.
        progress: called with the part that is done, 0..1, and the next step.
        kinds: the results to make; the others are None.

    Raises `PortraitmattingError`, one line, for everything that the user can correct.
    """
    with _network:
        progress(0, "Reading")
        source = photo.read(megapixels)
        pixels = source.pixels.shape[0] * source.pixels.shape[1] / 1e6
        if choices.foreground == "cf" and pixels > _CLOSED_FORM_MEGAPIXELS:
            raise PortraitmattingError(
                f"foreground 'cf' takes too much memory above {_CLOSED_FORM_MEGAPIXELS} megapixels "
                f"(the photo has {pixels:.1f}): use ml or fast"
            )
        background: Any = choices.background
        if background == "colour":
            background = choices.hex_colour
        elif background == "image":
            scene = cast(Upload, choices.background_image).read(megapixels)
            background = convert_rgb(scene.pixels, scene.icc_profile)
        progress(0.1, "Matting")
        matte = predictor.at_preset(choices.preset).predict(source)
        is_empty = matte.is_empty
        if choices.crop:
            matte = matte.crop(_CROP_MARGIN)
        progress(0.5, "Estimating foreground colours")
        results = {
            kind: matte.result(kind, background, cast(Any, choices.foreground)) for kind in kinds
        }
        progress(0.7, "Writing")
        return Result(matte.image, source.icc_profile, source.metadata, is_empty, **results)


def _megapixels(data: bytes) -> float:
    """By the file's header, before memory is needed for its pixels; 0 for files that `decode` will
    refuse."""
    try:
        with Image.open(BytesIO(data)) as image:
            return image.width * image.height / 1e6
    except Exception:  # damaged files make decoders raise nearly anything
        return 0
