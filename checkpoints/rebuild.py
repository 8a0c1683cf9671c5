#!/usr/bin/env python3
"""Make new weights the default: python checkpoints/rebuild.py WEIGHTS --facts FACTS.json

Rebuilds the checkpoint file, its line in SHA256SUMS, the card in checkpoints/README.md and the
README's image. WEIGHTS is whatever `load_model` reads; FACTS.json is described in
`portraitmatting checkpoint convert --help`, and may be left out for a file of ours.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from portraitmatting import Predictor, load_model
from portraitmatting.checkpoint.load import convert, describe
from portraitmatting.checkpoint.registry import DEFAULT, SUMS, sha256
from portraitmatting.cli import given, run

HERE = Path(__file__).parent
ROOT = HERE.parent
CARD = HERE / "README.md"
SHOWN, BEHIND, WIDTH = ("portrait_049.jpg", "portrait_080.jpg"), "#e9dccb", 1800
BEGIN, END = "<!-- card -->\n", "<!-- end of card -->"


def write_card(path: Path) -> None:
    """Put what the file says of itself between the card's marks."""
    before, rest = CARD.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    rows = "".join(f"| {name} | {value} |\n" for name, value in describe(path).items())
    table = f"\n| | |\n|---|---|\n{rows}\n"
    CARD.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


def write_overview(target: Path) -> None:
    """The README's image: photo, alpha matte and the person on another background."""
    predictor = Predictor(load_model())
    rows = []
    for name in SHOWN:
        matte = predictor.predict(ROOT / "examples" / name)
        alpha = np.repeat(matte.result("alpha")[..., None], 3, axis=2)
        row = np.hstack([matte.image, alpha, matte.composite(BEHIND)])
        width, height = WIDTH, round(WIDTH * row.shape[0] / row.shape[1])
        rows.append(cv2.resize(row, (width, height), interpolation=cv2.INTER_AREA))
    # Not write_image, which would take a quality that a page need not load.
    Image.fromarray(np.vstack(rows)).save(target, quality=88)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--facts", type=Path)
    parser.add_argument("--storage")
    options = parser.parse_args()
    path = HERE / f"{DEFAULT}.safetensors"
    convert(options.weights, path, overwrite=True, **given(options, "facts", "storage"))
    (HERE / SUMS).write_text(f"{sha256(path)}  {path.name}\n")
    write_card(path)
    write_overview(ROOT / "docs" / "examples.jpg")
    return 0


if __name__ == "__main__":
    run(main)
