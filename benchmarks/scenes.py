"""Images and clips with known mattes.

Portraits are drawn: a head, shoulders and thousands of single hairs. In clips a person sways, leans
and turns before a scene that pans.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

BACKGROUNDS = ("plain", "blurred", "textured")

_OVERSAMPLED = 2
_SUBPIXEL_BITS = 4
_HAIRS = ((38, 26, 20), (96, 62, 36), (178, 140, 92), (120, 48, 26))
_SKINS = ((224, 180, 150), (150, 100, 70), (240, 205, 185), (96, 62, 45))
_CLOTHES = ((60, 70, 110), (190, 190, 195), (120, 40, 50), (35, 38, 40))
_NOISE = 1.5
"""Grey levels of sensor noise in portraits, standard deviation."""

FRAME = 480, 640
"""Height and width of clips."""
_FRAME_NOISE = 3.0
"""Grey levels of sensor noise in clips, standard deviation."""
_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Cut-outs and photos that may not be redistributed: without them, clips show the drawn person."""

Person = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Colours times alpha (0 to 255) and alpha (0 to 1), HxWx4; a scene HxWx3 larger than the frame."""


def draw_portrait(
    height: int, width: int, seed: int = 0, background: str = "blurred"
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """An image HxWx3 RGB uint8 and its true alpha HxW float32 in [0, 1].

    Hairs are drawn at twice the size and averaged, so that image and alpha obey
    I = alpha F + (1 - alpha) B up to noise and rounding. At 24 megapixels a hair is about a pixel
    wide, as in photos; smaller images are the same scene from further away.
    """
    rng = np.random.default_rng(seed)
    person, alpha = draw_person(height, width, rng)
    image = draw_background(height, width, rng, background)
    image *= (1 - alpha)[..., None]
    image += person
    image += rng.standard_normal(image.shape, np.float32) * np.float32(_NOISE)
    return np.rint(image.clip(0, 255)).astype(np.uint8), alpha


def draw_person(
    height: int, width: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The person's colours times alpha, HxWx3 RGB uint8, and alpha HxW float32 in [0, 1]."""
    scale = _OVERSAMPLED
    # Drawn over transparent black: antialiased drawing then leaves premultiplied colours.
    canvas = np.zeros((height * scale, width * scale, 4), np.uint8)
    hair, skin, cloth = (
        np.array(colours[rng.integers(len(colours))], float)
        for colours in (_HAIRS, _SKINS, _CLOTHES)
    )
    unit = min(height, width) * scale
    head = np.array([width * scale / 2, height * scale * 0.46])
    _ellipse(canvas, head + np.array([0, 0.62 * unit]), (0.42 * unit, 0.30 * unit), cloth)
    _rectangle(canvas, head + np.array([0, 0.30 * unit]), (0.09 * unit, 0.16 * unit), skin * 0.85)
    middle, half = round(head[0]), round(0.42 * unit)
    below = canvas[round(head[1] + 0.62 * unit) :]
    below[:, max(0, middle - half) : middle + half] = (*cloth, 255)
    _ellipse(canvas, head, (0.215 * unit, 0.275 * unit), hair * 0.8)
    for points, thickness, shade in _strands(rng, head, unit):
        _line(canvas, points, thickness, np.clip(hair * shade, 0, 255))
    _ellipse(canvas, head + np.array([0, 0.055 * unit]), (0.15 * unit, 0.20 * unit), skin)
    for side in (-1, 1):
        eye = head + np.array([side * 0.06 * unit, 0.02 * unit])
        _ellipse(canvas, eye, (0.026 * unit, 0.012 * unit), np.array([235.0, 235, 235]))
        _ellipse(canvas, eye, (0.011 * unit, 0.011 * unit), np.array([50.0, 35, 25]))
        brow = eye - np.array([0, 0.035 * unit])
        _ellipse(canvas, brow, (0.034 * unit, 0.006 * unit), hair * 0.7)
    _ellipse(canvas, head + np.array([0, 0.085 * unit]), (0.018 * unit, 0.03 * unit), skin * 0.92)
    _ellipse(
        canvas,
        head + np.array([0, 0.155 * unit]),
        (0.05 * unit, 0.013 * unit),
        skin * (0.8, 0.5, 0.5),
    )
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return small[..., :3], small[..., 3].astype(np.float32) / 255


