"""The loop: steps, with validation, log and checkpoints, in a run that survives anything."""

import os
from typing import Any

import torch
from tqdm import tqdm

from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.data import Batch, TrainingData, join
from portraitmatting.training.interrupt import Interrupt
from portraitmatting.training.precision import choose
from portraitmatting.training.processes import joined
from portraitmatting.training.reproducible import reproducible
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.start import model_from_facts, starting_model
from portraitmatting.training.tensorboard import Board
from portraitmatting.training.trainer import NotFinite, Trainer
from portraitmatting.training.validate import Validation


def train(
    run: str | os.PathLike[str],
    config: TrainConfig | None = None,
    model: PortraitMatting | None = None,
) -> None:
    """Train in the directory `run`: anew by `config`, or without one go on with the run there.

    `model` takes the place of `config.start`. Under torchrun every process calls this alike.
    Raises `PortraitmattingError` for a recipe, a folder or a disk that cannot do, and for a loss
    that is not finite; KeyboardInterrupt after Ctrl-C, with the step's checkpoint written.
    """
    directory = RunDirectory(run)
    resumes = config is None
    config = config or directory.config()
    state = directory.latest() if resumes else None
    precision = choose(config.device, config.precision)
    with joined(precision.device) as processes, reproducible(precision.device):
        torch.manual_seed(config.seed)
        if state is not None:
            model = model_from_facts(state["facts"])
        model = model or starting_model(config.start)
        loop = Loop(directory, config, Trainer(config, model, precision, processes))
        if state is not None:
            loop.restore(state)
        if processes.first and resumes:
            # A run that was killed before its first checkpoint starts over.
            directory.forget_after(-1 if state is None else loop.trainer.step)
        elif processes.first:
            directory.create(config)  # last, so that a mistake in the recipe leaves no run behind
        loop.run()


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
                stop = self.processes.any(interrupt.asked)
                if last or stop or trainer.step % config.save_every == 0:
                    self._save()
                if stop:
                    steps.close()
                    raise KeyboardInterrupt

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint that `run` wrote."""
        self.trainer.restore(state)
        self.best = state["best"]

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
        if self.validation is not None and self.processes.first:
            trainer = self.trainer
            scores = self.validation.run(trainer.average.model, self.directory, trainer.step)
            self._log("scores", {"step": trainer.step, **scores})
            said = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            tqdm.write(f"step {trainer.step}: {said}")
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
            self.directory.save(self.trainer.state() | {"best": self.best}, self.trainer.step)
        self.processes.wait()
