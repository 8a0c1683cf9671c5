"""A run on disk, which can be resumed whatever moment its process dies at.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from portraitmatting.atomic import atomic_path
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.files import write_image
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.recipe import config_from_dict, config_to_dict, with_absolute_paths

_KEPT = 2
_CHECKPOINT = re.compile(r"[0-9]{6}\.pt|[1-9][0-9]{6,}\.pt")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp\.[a-z]+")  # as atomic_path names them

_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


class RunDirectory:
    """The files of one run.

    Every file but the two tables is written aside and renamed when whole; what the disk refuses
    raises `PortraitmattingError` and leaves what was there before.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def create(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Start a run here; a folder that holds anything is refused."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise PortraitmattingError(
                f"{self.path} is not empty: give another folder, or --resume to go on with its run"
            )
        try:
            (self.path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise self._refused(self.path, error) from None
        self.describe(config, data)

    def describe(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Write data.json and config.json."""
        for name, content in (("data", data), ("config", config_to_dict(config))):
            path = self.path / f"{name}.json"
            try:
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                raise self._refused(path, error) from None

    def config(self) -> TrainConfig:
        """The recipe that the run was started with."""
        path = self.path / "config.json"
        content = self._read_json(path)
        if content is None:
            raise PortraitmattingError(
                f"{self.path} holds no run: there is no config.json in it"
            ) from None
        config = config_from_dict(content)
        if with_absolute_paths(config) != config:
            raise PortraitmattingError(
                f"{path} names folders relative to where the run was started, as earlier versions "
                "did: make them absolute in it"
            )
        return config

    def data(self) -> dict[str, Any] | None:
        """What `record_data` made of the run's data; None for runs of earlier versions."""
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
        """Write a checkpoint, and only then remove those older than the last two."""
        path = self.path / "checkpoints" / f"{step:06}.pt"
        self._write(path, state)
        done = [path for path in self.checkpoints() if int(path.stem) <= step]
        for old in done[:-_KEPT]:
            old.unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first; other files beside them are ignored."""
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
        """One of the .pt files of a run, on the CPU."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise PortraitmattingError(f"{path}: cannot be read ({_first_line(error)})") from None
        if not isinstance(content, dict):
            raise PortraitmattingError(f"{path}: cannot be read (no checkpoint of a run)")
        return content

    def append(self, table: str, row: Mapping[str, Any]) -> None:
        """One row at the end of log.csv or scores.csv, with a header before the first."""
        path = self.path / f"{table}.csv"
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row))
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise self._refused(path, error) from None

    def forget_after(self, step: int) -> None:
        """Drop the rows of both tables past `step`: the resumed run writes them again."""
        for path in (self.path / "log.csv", self.path / "scores.csv"):
            if not path.is_file():
                continue
            try:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                rows = [line for line in lines[1:] if _step_of(line) <= step]
                with atomic_path(path) as temporary:
                    temporary.write_text("\n".join([*lines[:1], *rows, ""]), encoding="utf-8")
            except OSError as error:
                raise self._refused(path, error) from None

    def save_scores(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One validation's scores per image."""
        path = self.path / "validation" / f"{step:06}.csv"
        try:
            path.parent.mkdir(exist_ok=True)
            with (
                atomic_path(path) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            raise self._refused(path, error) from None

    def save_matte(self, step: int, name: str, sheet: np.ndarray) -> None:
        """The sheet of validation image `name`, RGB HWC uint8."""
        path = self.path / "mattes" / f"{step:06}" / Path(name).with_suffix(".png")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(path, error) from None
        write_image(path, sheet)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                torch.save(dict(content), file)
        except (OSError, RuntimeError) as error:  # torch turns some failed writes into RuntimeError
            raise self._refused(path, error) from None

    def _refused(self, path: Path, error: Exception) -> PortraitmattingError:
        reason = getattr(error, "strerror", None) or _first_line(error)
        kept = self.checkpoints()
        advice = (
            f"{kept[-1].name} is kept; make room and --resume"
            if kept
            else "make room and start again"
        )
        return PortraitmattingError(f"{path}: cannot be written ({reason}): {advice}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _step_of(line: str) -> float:
    """A row's first cell; a row that was cut short by a kill counts as later than any step."""
    first = line.split(",", 1)[0]
    return int(first) if first.isdigit() and "," in line else float("inf")
