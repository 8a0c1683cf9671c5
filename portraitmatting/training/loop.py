"""The loop: samples, network, losses, optimiser, average, and a run that survives anything.

It knows nothing of the network's insides: names of modules stand in `parts` and `coarse`.
"""

import json
import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from portraitmatting.errors import PortraitmattingError
from portraitmatting.model import PortraitMatting
from portraitmatting.training.coarse import STAGES, Supervised
from portraitmatting.training.config import TrainConfig, config_to_dict
from portraitmatting.training.data import Batch, TrainingData, join
from portraitmatting.training.ema import MovingAverage
from portraitmatting.training.interrupt import Interrupt
from portraitmatting.training.losses import matting_losses
from portraitmatting.training.parts import freeze, parameter_groups
from portraitmatting.training.precision import Precision, choose
from portraitmatting.training.processes import Processes, joined
from portraitmatting.training.reproducible import reproducible, seed_step
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.schedule import ema_decay, learning_rate
from portraitmatting.training.start import starting_model
from portraitmatting.training.tensorboard import Board
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
    resume = config is None
    config = config or directory.config()
    precision = choose(config.device, config.precision)
    with joined(precision.device) as processes, reproducible(precision.device):
        torch.manual_seed(config.seed)
        model = model or starting_model(config.start)
        trainer = Trainer(config, directory, model, precision, processes)
        if resume:
            trainer.restore()
        elif processes.first:
            directory.create(config)  # last, so that a mistake in the recipe leaves no run behind
        trainer.run()


