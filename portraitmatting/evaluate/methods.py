"""What an evaluation scores: our network with some settings, or the mattes in a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portraitmatting.checkpoint.load import load_model
from portraitmatting.checkpoint.registry import locate, sha256
from portraitmatting.errors import PortraitmattingError
from portraitmatting.evaluate.benchmark import Sample, index_by_name
from portraitmatting.images.files import read_alpha
from portraitmatting.predictor import Predictor


@dataclass(frozen=True)
class MattingMethod:
    """`matte` takes a sample and its HxWx3 RGB pixels (uint8 | uint16) and returns HxW float32 in
    [0, 1]; it may raise PortraitmattingError. `facts` go into the protocol."""

    name: str
    matte: Callable[[Sample, NDArray[np.generic]], NDArray[np.float32]]
    facts: dict[str, str]


def from_checkpoint(
    source: str | None = None,
    name: str | None = None,
    short_side: int | None = None,
    precision: str | None = None,
    device: str = "auto",
) -> MattingMethod:
    """Our network with given weights. Mattes are rounded to 8 bits, like the files of other tools.

    Args:
        source: as in `load_model`; may be an ONNX file.
        name: in the report, by default the file's.
        short_side, precision: as in `Predictor`.
        device: as in `choose_device`.
    """
    path, _ = locate(source)
    predictor = Predictor(load_model(source, device), short_side, precision)
    facts = {
        "checkpoint": path.name,
        "sha256": sha256(path),
        "short side": str(predictor.short_side),
        "device": predictor.runs_on,
        "precision": str(predictor.dtype).removeprefix("torch."),
    }
    return from_predictor(predictor, name or path.stem, facts)


def from_predictor(
    predictor: Predictor, name: str = "ours", facts: dict[str, str] | None = None
) -> MattingMethod:
    """A predictor at hand, for instance of a network in training; mattes rounded to 8 bits."""

    def matte(_: Sample, image: NDArray[np.generic]) -> NDArray[np.float32]:
        alpha = predictor.predict(image).alpha
        return np.rint(alpha * 255).astype(np.float32) / np.float32(255)

    return MattingMethod(name, matte, facts or {"short side": str(predictor.short_side)})


def from_folder(name: str, folder: str | Path) -> MattingMethod:
    """Mattes or cut-outs of any origin, named as the images are, in the same tree or a flat one.

    Raises PortraitmattingError for a folder without images.
    """
    root = Path(folder)
    mattes = index_by_name(root) if root.is_dir() else {}
    if not mattes:
        raise PortraitmattingError(f"{root}: no mattes found for {name}: expected a folder of them")

    def matte(sample: Sample, _: NDArray[np.generic]) -> NDArray[np.float32]:
        path = mattes.get(sample.name) or mattes.get(Path(sample.name).name)
        if path is None:
            raise PortraitmattingError(f"no matte {root / sample.name}.png")
        return read_alpha(path)

    return MattingMethod(name, matte, {"mattes": str(root)})
