"""One image that shows the worst cases: image, ground truth, each method's matte, its error."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from portraitmatting.errors import one_line
from portraitmatting.images.pixels import to_dtype

TILE = 240
_NARROWEST = 160  # so that captions fit over narrow images
_GAP = 8
_LINE = 20
_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_MISSING, _SURPLUS = (0, 90, 200), (215, 30, 30)

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Case:
    """A row of the sheet: a title, and captioned HxWx3 uint8 RGB tiles of one size."""

    title: str
    tiles: list[tuple[str, NDArray[np.uint8]]]


def make_case(
    title: str,
    image: NDArray[np.generic],
    ground_truth: NDArray[np.floating],
    mattes: Sequence[tuple[str, NDArray[np.floating] | None]],
) -> Case:
    """One row of the sheet, as tiles of at most 240 pixels a side, small enough to keep.

    Args:
        title: above the row.
        image: HxWx3 RGB, uint8 | uint16.
        ground_truth: HxW float, the ground truth.
        mattes: (name, HxW float, or None where the method failed).
    """
    tiles = [
        ("image", _tile(to_dtype(image, np.uint8))),
        ("ground truth", _tile(_grey(ground_truth))),
    ]
    for name, alpha in mattes:
        if alpha is None:
            blank = np.full_like(tiles[0][1], 200)
            tiles += [(f"{name}: failed", blank), ("", blank)]
        else:
            tiles += [
                (name, _tile(_grey(alpha))),
                ("error", _tile(error_image(alpha, ground_truth))),
            ]
    return Case(title, tiles)


def error_image(
    alpha: NDArray[np.floating], ground_truth: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """HxW floats in [0, 1] -> HxWx3 uint8 RGB: white where equal, towards red where the matte has
    too much, towards blue where it has too little."""
    error = np.asarray(alpha - ground_truth)[..., None]
    paper = np.array(_PAPER, np.float32)
    ink = np.where(error > 0, np.array(_SURPLUS, np.float32), np.array(_MISSING, np.float32))
    return np.rint(paper + np.abs(error) * (ink - paper)).astype(np.uint8)


def draw_contact_sheet(cases: Sequence[Case]) -> NDArray[np.uint8]:
    """Cases with equally many tiles, worst first, at least one -> HxWx3 uint8 RGB."""
    columns = max(len(case.tiles) for case in cases)
    cell = max(_NARROWEST, *(tile.shape[1] for case in cases for _, tile in case.tiles)) + _GAP
    heights = [2 * _LINE + max(tile.shape[0] for _, tile in case.tiles) + _GAP for case in cases]
    width = columns * cell + _GAP
    sheet = Image.new("RGB", (width, _LINE + 2 * _GAP + sum(heights)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    y = _GAP
    draw.text((_GAP, y), "error: red too much, blue too little", _INK, font)
    y += _LINE + _GAP
    for case, height in zip(cases, heights, strict=True):
        draw.text((_GAP, y), _shortened(case.title, font, width - 2 * _GAP), _INK, font)
        for column, (caption, tile) in enumerate(case.tiles):
            x = _GAP + column * cell
            draw.text((x, y + _LINE), _shortened(caption, font, cell - _GAP), _INK, font)
            sheet.paste(Image.fromarray(tile), (x, y + 2 * _LINE))
            edge = (x - 1, y + 2 * _LINE - 1, x + tile.shape[1], y + 2 * _LINE + tile.shape[0])
            draw.rectangle(edge, outline=(190, 190, 190))
        y += height
    return np.asarray(sheet)


def _tile(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, size, interpolation=method), np.uint8)


def _grey(alpha: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(np.repeat(alpha[..., None], 3, axis=2) * 255).astype(np.uint8)


def _shortened(text: str, font: Font, width: int) -> str:
    text = one_line(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