class Trainer:
    """Everything that a step changes, and the step."""

    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory,
        model: PortraitMatting,
        precision: Precision,
        processes: Processes,
    ) -> None:
        self.config, self.directory = config, directory
        self.precision, self.processes = precision, processes
        self.data = TrainingData(config)
        self.indices = processes.share(config.batch_size)
        if len(self.indices) % config.accumulate:
            raise PortraitmattingError(
                f"{len(self.indices)} pictures per process cannot be accumulated in "
                f"{config.accumulate} equal pieces: change batch_size or accumulate"
            )
        self.validation = (
            Validation(config.validation, config.short_side, config.pictures)
            if config.validation
            else None
        )
        model = model.to(precision.device).to(memory_format=torch.channels_last)
        freeze(model, config.rates)
        self.average = MovingAverage(model)
        self.supervised = Supervised(model, STAGES).to(precision.device).train()
        self.optimiser = torch.optim.AdamW(
            parameter_groups(model, self.supervised.heads, config.rates, config.weight_decay),
            lr=config.learning_rate,
        )
        self.scaler = precision.scaler()
        self.step = 0
        self.best = float("inf")
        self.network: nn.Module = self.supervised
        if processes.count > 1:
            self.network = DistributedDataParallel(self.supervised)
        self.board: Board | None = None

    def run(self) -> None:
        """To the last step, or to Ctrl-C, which ends with a checkpoint of the step at hand."""
        config, first = self.config, self.processes.first
        if config.tensorboard and first:
            self.board = Board(self.directory.path)
        steps = self.data.batches(self.step, config.steps, self.indices, config.threads)
        bar = tqdm(
            total=config.steps, initial=self.step, unit="step", disable=None if first else True
        )
        with Interrupt() as interrupt, bar:
            if self.step == 0:
                self._validate()
            for samples in steps:
                row = self._train_step(samples)
                bar.update()
                bar.set_postfix(loss=f"{row['total']:.4f}")
                self._log("log", row)
                if self.step % config.validate_every == 0 or self.step == config.steps:
                    self._validate()
                stop = self.processes.any(interrupt.asked)
                if self.step % config.save_every == 0 or self.step == config.steps or stop:
                    self._save()
                if stop:
                    steps.close()
                    raise KeyboardInterrupt

    def restore(self) -> None:
        """Take up the run's last checkpoint; a run that was killed before its first starts over."""
        state = self.directory.latest()
        if state is not None:
            self.supervised.model.load_state_dict(state["model"])
            self.supervised.heads.load_state_dict(state["coarse"])
            self.average.model.load_state_dict(state["ema"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.best = state["step"], state["best"]
        if self.processes.first:
            self.directory.forget_after(self.step if state is not None else -1)

    def _train_step(self, samples: list[Batch]) -> dict[str, Any]:
        """One update of the weights and their average; the row for the log."""
        config, began = self.config, time.perf_counter()
        rate = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        each = len(samples) // config.accumulate
        pieces = [join(samples[i : i + each]) for i in range(0, len(samples), each)]
        losses: dict[str, Tensor] = {}
        self.optimiser.zero_grad(set_to_none=True)
        for number, piece in enumerate(pieces):
            seed_step(config.seed, self.step, self.indices[number * each])
            with self._unsynced() if number + 1 < len(pieces) else nullcontext():
                part = self._backward(piece)
            losses = {name: losses.get(name, 0) + value for name, value in part.items()}
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        means = self.processes.mean(torch.stack([*losses.values(), norm])).tolist()
        self._check(dict(zip([*losses, "gradient"], means, strict=True)), pieces)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.average.update(self.supervised.model, ema_decay(config, self.step))
        self.step += 1
        height, width = pieces[0].image.shape[-2:]
        return {
            "step": self.step,
            "height": height,
            "width": width,
            "learning_rate": rate,
            **dict(zip([*losses, "gradient"], means, strict=True)),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _backward(self, piece: Batch) -> dict[str, Tensor]:
        """Add a piece's share to the gradients; its share of the losses, detached."""
        image, alpha, trimap = (t.to(self.precision.device) for t in piece[:3])
        image = image.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            prediction, coarse = self.network(image)
        losses = matting_losses(prediction, coarse, alpha, trimap, self.config.losses)
        losses = {name: value / self.config.accumulate for name, value in losses.items()}
        self.scaler.scale(losses["total"]).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _unsynced(self) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once per step, with the last piece."""
        return (
            self.network.no_sync()
            if isinstance(self.network, DistributedDataParallel)
            else nullcontext()
        )

    def _check(self, values: dict[str, float], pieces: list[Batch]) -> None:
        """Stop before a number that is not finite reaches the weights."""
        # With fp16 an infinite gradient is the scaler's daily business: it skips the step.
        watched = [v for k, v in values.items() if k != "gradient" or not self.scaler.is_enabled()]
        if torch.isfinite(torch.tensor(watched)).all():
            return
        batch = join(pieces)
        path = self.directory.save_batch(
            {"step": self.step, "values": values, **batch._asdict()}, self.processes.rank
        )
        bad = ", ".join(k for k, v in values.items() if not torch.isfinite(torch.tensor(v)))
        raise PortraitmattingError(
            f"step {self.step}: not finite: {bad}; the batch is in {path}: look at it, "
            "or go on from the last checkpoint with a lower learning rate"
        )

    def _validate(self) -> None:
        if self.validation is not None and self.processes.first:
            scores = self.validation.run(self.average.model, self.directory, self.step)
            self._log("scores", {"step": self.step, **scores.mean})
            tqdm.write(
                f"step {self.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.mean.items())
            )
            if scores.mean["MAD"] < self.best:
                self.best = scores.mean["MAD"]
                self.directory.save_best(
                    {
                        "step": self.step,
                        "ema": self.average.model.state_dict(),
                        "scores": scores.mean,
                    }
                )
        self.processes.wait()

    def _log(self, table: str, row: dict[str, Any]) -> None:
        if self.processes.first:
            self.directory.append(table, row)
            if self.board:
                self.board.add(table, row)

    def _save(self) -> None:
        if self.processes.first:
            state = {
                "step": self.step,
                "best": self.best,
                "config": json.dumps(config_to_dict(self.config)),
                "model": self.supervised.model.state_dict(),
                "coarse": self.supervised.heads.state_dict(),
                "ema": self.average.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            self.directory.save(state, self.step)
        self.processes.wait()
