"""From any checkpoint that can be read to one of ours, with what is known of it."""

import json
from pathlib import Path
from typing import Any

from portraitmatting.checkpoint.files import CheckpointInfo, load_network, save_checkpoint
from portraitmatting.checkpoint.registry import sha256
from portraitmatting.errors import CheckpointError

_OF_THE_SOURCE_FILE = ("file", "sha256", "keys", "dtype")
"""Entries of a facts file that describe the file which is converted, not its weights."""


def convert(
    source: Path,
    destination: Path,
    storage: str = "fp16",
    facts: Path | None = None,
    overwrite: bool = False,
) -> CheckpointInfo:
    """Write `source`, in any form that `load_network` reads, as one of our checkpoints.

    `facts` is a JSON file with `licence`, `working_short_side`, `made` and `start` (together the
    origin), a `sha256` that `source` must have, and whatever else the metadata should carry.
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
