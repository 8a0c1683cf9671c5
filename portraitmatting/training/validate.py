"""Scores on images that no sample was drawn from."""

from pathlib import Path

import cv2
import numpy as np

from portraitmatting import metrics
from portraitmatting.images.files import read_image
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.predictor import Predictor
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.sources import paired, read_matte

MEASURES = ("MAD", "MSE", "SAD", "IoU")
"""Of `metrics.METRICS`, over the whole image at its own size; MAD says which weights are best."""
_SHEET_SIDE = 320


class Validation:
    """A folder with image/ and alpha/, scored at one working short side."""

    def __init__(self, folder: str, short_side: int, kept: int) -> None:
        self.folder, self.short_side, self.kept = Path(folder), short_side, kept
        self.pairs = paired(folder, "alpha")

    def run(self, model: PortraitMatting, directory: RunDirectory, step: int) -> dict[str, float]:
        """The means over the folder; `model` is left in eval mode.

        A table per image and the first mattes go to the run.
        """
        predictor = Predictor(model, short_side=self.short_side)
        rows: list[dict[str, str | float]] = []
        for number, (image_path, alpha_path) in enumerate(self.pairs):
            pixels = read_image(image_path).pixels
            truth = read_matte(alpha_path, pixels.shape)
            name = image_path.relative_to(self.folder / "image").as_posix()
            alpha = predictor.predict(pixels).alpha
            scores = {key: metrics.METRICS[key](alpha, truth, None) for key in MEASURES}
            rows.append({"image": name, **scores})
            if number < self.kept:
                directory.save_matte(step, name, sheet(pixels, truth, alpha))
        directory.save_scores(step, rows)
        return {key: float(np.mean([float(row[key]) for row in rows])) for key in MEASURES}


def sheet(pixels: np.ndarray, truth: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Image (uint8 or uint16 HWC), truth and matte (HW) side by side, RGB uint8, made small."""
    image = pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
    grey = [
        np.repeat(np.rint(a * 255).astype(np.uint8)[..., None], 3, axis=2) for a in (truth, alpha)
    ]
    row = np.hstack([image, *grey])
    scale = min(1.0, _SHEET_SIDE / min(pixels.shape[:2]))
    return np.asarray(cv2.resize(row, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
