"""The training loop: steps, validation, log and checkpoints, in a run that can be resumed."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from portraitmatting import metrics
from portraitmatting.device import describe_precision
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.files import read_image
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.predictor import Predictor
from portraitmatting.training.config import TrainConfig, prolonged, with_absolute_paths
from portraitmatting.training.data import Batch, TrainingData, describe_change, join, record_data
from portraitmatting.training.init_weights import initial_model, model_from_facts
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.runtime import (
    Interrupt,
    choose_training_precision,
    joined,
    reproducible,
)
from portraitmatting.training.sources import paired, read_matte
from portraitmatting.training.trainer import NotFinite, Trainer

MEASURES = ("MAD", "MSE", "SAD", "IoU")
"""Of `metrics.METRICS`, over the whole image at its own size; the best weights have least MAD."""
_SHEET_SIDE = 320


def train(
    run: str | os.PathLike[str],
    config: TrainConfig | None = None,
    model: PortraitMatting | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Train in the directory `run`. Under torchrun every process makes the same call.

    Args:
        run: a new folder, or without a `config` that of a run to resume.
        config: the recipe of a new run.
        model: used instead of `config.init_from`.
        changes: settings of `PROLONGABLE` for a resumed run.

    Raises `PortraitmattingError` for a recipe or folder that cannot be used, errors of the disk,
    and a loss that is not finite; KeyboardInterrupt after Ctrl-C, once a checkpoint is written.
    """
    directory = RunDirectory(run)
    resumes = config is None
    config = directory.config() if config is None else with_absolute_paths(config)
    config = prolonged(config, changes or {})
    state = directory.latest() if resumes else None
    precision = choose_training_precision(config.device, config.precision)
    with joined(precision.device) as processes, reproducible(precision.device):
        torch.manual_seed(config.seed)
        if state is not None:
            model = model_from_facts(state["facts"])
        model = model or initial_model(config.init_from)
        loop = Loop(directory, config, Trainer(config, model, precision, processes))
        if state is not None:
            loop.restore(state)
        if processes.first:
            data = record_data(config, loop.data.sources)
            if resumes:
                _report_change(directory.data(), data)
                directory.remove_leftovers()
                # A run that was killed before its first checkpoint starts again.
                directory.forget_after(-1 if state is None else loop.trainer.step)
                directory.describe(config, data)
            else:
                directory.create(config, data)  # last: a wrong recipe leaves no run
        loop.run()


