"""A run's averaged weights as one of our checkpoints, which says how they were made."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.choices import check_word
from portraitmatting.errors import PortraitmattingError
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.init_weights import model_from_facts
from portraitmatting.training.recipe import config_to_dict
from portraitmatting.training.run_directory import RunDirectory


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    which: str = "best",
    storage: str = "fp16",
    licence: str | None = None,
) -> Path:
    """Write the averaged weights of `run`, "best" (by validation MAD) or "last", to `out`.

    The metadata carries the recipe, the data's folders and counts, the validation scores and the
    working short side. The data itself is not needed. Raises `PortraitmattingError`.

    Args:
        run: the run's folder.
        out: the checkpoint, a .safetensors file.
        which: "best" or "last".
        storage: "fp32", "fp16" or "int8".
        licence: defaults to that of the weights that the run started from.
    """
    check_word("which", which, ("best", "last"))
    directory = RunDirectory(run)
    config = directory.config()
    state = _weights(directory, which)
    model = model_from_facts(state["facts"])
    start = model.checkpoint
    model.load_state_dict(state["ema"])
    licence = licence or (start.licence if start else None)
    if licence is None:
        raise PortraitmattingError(
            "say under which licence the weights may be used: --licence TEXT"
        )
    info = CheckpointInfo(
        origin=_origin(config, state["step"], start),
        licence=licence,
        working_short_side=config.short_side,
        facts={
            "step": state["step"],
            "data": _data(directory, config),
            "scores": _scores(directory, state["step"]),
            "recipe": _recipe(config),
        },
    )
    save_checkpoint(out, model, info, storage)
    return Path(out)


def _weights(directory: RunDirectory, which: str) -> dict[str, Any]:
    if which == "best":
        path = directory.path / "best.pt"
        if not path.is_file():
            raise PortraitmattingError(
                f"{directory.path} holds no best.pt: it had no validation; use --which last"
            )
        return directory.read(path)
    state = directory.latest()
    if state is None:
        raise PortraitmattingError(f"{directory.path} holds no checkpoint yet")
    return state


def _origin(config: TrainConfig, step: int, start: CheckpointInfo | None) -> str:
    before = f"; before that: {start.origin}" if start else ""
    name = Path(config.init_from).name
    return f"trained from {name!r} by {step} steps of {config.batch_size}{before}"


def _data(directory: RunDirectory, config: TrainConfig) -> list[dict[str, Any]]:
    """Kind, name and number of images of every folder; whole paths would tell of the machine.

    As they were when the run was last started: the data itself may be elsewhere by now.
    """
    record = directory.data() or {}
    counts = record.get("counts", [None] * len(config.data))
    return [
        {
            "kind": source.kind,
            "name": _name(source.folder),
            "count": count,
            "weight": source.weight,
        }
        for source, count in zip(config.data, counts, strict=True)
    ]


def _recipe(config: TrainConfig) -> dict[str, Any]:
    """The whole recipe, with folders by their names."""
    recipe = config_to_dict(config)
    for table in (recipe, *recipe["data"]):
        for key in ("folder", "backgrounds", "validation"):
            if table.get(key):
                table[key] = _name(table[key])
    recipe["init_from"] = Path(config.init_from).name
    return json.loads(json.dumps(recipe))  # type: ignore[no-any-return]


def _scores(directory: RunDirectory, step: int) -> dict[str, float]:
    path = directory.path / "scores.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == step]
    return {k: float(v) for k, v in rows[-1].items() if k != "step"} if rows else {}


def _name(folder: str) -> str:
    return Path(folder).resolve().name