def draw_background(
    height: int, width: int, rng: np.random.Generator, kind: str
) -> NDArray[np.float32]:
    """HxWx3 float32 in [0, 255]: noise in octaves, of which "plain" keeps the coarsest, "blurred"
    those an open aperture leaves, and "textured" all."""
    octaves = {"plain": 1, "blurred": 5, "textured": 12}[kind]
    base = rng.uniform(60, 200, 3)
    image = np.empty((height, width, 3), np.float32)
    image[:] = base
    for octave in range(octaves):
        cells = 3 * 2**octave
        if cells > max(height, width):
            break
        shape = [max(2, cells * side // max(height, width)) for side in (height, width)]
        noise = rng.standard_normal((*shape, 3), np.float32) * np.float32(45 * 0.7**octave)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255, out=image)


def drawn_person() -> Person:
    """A drawn person before a textured scene."""
    rng = np.random.default_rng(0)
    colours, alpha = draw_person(*FRAME, rng)
    scene = draw_background(*FRAME, rng, "textured")
    return np.dstack([colours.astype(np.float32), alpha]), _larger(scene)


def cut_out_people(count: int = 3) -> dict[str, Person]:
    """Name to cut-outs with true alpha before photos; empty where `_DATA` is not there."""
    people: dict[str, Person] = {}
    cut_outs = sorted((_DATA / "cutout").glob("*.png"))
    scenes = sorted((_DATA / "background").glob("*.jpg"))
    for index in range(count if cut_outs and scenes else 0):
        path = cut_outs[index * len(cut_outs) // count]
        bgra = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        scene = cv2.imread(str(scenes[index * len(scenes) // count]))
        people[f"cut-out {path.stem}"] = (
            place_person(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA)),
            _larger(cv2.cvtColor(scene, cv2.COLOR_BGR2RGB)),
        )
    return people


def place_person(rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The first part of a `Person`: a cut-out in the middle of the frame's bottom, nine tenths of
    its height."""
    height, width = FRAME
    layers = rgba.astype(np.float32)
    layers[..., 3] /= 255
    layers[..., :3] *= layers[..., 3:]
    scale = min(0.9 * height / layers.shape[0], 0.9 * width / layers.shape[1])
    size = round(layers.shape[1] * scale), round(layers.shape[0] * scale)
    layers = cv2.resize(layers, size, interpolation=cv2.INTER_AREA)
    left = (width - size[0]) // 2
    return np.pad(layers, ((height - size[1], 0), (left, width - size[0] - left), (0, 0)))


def clip(
    person: Person, speed: float, count: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Frames HxWx3 RGB uint8 with true alphas HxW.

    The person sways, leans, turns (narrower and wider) and its outline waves; `speed` is how many
    pixels per frame it sways at most. The scene pans at a third of that.
    """
    height, width = FRAME
    layers, scene = person
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    spare = (scene.shape[1] - width) // 2, (scene.shape[0] - height) // 2
    for index in range(count):
        phase = index * speed / 60  # a sway of 60 pixels to either side
        shift, lean = 60 * np.sin(phase), 0.12 * np.sin(1.3 * phase)
        wide = 1 + 0.08 * np.sin(1.7 * phase)
        turn = cv2.getRotationMatrix2D((width / 2, height), np.degrees(lean), 1)
        turn[:, 0] /= wide
        turn[0, 2] += width / 2 * (1 - 1 / wide) + shift
        inverse = cv2.invertAffineTransform(turn).astype(np.float32)
        x = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]
        y = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]
        outwards = np.abs(x - width / 2) / width
        x += 12 * outwards * np.sin(y / 25 + 3 * phase)
        moved = cv2.remap(layers, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        ground_truth = moved[..., 3].clip(0, 1)
        pan = np.float32([[1, 0, -spare[0] + 20 * np.sin(phase)], [0, 1, -spare[1]]])
        behind = cv2.warpAffine(scene, pan, (width, height), borderMode=cv2.BORDER_REFLECT)
        frame = moved[..., :3] + (1 - ground_truth)[..., None] * behind
        frame += rng.standard_normal(frame.shape, np.float32) * np.float32(_FRAME_NOISE)
        yield np.rint(frame.clip(0, 255)).astype(np.uint8), ground_truth


def _larger(scene: NDArray[np.generic]) -> NDArray[np.float32]:
    """Room for the scene to pan."""
    return cv2.resize(scene, (FRAME[1] + 80, FRAME[0] + 40)).astype(np.float32)


def _strands(
    rng: np.random.Generator, head: NDArray[np.float64], unit: float
) -> Iterator[tuple[NDArray[np.float64], int, float]]:
    """Points, thickness in drawn pixels and shade of each hair: short down all over, locks that
    hang at the sides, and some that fly."""
    along = np.linspace(0, 1, 24)[:, None]
    widest = max(1, round(unit / 8000 * 3))
    for _lock in range(420):
        angle = rng.uniform(-math.pi * 1.12, math.pi * 0.12)
        flies = rng.random() < 0.25
        reach = unit * (rng.uniform(0.02, 0.16) if flies else rng.uniform(0.01, 0.07))
        fall = unit * rng.uniform(0, 0.22) * abs(math.cos(angle)) ** 2
        wave, phase = unit * rng.uniform(0, 0.008), rng.uniform(0, 6.3)
        turns = rng.uniform(2, 9)
        for _ in range(rng.integers(4, 22) if not flies else rng.integers(1, 8)):
            turn = angle + rng.normal(0, 0.05)
            out = np.array([math.cos(turn), math.sin(turn)])
            root = head + out * (0.205 * unit, 0.265 * unit)
            lean = rng.normal(0, 0.35)
            side = np.array([-out[1], out[0]])
            length = reach * rng.uniform(0.5, 1.4)
            points = root + along * length * (out + lean * side)
            points = points + along**2 * np.array([0, fall * rng.uniform(0.6, 1.2)])
            phases = turns * along + phase + rng.normal(0, 0.3)
            points = points + side * wave * along * np.sin(phases)
            yield points, int(rng.integers(1, widest + 1)), rng.uniform(0.6, 1.35)


def _line(
    canvas: NDArray[np.uint8],
    points: NDArray[np.float64],
    thickness: int,
    colour: NDArray[np.float64],
) -> None:
    path = np.rint(points * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.polylines(canvas, [path], False, (*colour, 255), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _ellipse(
    canvas: NDArray[np.uint8],
    centre: NDArray[np.float64],
    axes: tuple[float, float],
    colour: NDArray[np.float64],
) -> None:
    cv2.ellipse(
        canvas,
        (round(centre[0]), round(centre[1])),
        (round(axes[0]), round(axes[1])),
        0,
        0,
        360,
        (*colour, 255),
        -1,
        cv2.LINE_AA,
    )


def _rectangle(
    canvas: NDArray[np.uint8],
    centre: NDArray[np.float64],
    half: tuple[float, float],
    colour: NDArray[np.float64],
) -> None:
    low, high = centre - half, centre + half
    corners = (round(low[0]), round(low[1])), (round(high[0]), round(high[1]))
    cv2.rectangle(canvas, *corners, (*colour, 255), -1)
