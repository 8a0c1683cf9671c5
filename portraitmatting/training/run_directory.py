"""A run on disk, which can be resumed whenever its process dies, and its weights as a checkpoint.

RUN/config.json             the whole recipe, its folders absolute
RUN/data.json               the data: counts, and a digest of every file
RUN/log.csv                 one row per step: losses, learning rate, gradient norm, seconds
RUN/scores.csv              one row per validation: mean scores of the averaged weights
RUN/validation/000100.csv   the same per image
RUN/mattes/000100/NAME.png  image, ground truth and matte side by side
RUN/checkpoints/000100.pt   all that a resume needs: weights, average, optimiser, step
RUN/best.pt                 the averaged weights with the best score so far
RUN/failed_batch_0.pt       the batch that a run stopped at because a number was not finite
"""

import csv
import json
import os
import pickle
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from portraitmatting.atomic import atomic_path
from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.choices import check_word
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.files import write_image
from portraitmatting.training.config import TrainConfig, config_from_dict, with_absolute_paths
from portraitmatting.training.init_weights import model_from_facts

_KEPT = 2
"""Checkpoints that are kept."""
_CHECKPOINT = re.compile(r"[0-9]{6}\.pt|[1-9][0-9]{6,}\.pt")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp\.[a-z]+")  # as atomic_path names them

_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


