"""Scores on pictures that no sample was drawn from."""

from dataclasses import dataclass

import cv2
import numpy as np

from portraitmatting import metrics
from portraitmatting.images import read_image
from portraitmatting.model import PortraitMatting
from portraitmatting.predictor import Predictor
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.sources import paired, read_pair

MEASURES = ("MAD", "MSE", "SAD", "IoU")
"""Of `metrics.METRICS`, over the whole picture at its own size; MAD says which weights are best."""
_SHEET_SIDE = 320


@dataclass(frozen=True)
class Scores:
    """Means over the folder, and a row per picture."""

    mean: dict[str, float]
    pictures: list[dict[str, str | float]]


class Validation:
    """A folder with image/ and alpha/, looked at at one working short side."""

    def __init__(self, folder: str, short_side: int, kept: int) -> None:
        self.folder, self.short_side, self.kept = folder, short_side, kept
        self.pairs = paired(folder, "alpha")

    def run(self, model: PortraitMatting, directory: RunDirectory, step: int) -> Scores:
        """Score `model`, which is left in eval mode; a table and the first mattes go to the run."""
        predictor = Predictor(model, short_side=self.short_side)
        rows: list[dict[str, str | float]] = []
        for number, (image_path, alpha_path) in enumerate(self.pairs):
            pixels = read_image(image_path).pixels
            truth = read_pair(image_path, alpha_path)[1]
            alpha = predictor.predict(pixels).alpha
            scores = {name: metrics.METRICS[name](alpha, truth, None) for name in MEASURES}
            rows.append({"picture": image_path.name, **scores})
            if number < self.kept:
                directory.save_matte(step, image_path.name, sheet(pixels, truth, alpha))
        directory.save_scores(step, rows)
        means = {name: float(np.mean([float(row[name]) for row in rows])) for name in MEASURES}
        return Scores(means, rows)


def sheet(pixels: np.ndarray, truth: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Picture (uint8 or uint16 HWC), truth and matte (HW) side by side, RGB uint8, made small."""
    picture = pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
    grey = [
        np.repeat(np.rint(a * 255).astype(np.uint8)[..., None], 3, axis=2) for a in (truth, alpha)
    ]
    row = np.hstack([picture, *grey])
    scale = min(1.0, _SHEET_SIDE / min(pixels.shape[:2]))
    return np.asarray(cv2.resize(row, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
