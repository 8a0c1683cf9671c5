"""Read, build, save and describe checkpoints."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from portraitmatting import choices
from portraitmatting.atomic import atomic_path
from portraitmatting.checkpoint.author_keys import from_author_keys, is_author_state
from portraitmatting.checkpoint.registry import SUMS, known_sums, locate, sha256
from portraitmatting.checkpoint.state_files import read_state
from portraitmatting.device import choose_device
from portraitmatting.errors import CheckpointError
from portraitmatting.modeling.model import ModelConfig, PortraitMatting
from portraitmatting.quantise import dequantise_int8, quantise_int8

if TYPE_CHECKING:
    from portraitmatting.onnx_model import OnnxModel

STORAGE = {name: getattr(torch, dtype) for name, dtype in choices.STORAGE.items()}

METADATA_KEY = "portraitmatting"
"""Under which a file's metadata, of safetensors or ONNX, holds `metadata_text`."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself: in its metadata, and as `PortraitMatting.checkpoint`."""

    origin: str
    """Where the weights come from."""
    licence: str
    working_short_side: int
    """The short side, in pixels, at which the weights give their best mattes; a multiple of 32."""
    precision: str = "auto"
    """What to compute in: "fp32", "bf16", "fp16", or "auto" (fp16 on CUDA, fp32 elsewhere)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Anything else worth knowing: data, schedule, scores, limits."""


AUTHOR = CheckpointInfo(
    origin="Portraitmatting (Qinglin Liu, 2023), the author's own checkpoint",
    licence="academic use only",
    working_short_side=768,
)
"""What is known of the author's files, which say nothing of themselves."""


def load_model(
    source: str | os.PathLike[str] | None = None, device: str | torch.device | None = None
) -> "PortraitMatting | OnnxModel":
    """What a `Predictor` runs: `load_network`, or of an ONNX file its `OnnxModel`."""
    if is_onnx(source):
        from portraitmatting.onnx_model import OnnxModel

        return OnnxModel(Path(str(source)), str(device or "cpu"))
    return load_network(source, device)


def is_onnx(source: str | os.PathLike[str] | None) -> bool:
    """Whether `source` is the path of an ONNX file, by its suffix."""
    return source is not None and Path(source).suffix.lower() == ".onnx"


def load_network(
    source: str | os.PathLike[str] | None = None, device: str | torch.device | None = None
) -> PortraitMatting:
    """The network with trained weights, in fp32 and eval mode, on `device` (default: the CPU).

    `source` is None for the default checkpoint, the name of one in the checkpoints folder (verified
    against the sha256 listed there), or a path: ours, or the author's in any wrapping. `device` is
    what `choose_device` takes.
    Raises `CheckpointError`, which says what was found.
    """
    device = choose_device(str(device or "cpu"))
    if is_onnx(source):
        raise CheckpointError(
            f"{source}: an ONNX file, which can be run but holds no PyTorch weights: give the "
            "checkpoint that it was exported from"
        )
    path, listed = locate(source)
    if listed and (found := sha256(path)) != listed:
        read_state(path)  # says better than a sha256 what a Git LFS pointer or a web page is
        raise CheckpointError(
            f"{path}: its sha256 is {found[:12]}..., but {SUMS} lists {listed[:12]}...: "
            "the file is damaged or another version; fetch it again"
        )
    state, text = read_state(path)
    try:
        return _build(state, text.get(METADATA_KEY)).to(device)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def save_checkpoint(
    path: str | os.PathLike[str],
    model: PortraitMatting,
    info: CheckpointInfo,
    storage: str = "fp32",
) -> None:
    """Write `model` atomically as one of our checkpoints, stored as "fp32", "fp16" or "int8"."""
    if storage not in STORAGE:
        raise CheckpointError(f"storage {storage!r}: expected one of {', '.join(STORAGE)}")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if storage == "int8":
        state = quantise_int8(state)
    else:
        state = {key: value.to(STORAGE[storage]) for key, value in state.items()}
    text = metadata_text(model.config, info)
    try:
        with atomic_path(Path(path)) as temporary:
            # Not save_file: it makes a file of its own that only its owner may read.
            temporary.write_bytes(save(state, {METADATA_KEY: text}))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from None


def smallest_exact(model: PortraitMatting) -> str:
    """The storage that keeps the weights to the bit: "fp16" if that does, else "fp32"."""
    exact = all(value.equal(value.half().to(value.dtype)) for value in model.state_dict().values())
    return "fp16" if exact else "fp32"


def describe(source: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """What a checkpoint is, and what it says of itself; raises as `load_model` does."""
    path, _ = locate(source)
    model = load_network(source)
    info = model.checkpoint
    assert info is not None
    state, _ = read_state(path)
    stored = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    listed = known_sums(path.parent).get(path.name) == sha256(path)
    facts = {
        "file": path.name,
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "sha256": f"{sha256(path)} ({f'as listed in {SUMS}' if listed else 'not listed'})",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "stored as": ", ".join(stored),
        "origin": info.origin,
        "licence": info.licence,
        "working short side": f"{info.working_short_side} px",
        "precision": info.precision,
    }
    return facts | {key.replace("_", " "): str(value) for key, value in info.facts.items()}


def verify(source: str | None) -> str:
    """Load a checkpoint and run it once; raises `CheckpointError` if anything is wrong with it."""
    path, _ = locate(source)
    listed = known_sums(path.parent).get(path.name)
    digest = sha256(path)
    if listed and listed != digest:
        raise CheckpointError(f"{path}: sha256 is {digest}, {SUMS} lists {listed}: fetch it again")
    with torch.inference_mode():
        prediction = load_network(path)(torch.rand(1, 3, 64, 96))
    if not all(output.isfinite().all() for output in prediction):
        raise CheckpointError(f"{path}: its output is not finite")
    return f"{path}: good, {'sha256 as listed' if listed else f'sha256 {digest} (not listed)'}"


def _build(state: dict[str, Tensor], text: str | None) -> PortraitMatting:
    """The network for these weights and this metadata, strictly loaded."""
    config, info = ModelConfig(), AUTHOR
    state = dequantise_int8(state)
    if is_author_state(state):
        state = from_author_keys(state)
    elif text is None:
        raise CheckpointError(
            f"not a Portraitmatting checkpoint: {len(state)} tensors named "
            f"{', '.join(list(state)[:3])}, ..."
        )
    if text is not None:
        config, info = parse_metadata(text)
    return PortraitMatting.from_state(state, config, info)


def metadata_text(config: ModelConfig, info: CheckpointInfo) -> str:
    """All that a file says of itself, as JSON."""
    # One text: safetensors writes several metadata keys in random order, and then no two files of
    # the same weights would share a sha256.
    return json.dumps({"config": asdict(config), **asdict(info)}, ensure_ascii=False)


def parse_metadata(text: str) -> tuple[ModelConfig, CheckpointInfo]:
    """What `metadata_text` was given; raises `CheckpointError` for any other text."""
    try:
        described = json.loads(text)
        config: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in described.pop("config").items()
        }
        return ModelConfig(**config), CheckpointInfo(**described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"its metadata cannot be understood ({error}): made by another version?"
        ) from None
