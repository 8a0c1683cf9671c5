#!/usr/bin/env python3
"""Make new weights the default: python checkpoints/rebuild.py WEIGHTS --facts FACTS.json

Rebuilds the checkpoint file, its line in SHA256SUMS, the card in checkpoints/README.md and the
README's images. WEIGHTS is whatever `load_model` reads; FACTS.json is described in
`portraitmatting checkpoint convert --help`, and may be left out for a file of ours.
"""

import argparse
from pathlib import Path

import numpy as np

from portraitmatting import Predictor, load_model, read_image, write_image
from portraitmatting.checkpoint import DEFAULT, SUMS, describe, sha256
from portraitmatting.checkpoint.load import convert
from portraitmatting.cli import given, run

HERE = Path(__file__).parent
ROOT = HERE.parent
CARD = HERE / "README.md"
BEGIN, END = "<!-- card -->\n", "<!-- end of card -->"


def write_card(path: Path) -> None:
    """Put what the file says of itself between the card's marks."""
    before, rest = CARD.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    rows = "".join(f"| {name} | {value} |\n" for name, value in describe(path).items())
    table = f"\n| | |\n|---|---|\n{rows}\n"
    CARD.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


def write_picture(target: Path) -> None:
    """Each example beside its alpha matte, its cut-out and a composite over a blur of the scene."""
    predictor = Predictor(load_model())
    rows = []
    for path in sorted((ROOT / "examples").glob("*.[jp][pn]g")):
        matte = predictor.predict(read_image(path).pixels)
        alpha = np.repeat(np.rint(matte.alpha * 255).astype(np.uint8)[..., None], 3, axis=2)
        rows.append(
            np.hstack(
                [matte.image, alpha, matte.composite("checkerboard"), matte.composite("teal")]
            )
        )
    write_image(target, np.vstack(rows))


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
    write_picture(ROOT / "docs" / "examples.jpg")
    return 0


if __name__ == "__main__":
    run(main)
