"""Small synthetic portraits on disk, and recipes for them; what the training tests share."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch

from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.images.files import write_image
from portraitmatting.modeling.model import ModelConfig, PortraitMatting


def portrait(seed: int, height: int = 64, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 and alpha uint8: a bright head and shoulders, softly cut, before stripes."""
    rng = np.random.default_rng(seed)
    alpha = np.zeros((height, width), np.float32)
    middle = (int(width * rng.uniform(0.4, 0.6)), int(height * 0.4))
    cv2.circle(alpha, middle, width // 5, 1.0, -1)
    cv2.ellipse(alpha, (middle[0], height), (width // 3, height // 3), 0, 0, 360, 1.0, -1)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 1.2)
    stripes = 40 + 30 * np.sin(np.arange(width) * rng.uniform(0.3, 1.0))
    back = np.broadcast_to(stripes[None, :, None], (height, width, 3))
    image = alpha[..., None] * rng.uniform(150, 250, 3) + (1 - alpha[..., None]) * back
    return np.rint(image).astype(np.uint8), np.rint(alpha * 255).astype(np.uint8)


def grey(alpha: np.ndarray) -> np.ndarray:
    return np.repeat(alpha[..., None], 3, axis=2)


def photo_folder(folder: Path, count: int = 4, **size: int) -> Path:
    """image/NAME.png and alpha/NAME.png."""
    for name in ("image", "alpha"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        image, alpha = portrait(i, **size)
        write_image(folder / "image" / f"p{i}.png", image)
        write_image(folder / "alpha" / f"p{i}.png", grey(alpha))
    return folder


def tiny_checkpoint(path: Path) -> Path:
    """A fresh tiny network as one of our checkpoints."""
    info = CheckpointInfo(origin="made for a test", licence="none", working_short_side=64)
    torch.manual_seed(3)
    save_checkpoint(path, PortraitMatting(ModelConfig.tiny()), info)
    return path


def recipe(photos: Path, **changes: object) -> dict[str, object]:
    """A few steps of two 32-pixel samples."""
    return {
        "data": [{"kind": "photos", "folder": str(photos)}],
        "steps": 4,
        "batch_size": 2,
        "sizes": [[0, 32]],
        "save_every": 1,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
    } | changes


def write_toml(path: Path, values: dict[str, object]) -> Path:
    """Flat values and `data` tables; what JSON and TOML write alike."""
    values = dict(values)
    data = values.pop("data")
    assert isinstance(data, list)
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for source in data:
        lines += ["[[data]]", *(f"{key} = {json.dumps(value)}" for key, value in source.items())]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
