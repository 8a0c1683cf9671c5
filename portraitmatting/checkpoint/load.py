"""Load a checkpoint as a network; describe, verify and convert checkpoints."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from portraitmatting.checkpoint.format import (
    CheckpointInfo,
    read_checkpoint,
    read_state,
    save_checkpoint,
)
from portraitmatting.checkpoint.registry import SUMS, is_onnx, known_sums, locate, sha256
from portraitmatting.device import choose_device, limit_threads
from portraitmatting.errors import CheckpointError
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.onnx_model import OnnxModel

_OF_THE_SOURCE_FILE = ("file", "sha256", "keys", "dtype")
"""Entries of a facts file that describe the file which is converted, not its weights."""


def load_model(
    source: str | os.PathLike[str] | None = None, device: str | torch.device | None = None
) -> PortraitMatting | OnnxModel:
    """The network for a `Predictor`: an `OnnxModel` for an ONNX file, else `load_network`."""
    if is_onnx(source):
        return OnnxModel(Path(str(source)), str(device or "cpu"))
    return load_network(source, device)


def load_network(
    source: str | os.PathLike[str] | None = None, device: str | torch.device | None = None
) -> PortraitMatting:
    """The network with trained weights, in fp32 and eval mode, on `device` (default: the CPU).

    `source` is None for the default checkpoint, the name of one in the checkpoints folder (verified
    against the sha256 listed there), or a path: ours, or the author's in any wrapping. `device` is
    what `choose_device` takes. No threads are started, so that the process may still fork.

    Raises `CheckpointError`, which says what the file is instead.
    """
    device = choose_device(str(device or "cpu"))
    if is_onnx(source):
        raise CheckpointError(
            f"{source}: an ONNX file, which can be run but holds no PyTorch weights: give the "
            "checkpoint that it was exported from"
        )
    path, listed = locate(source)
    if listed and (digest := sha256(path)) != listed:
        read_state(path)  # names a Git LFS pointer or a web page, which explains more
        raise CheckpointError(
            f"{path}: its sha256 is {digest[:12]}..., but {SUMS} lists {listed[:12]}...: "
            "the file is damaged or another version; fetch it again"
        )
    with limit_threads(1):
        return _build(path).to(device)


def _build(path: Path) -> PortraitMatting:
    state, config, info = read_checkpoint(path)
    try:
        return PortraitMatting.from_state(state, config, info)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def describe(source: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """A checkpoint's file, weights and metadata for people; raises as `load_network` does."""
    path, _ = locate(source)
    model = load_network(source)
    info = model.checkpoint
    assert info is not None
    state, _ = read_state(path)
    stored = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    listed = known_sums(path.parent).get(path.name) == sha256(path)
    lines = {
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
    return lines | {key.replace("_", " "): str(value) for key, value in info.facts.items()}


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


def convert(
    source: Path,
    destination: Path,
    storage: str = "fp16",
    facts: Path | None = None,
    overwrite: bool = False,
) -> CheckpointInfo:
    """Write weights as one of our checkpoints.

    Args:
        source: in any form that `load_network` reads.
        destination: the file to write.
        storage: as in `save_checkpoint`.
        facts: a JSON file with `licence`, `working_short_side`, `made` and `start` (together the
            origin), a `sha256` that `source` must have, and anything else for the metadata.
        overwrite: replace the file if it exists.

    Raises `CheckpointError`.
    """
    if destination.exists() and not overwrite:
        raise CheckpointError(f"{destination} exists: add --overwrite to replace it")
    described = _read_facts(facts) if facts else None
    if described and (listed := described.get("sha256")) and listed != sha256(source):
        raise CheckpointError(f"{source}: its sha256 is not the one that {facts} names")
    model = load_network(source)
    assert model.checkpoint is not None
    info = _info(described, facts) if described else model.checkpoint
    save_checkpoint(destination, model, info, storage)
    return info


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON file of facts ({error})") from None
    missing = {"licence", "working_short_side", "made", "start"} - set(described)
    if missing:
        raise CheckpointError(f"{path}: {', '.join(sorted(missing))} missing among its facts")
    return described


def _info(described: dict[str, Any], path: Path | None) -> CheckpointInfo:
    rest = {key: value for key, value in described.items() if key not in _OF_THE_SOURCE_FILE}
    return CheckpointInfo(
        origin=f"{rest.pop('made')}. Start: {rest.pop('start')}",
        licence=rest.pop("licence"),
        working_short_side=rest.pop("working_short_side"),
        precision=rest.pop("precision", "auto"),
        facts=rest,
    )
