"""`python -m portraitmatting.checkpoint convert|info|verify`: checkpoints on the command line."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from portraitmatting.checkpoint import (
    STORAGE,
    SUMS,
    CheckpointInfo,
    checkpoints_folder,
    describe,
    known_sums,
    load_network,
    locate,
    save_checkpoint,
    sha256,
)
from portraitmatting.cli import FAILED, given, run
from portraitmatting.errors import CheckpointError, PortraitmattingError

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


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m portraitmatting.checkpoint", description="Checkpoint files."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    to_ours = commands.add_parser("convert", help="the author's file to one of ours")
    to_ours.add_argument("source", type=Path)
    to_ours.add_argument("destination", type=Path)
    to_ours.add_argument("--storage", choices=list(STORAGE), help="default: fp16")
    to_ours.add_argument("--facts", type=Path, help="JSON file that describes the weights")
    to_ours.add_argument("--overwrite", action="store_true", default=None)
    for name, text in (("info", "what a checkpoint is"), ("verify", "check files, all by default")):
        command = commands.add_parser(name, help=text)
        command.add_argument("sources", nargs="*", metavar="source", help="a name or a path")
    options = parser.parse_args()

    if options.command == "convert":
        chosen = given(options, "storage", "facts", "overwrite")
        convert(options.source, options.destination, **chosen)
        print(_table(options.destination))
    elif options.command == "info":
        print("\n\n".join(_table(source) for source in options.sources or [None]))
    else:
        return _verify_all(options.sources)
    return 0


def _table(source: str | Path | None) -> str:
    return "\n".join(f"{name + ':':<20}{value}" for name, value in describe(source).items())


def _verify_all(sources: list[str]) -> int:
    folder = checkpoints_folder()
    sources = sources or [str(folder / name) for name in known_sums(folder)]
    if not sources:
        raise CheckpointError(f"nothing to verify: {folder} holds no {SUMS}")
    code = 0
    for source in sources:
        try:
            print(verify(source))
        except PortraitmattingError as error:
            print(f"FAILED {error}")
            code = FAILED
    return code


if __name__ == "__main__":
    run(main)