class RunDirectory:
    """The files of one run.

    Every file but the two tables is written under a temporary name and renamed when it is whole;
    errors of the disk raise `PortraitmattingError` and leave the file that was there before.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def create(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Start a run; a folder that is not empty is refused."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise PortraitmattingError(
                f"{self.path} is not empty: give another folder, or --resume to go on with its run"
            )
        with self._writing(self.path):
            (self.path / "checkpoints").mkdir(parents=True)
        self.describe(config, data)

    def describe(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Write data.json and config.json."""
        for name, content in (("data", data), ("config", asdict(config))):
            path = self.path / f"{name}.json"
            with self._writing(path), atomic_path(path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def config(self) -> TrainConfig:
        """The recipe that the run was started with."""
        path = self.path / "config.json"
        content = self._read_json(path)
        if content is None:
            raise PortraitmattingError(f"{self.path} holds no run: there is no config.json in it")
        config = config_from_dict(content)
        if with_absolute_paths(config) != config:
            raise PortraitmattingError(
                f"{path} names folders relative to where the run was started, as earlier versions "
                "did: make them absolute in it"
            )
        return config

    def data(self) -> dict[str, Any] | None:
        """What `record_data` returned for the run; None for runs of earlier versions."""
        return self._read_json(self.path / "data.json")

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise PortraitmattingError(f"{path}: cannot be read ({error})") from None
        if not isinstance(content, dict):
            raise PortraitmattingError(f"{path}: cannot be read (expected a table)")
        return content

    def remove_leftovers(self) -> None:
        """Delete the temporary files of saves that were killed."""
        for path in self.path.rglob(".*.tmp.*"):
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Write a checkpoint, then remove those older than the last two."""
        path = self.path / "checkpoints" / f"{step:06}.pt"
        self._write(path, state)
        done = [path for path in self.checkpoints() if int(path.stem) <= step]
        for old in done[:-_KEPT]:
            old.unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """The run's checkpoints, oldest first; other files are ignored."""
        paths = (self.path / "checkpoints").glob("*.pt")
        return sorted(
            (p for p in paths if _CHECKPOINT.fullmatch(p.name) and p.is_file()),
            key=lambda p: int(p.stem),
        )

    def latest(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU; None before the first one."""
        for path in reversed(self.checkpoints()):
            state = self.read(path)
            if state.get("step") == int(path.stem):
                return state
            print(f"{path} holds step {state.get('step')}: left alone", file=sys.stderr)
        return None

    def weights(self, which: str) -> dict[str, Any]:
        """The checkpoint with the "best" or the "last" averaged weights."""
        if check_word("which", which, ("best", "last")) == "best":
            path = self.path / "best.pt"
            if not path.is_file():
                raise PortraitmattingError(
                    f"{self.path} holds no best.pt: it had no validation; use --which last"
                )
            return self.read(path)
        state = self.latest()
        if state is None:
            raise PortraitmattingError(f"{self.path} holds no checkpoint yet")
        return state

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Replace best.pt."""
        self._write(self.path / "best.pt", state)

    def save_batch(self, content: Mapping[str, Any], rank: int) -> Path:
        """Keep a batch for inspection: `torch.load` reads it."""
        path = self.path / f"failed_batch_{rank}.pt"
        self._write(path, content)
        return path

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """A .pt file of a run, on the CPU."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise PortraitmattingError(
                f"{path}: cannot be read ({_first_line(error)}): remove it to use an earlier one"
            ) from None
        if not isinstance(content, dict):
            raise PortraitmattingError(f"{path}: cannot be read (no checkpoint of a run)")
        return content

    def append(self, table: str, row: Mapping[str, Any]) -> None:
        """One row at the end of log.csv or scores.csv, with a header before the first."""
        path = self.path / f"{table}.csv"
        with self._writing(path), path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def forget_after(self, step: int) -> None:
        """Delete the rows of both tables after `step`: the resumed run writes them again."""
        for path in (self.path / "log.csv", self.path / "scores.csv"):
            if not path.is_file():
                continue
            with self._writing(path):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                rows = [line for line in lines[1:] if _step_of(line) <= step]
                with atomic_path(path) as temporary:
                    temporary.write_text("\n".join([*lines[:1], *rows, ""]), encoding="utf-8")

    def save_scores(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One validation's scores per image."""
        path = self.path / "validation" / f"{step:06}.csv"
        with self._writing(path):
            path.parent.mkdir(exist_ok=True)
            with (
                atomic_path(path) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    def scores(self, step: int) -> dict[str, float]:
        """The mean scores of a validation, {} if there was none at this step."""
        path = self.path / "scores.csv"
        if not path.is_file():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) == step]
        return {k: float(v) for k, v in rows[-1].items() if k != "step"} if rows else {}

    def save_matte(self, step: int, name: str, sheet: np.ndarray) -> None:
        """The sheet of validation image `name`, RGB HWC uint8."""
        path = self.path / "mattes" / f"{step:06}" / Path(name).with_suffix(".png")
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, sheet)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        with self._writing(path), atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(content), file)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Errors of the disk become one line that says which checkpoint is kept."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch turns some failed writes into RuntimeError
            reason = getattr(error, "strerror", None) or _first_line(error)
            kept = self.checkpoints()
            advice = "make room and start again"
            if kept:
                advice = f"{kept[-1].name} is kept; make room and --resume"
            raise PortraitmattingError(f"{path}: cannot be written ({reason}): {advice}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _step_of(line: str) -> float:
    """A row's first cell; a row that is not whole, since the process died, counts as the last."""
    first = line.split(",", 1)[0]
    return int(first) if first.isdigit() and "," in line else float("inf")


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    which: str = "best",
    storage: str = "fp16",
    licence: str | None = None,
) -> Path:
    """Write the averaged weights of `run` as one of our checkpoints, which says how they were made:
    the recipe, the data's folders and counts, the validation scores. The data is not needed.

    Args:
        run: the run's folder.
        out: the checkpoint, a .safetensors file.
        which: "best", by validation MAD, or "last".
        storage: "fp32", "fp16" or "int8".
        licence: of the weights; default: that of the weights that the run started from.

    Raises `PortraitmattingError`.
    """
    directory = RunDirectory(run)
    config, state = directory.config(), directory.weights(which)
    model = model_from_facts(state["facts"])
    start, step = model.checkpoint, state["step"]
    model.load_state_dict(state["ema"])
    licence = licence or (start.licence if start else None)
    if licence is None:
        raise PortraitmattingError(
            "say under which licence the weights may be used: --licence TEXT"
        )
    origin = f"trained from {Path(config.init_from).name!r} by {step} steps of {config.batch_size}"
    counts = (directory.data() or {}).get("counts", [None] * len(config.data))
    facts = {
        "step": step,
        "data": [
            {"kind": s.kind, "name": _name(s.folder), "count": count, "weight": s.weight}
            for s, count in zip(config.data, counts, strict=True)
        ],
        "scores": directory.scores(step),
        "recipe": _shareable(config),
    }
    info = CheckpointInfo(
        origin=f"{origin}; before that: {start.origin}" if start else origin,
        licence=licence,
        working_short_side=config.short_side,
        facts=facts,
    )
    save_checkpoint(out, model, info, storage)
    return Path(out)


def _shareable(config: TrainConfig) -> dict[str, Any]:
    """The whole recipe as plain values, without the paths of this machine."""
    recipe = asdict(config)
    for table in (recipe, *recipe["data"]):
        for key in ("folder", "backgrounds", "validation"):
            if table.get(key):
                table[key] = _name(table[key])
    recipe["init_from"] = Path(config.init_from).name
    return json.loads(json.dumps(recipe))  # type: ignore[no-any-return]


def _name(folder: str) -> str:
    return Path(folder).resolve().name
