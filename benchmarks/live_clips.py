"""Clips with true mattes for the live preview: people who move, turn and wave before scenes that
move, too."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.scenes import draw_background, draw_person

HEIGHT, WIDTH = 480, 640
NOISE = 3.0
"""Grey levels of sensor noise, standard deviation."""
DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
"""Cut-outs and photos that may not be redistributed: where they are absent, clips are drawn."""

Person = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Colours times alpha (in 0..255) and alpha, HxWx4; a scene HxWx3 that is larger than the frame."""


def people(data: Path = DATA, count: int = 3) -> dict[str, Person]:
    """Name to layers: `count` cut-outs from `data`, if it is there, and a drawn person."""
    chosen: dict[str, Person] = {}
    cut_outs = sorted((data / "cutout").glob("*.png"))
    scenes = sorted((data / "background").glob("*.jpg"))
    for index in range(count if cut_outs and scenes else 0):
        path = cut_outs[index * len(cut_outs) // count]
        bgra = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        layers = cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA).astype(np.float32)
        layers[..., 3] /= 255
        layers[..., :3] *= layers[..., 3:]
        scene = cv2.imread(str(scenes[index * len(scenes) // count]))
        chosen[f"cut-out {path.stem}"] = (
            _placed(layers),
            _larger(cv2.cvtColor(scene, cv2.COLOR_BGR2RGB)),
        )
    rng = np.random.default_rng(0)
    person, alpha = draw_person(HEIGHT, WIDTH, rng)
    layers = np.dstack([person.astype(np.float32), alpha])
    chosen["drawn"] = layers, _larger(draw_background(HEIGHT, WIDTH, rng, "textured"))
    return chosen


def clip(
    person: Person, speed: float, count: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Frames HxWx3 RGB uint8 with true alphas HxW.

    The person sways, leans, turns (narrower and wider) and its outline waves; `speed` is how many
    pixels per frame it sways at most. The scene pans at a third of that.
    """
    layers, scene = person
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    spare = (scene.shape[1] - WIDTH) // 2, (scene.shape[0] - HEIGHT) // 2
    for index in range(count):
        phase = index * speed / 60  # a sway of 60 pixels to either side
        shift, lean = 60 * np.sin(phase), 0.12 * np.sin(1.3 * phase)
        wide = 1 + 0.08 * np.sin(1.7 * phase)
        turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT), np.degrees(lean), 1)
        turn[:, 0] /= wide
        turn[0, 2] += WIDTH / 2 * (1 - 1 / wide) + shift
        inverse = cv2.invertAffineTransform(turn).astype(np.float32)
        x = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]
        y = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]
        outwards = np.abs(x - WIDTH / 2) / WIDTH
        x += 12 * outwards * np.sin(y / 25 + 3 * phase)
        moved = cv2.remap(layers, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        truth = moved[..., 3].clip(0, 1)
        pan = np.float32([[1, 0, -spare[0] + 20 * np.sin(phase)], [0, 1, -spare[1]]])
        behind = cv2.warpAffine(scene, pan, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        frame = moved[..., :3] + (1 - truth)[..., None] * behind
        frame += rng.standard_normal(frame.shape, np.float32) * np.float32(NOISE)
        yield np.rint(frame.clip(0, 255)).astype(np.uint8), truth


def _placed(layers: NDArray[np.float32]) -> NDArray[np.float32]:
    """In the middle of the frame's bottom, nine tenths of its height."""
    scale = min(0.9 * HEIGHT / layers.shape[0], 0.9 * WIDTH / layers.shape[1])
    size = round(layers.shape[1] * scale), round(layers.shape[0] * scale)
    layers = cv2.resize(layers, size, interpolation=cv2.INTER_AREA)
    left = (WIDTH - size[0]) // 2
    sides = (HEIGHT - size[1], 0), (left, WIDTH - size[0] - left), (0, 0)
    return np.pad(layers, sides)


def _larger(scene: NDArray[np.generic]) -> NDArray[np.float32]:
    return cv2.resize(scene, (WIDTH + 80, HEIGHT + 40)).astype(np.float32)
