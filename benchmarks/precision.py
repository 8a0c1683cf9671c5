"""What fewer bits bring on this processor, and what they cost in mattes.

    python -m benchmarks.precision PICTURE_OR_FOLDER [SHORT_SIDE]    # from the repository's root

bf16 is `Predictor(..., precision="bf16")`. int8 is PyTorch's dynamic quantisation of all linear
layers, on the plain network, whose layers are modules of PyTorch's own.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.network import PlainNetwork
from benchmarks.timing import interleaved, machine, say, table
from portraitmatting import PortraitMatting, Predictor, load_model
from portraitmatting.checkpoint.author_keys import from_author_keys
from portraitmatting.images.files import list_images, read_image


def main() -> None:
    source = Path(sys.argv[1])
    paths = [source / path for path in list_images(source)] if source.is_dir() else [source]
    model = load_model(device="cpu")
    assert model.checkpoint is not None
    short_side = int(sys.argv[2]) if len(sys.argv) > 2 else model.checkpoint.working_short_side
    pictures = [read_image(path).pixels for path in paths]
    plain = _plain(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this kind of quantisation will move elsewhere
        int8 = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    pairs = {
        "bf16, ours": (
            Predictor(model, short_side, "fp32"),
            Predictor(model, short_side, "bf16"),
        ),
        "int8, plain": (
            Predictor(plain, short_side, "fp32", "cpu"),
            Predictor(int8, short_side, "fp32", "cpu"),
        ),
    }
    rows = []
    for name, (full, fewer) in pairs.items():
        say(f"{name}: {len(pictures)} images")
        apart = [
            float(np.abs(fewer.predict(image).alpha - full.predict(image).alpha).mean())
            for image in pictures
        ]
        batch = [full.prepare(pictures[0])]
        seconds = interleaved(
            {
                "full": lambda full=full, batch=batch: full.estimate(batch),
                "fewer": lambda fewer=fewer, batch=batch: fewer.estimate(batch),
            },
            3,
        )
        rows.append(
            [
                name,
                f"{seconds['fewer']:.2f} s",
                f"{seconds['full'] / seconds['fewer']:.2f}",
                f"{np.mean(apart):.4f}",
                f"{np.max(apart):.4f}",
            ]
        )
    print(machine(), end="\n\n")
    print(table(("precision", "network", "speed-up over fp32", "MAD, mean", "MAD, worst"), rows))


def _plain(model: PortraitMatting) -> Any:
    """The plain network under the model's weights."""
    plain, state = PlainNetwork().eval(), model.state_dict()
    plain.checkpoint = None
    names = [key for key in plain.state_dict() if "index" not in key]
    ours = {key: next(iter(from_author_keys({key: torch.empty(0)}))) for key in names}
    plain.load_state_dict({key: state[ours[key]] for key in names}, strict=False)
    return plain


if __name__ == "__main__":
    main()