def _report_change(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    change = describe_change(before, now) if before else None
    if change:
        print(f"{change}; from here on this is another training", file=sys.stderr)


class Loop:
    """What happens around a trainer's steps; only the first process reports and saves."""

    def __init__(self, directory: RunDirectory, config: TrainConfig, trainer: Trainer) -> None:
        self.directory, self.config, self.trainer = directory, config, trainer
        self.processes = trainer.processes
        self.data = TrainingData(config)
        self.validation: Validation | None = None
        if config.validation:
            self.validation = Validation(config.validation, config.images)
        self.board: Board | None = None
        self.best = float("inf")

    def run(self) -> None:
        """Train to the last step, or to Ctrl-C, which finishes the step and writes a checkpoint."""
        config, trainer = self.config, self.trainer
        if config.tensorboard and self.processes.first:
            self.board = Board(self.directory.path)
        steps = self.data.batches(trainer.step, config.steps, trainer.indices, config.threads)
        quiet = None if self.processes.first else True
        bar = tqdm(total=config.steps, initial=trainer.step, unit="step", disable=quiet)
        with Interrupt() as interrupt, bar:
            if trainer.step == 0:
                self._validate()
            for samples in steps:
                row = self._step(samples)
                bar.update()
                bar.set_postfix(loss=f"{row['total']:.4f}")
                last = trainer.step == config.steps
                if last or trainer.step % config.validate_every == 0:
                    self._validate()
                stop = self.processes.any(interrupt.signal is not None)
                if last or stop or trainer.step % config.save_every == 0:
                    self._save()
                if stop:
                    steps.close()
                    interrupt.finish()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint that `run` wrote."""
        self.trainer.restore(state)
        self.best = state["best"]
        if self.trainer.step > self.config.steps:
            raise PortraitmattingError(
                f"steps {self.config.steps}: the run has done {self.trainer.step}"
            )
        before = state.get("environment", {})
        changes = [
            f"{name} {value}, until now {before[name]}"
            for name, value in self._environment().items()
            if before.get(name, value) != value
        ]
        if changes and self.processes.first:
            text = f"the last digits of the numbers will differ: {'; '.join(changes)}"
            print(text, file=sys.stderr)

    def _environment(self) -> dict[str, str]:
        """What the last digits of a run's numbers depend on besides the recipe and the data."""
        precision = self.trainer.precision
        return {
            "threads of PyTorch (OMP_NUM_THREADS)": str(torch.get_num_threads()),
            "processes": str(self.processes.count),
            "device": precision.device.type,
            "precision": describe_precision(precision.dtype),
            "PyTorch": str(torch.__version__),  # as plain text, for a safe torch.load
        }

    def _step(self, samples: list[Batch]) -> dict[str, float]:
        try:
            row = self.trainer.train_step(samples)
        except NotFinite as error:
            step = {"step": self.trainer.step, "values": error.values}
            batch = join(samples)._asdict()
            path = self.directory.save_batch(step | batch, self.processes.rank)
            raise PortraitmattingError(
                f"{error}; the batch is in {path}: look at it, or start again with a lower "
                "learning rate"
            ) from None
        self._log("log", row)
        return row

    def _validate(self) -> None:
        trainer = self.trainer
        # While only the coarse stages are trained, the heads' mattes mean nothing.
        if self.validation is not None and self.processes.first and not trainer.coarse:
            precision = describe_precision(trainer.precision.dtype)
            predictor = Predictor(trainer.average.model, self.config.short_side, precision)
            scores = self.validation.run(predictor, self.directory, trainer.step)
            self._log("scores", {"step": trainer.step, **scores})
            text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            tqdm.write(f"step {trainer.step}: {text}")
            if scores["MAD"] < self.best:
                self.best = scores["MAD"]
                kept = {name: trainer.state()[name] for name in ("step", "facts", "ema")}
                self.directory.save_best(kept)
        self.processes.wait()

    def _log(self, table: str, row: dict[str, float]) -> None:
        if self.processes.first:
            self.directory.append(table, row)
            if self.board:
                self.board.add(table, row)

    def _save(self) -> None:
        if self.processes.first:
            more = {"best": self.best, "environment": self._environment()}
            self.directory.save(self.trainer.state() | more, self.trainer.step)
        self.processes.wait()


class Validation:
    """A folder with image/ and alpha/ to score mattes on."""

    def __init__(self, folder: str, kept: int) -> None:
        self.folder, self.kept = Path(folder), kept
        self.pairs = paired(folder, "alpha")

    def run(self, predictor: Predictor, directory: RunDirectory, step: int) -> dict[str, float]:
        """The mean scores; those of each image, and the first mattes, are written to the run."""
        rows: list[dict[str, str | float]] = []
        for number, (image_path, alpha_path) in enumerate(self.pairs):
            pixels = read_image(image_path).pixels
            ground_truth = read_matte(alpha_path, pixels.shape)
            name = image_path.relative_to(self.folder / "image").as_posix()
            alpha = predictor.predict(pixels).alpha
            scores = {key: metrics.METRICS[key](alpha, ground_truth, None) for key in MEASURES}
            rows.append({"image": name, **scores})
            if number < self.kept:
                directory.save_matte(step, name, sheet(pixels, ground_truth, alpha))
        directory.save_scores(step, rows)
        return {key: float(np.mean([float(row[key]) for row in rows])) for key in MEASURES}


def sheet(pixels: np.ndarray, ground_truth: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Image (HxWx3 uint8 | uint16), ground truth and matte (HxW) side by side, RGB uint8, small."""
    image = pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
    mattes = np.rint(np.hstack([ground_truth, alpha]) * 255).astype(np.uint8)
    row = np.hstack([image, np.repeat(mattes[..., None], 3, axis=2)])
    scale = min(1.0, _SHEET_SIDE / min(pixels.shape[:2]))
    return np.asarray(cv2.resize(row, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


class Board:
    """Both tables as TensorBoard's curves, in RUN/tensorboard."""

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise PortraitmattingError(
                "tensorboard is not installed: pip install tensorboard, or leave the option out"
            ) from None
        self._writer = SummaryWriter(str(run / "tensorboard"))  # type: ignore[no-untyped-call]

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """Add a row, whose numbers belong to its `step`."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{table}/{name}", value, row["step"])  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]
