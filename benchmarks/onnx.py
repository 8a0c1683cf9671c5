"""An exported ONNX file beside PyTorch: speed in turns, and how far the mattes are apart.

python -m benchmarks.onnx FILE.onnx [FILE.onnx ...]    # made by `portraitmatting export`
"""

import sys

import numpy as np
import torch

from benchmarks.timing import Function, interleaved, machine, table
from portraitmatting import Predictor, load_model, read_image

SIZE = 320, 416


@torch.inference_mode()
def main() -> None:
    models = {"PyTorch": load_model(), **{path: load_model(path) for path in sys.argv[1:]}}
    photo = read_image("examples/astronaut.jpg").pixels
    mattes = {name: Predictor(model).predict(photo).alpha for name, model in models.items()}
    images = torch.rand(1, 3, *SIZE)
    calls: dict[str, Function] = {
        name: lambda model=model: model(images) for name, model in models.items()
    }
    rows = []
    seconds = interleaved(calls, 7)
    for name, took in seconds.items():
        apart = np.abs(mattes[name] - mattes["PyTorch"])
        ratio = took / seconds["PyTorch"]
        rows.append(
            [name, f"{took:.2f} s", f"{ratio:.2f}", f"{apart.mean():.1e}", f"{apart.max():.1e}"]
        )
    print(machine(), end="\n\n")
    print(table((f"1x3x{SIZE[0]}x{SIZE[1]}", "time", "ratio", "mean difference", "largest"), rows))


if __name__ == "__main__":
    main()
