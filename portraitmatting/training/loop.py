"""The loop: steps, with validation, log and checkpoints, in a run that survives anything."""

import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.data import Batch, TrainingData, join
from portraitmatting.training.data_record import describe_change, record_data
from portraitmatting.training.init_weights import initial_model, model_from_facts
from portraitmatting.training.recipe import config_from_dict, config_to_dict, with_absolute_paths
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.runtime import (
    Interrupt,
    choose_training_precision,
    joined,
    reproducible,
)
from portraitmatting.training.trainer import NotFinite, Trainer
from portraitmatting.training.validate import Validation

PROLONGABLE = (
    *("steps", "decay_steps", "sizes", "validation", "validate_every", "images", "save_every"),
    *("threads", "device", "precision", "tensorboard"),
)
"""Settings that a resume may change: how long a run is, and how it reports and computes."""


def train(
    run: str | os.PathLike[str],
    config: TrainConfig | None = None,
    model: PortraitMatting | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Train in the directory `run`. Under torchrun every process calls this alike.

    Args:
        run: a new folder, or without a `config` one with a run to resume.
        config: the recipe of a new run.
        model: takes the place of `config.init_from`.
        changes: settings of `PROLONGABLE`, for a resume.

    Raises `PortraitmattingError` for a recipe, a folder or a disk that cannot do, and for a loss
    that is not finite; KeyboardInterrupt after Ctrl-C, with the step's checkpoint written.
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
                # A run that was killed before its first checkpoint starts over.
                directory.forget_after(-1 if state is None else loop.trainer.step)
                directory.describe(config, data)
            else:
                directory.create(config, data)  # last: a wrong recipe leaves no run behind
        loop.run()


def prolonged(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The recipe with other values of `PROLONGABLE`; a change of others is refused."""
    changed = with_absolute_paths(config_from_dict(config_to_dict(config) | dict(changes)))
    for spec in fields(config):
        old, new = (getattr(c, spec.name) for c in (config, changed))
        if old != new and spec.name not in PROLONGABLE:
            raise PortraitmattingError(
                f"a resumed run keeps its {spec.name}: only {', '.join(PROLONGABLE)} may change"
            )
    return changed


def _report_change(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    change = describe_change(before, now) if before else None
    if change:
        print(f"{change}; from here on this is another training", file=sys.stderr)


class Loop:
    """What happens around the steps of a trainer; the first process alone reports and saves."""

    def __init__(self, directory: RunDirectory, config: TrainConfig, trainer: Trainer) -> None:
        self.directory, self.config, self.trainer = directory, config, trainer
        self.processes = trainer.processes
        self.data = TrainingData(config)
        self.validation: Validation | None = None
        if config.validation:
            self.validation = Validation(config.validation, config.short_side, config.images)
        self.board: Board | None = None
        self.best = float("inf")

    def run(self) -> None:
        """To the last step, or to Ctrl-C, which ends with a checkpoint of the step at hand."""
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
        """Take up a checkpoint that `run` wrote."""
        self.trainer.restore(state)
        self.best = state["best"]
        done, threads = self.trainer.step, torch.get_num_threads()
        if done > self.config.steps:
            raise PortraitmattingError(f"steps {self.config.steps}: the run has done {done}")
        before = state.get("threads", threads)
        if before != threads and self.processes.first:
            print(
                f"PyTorch computes with {threads} threads, until now with {before}: the numbers "
                f"will differ in their last digits (OMP_NUM_THREADS={before} keeps them)",
                file=sys.stderr,
            )

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
        # While only coarse stages are trained, what the heads give means nothing.
        if self.validation is not None and self.processes.first and not trainer.coarse:
            scores = self.validation.run(trainer.average.model, self.directory, trainer.step)
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
            more = {"best": self.best, "threads": torch.get_num_threads()}
            self.directory.save(self.trainer.state() | more, self.trainer.step)
        self.processes.wait()


class Board:
    """The two tables as TensorBoard's curves, in RUN/tensorboard; an extra."""

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise PortraitmattingError(
                "tensorboard is not installed: pip install tensorboard, or leave the option out"
            ) from None
        self._writer = SummaryWriter(str(run / "tensorboard"))  # type: ignore[no-untyped-call]

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """A row of numbers at its `step`."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{table}/{name}", value, row["step"])  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]
