"""One step of training, and everything that it changes."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.data import Batch, join
from portraitmatting.training.init_weights import model_facts
from portraitmatting.training.losses import DeepSupervision, matting_losses
from portraitmatting.training.optimiser import (
    MovingAverage,
    ema_decay,
    freeze,
    learning_rate,
    parameter_groups,
)
from portraitmatting.training.runtime import Precision, Processes, seed_step


class NotFinite(PortraitmattingError):
    """A loss or gradient is infinite or not a number; `values` are all of the step's."""

    def __init__(self, step: int, values: dict[str, float]) -> None:
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        super().__init__(f"step {step}: not finite: {bad}")
        self.values = values


class Trainer:
    """The network with its coarse heads, its average, the optimiser, and the number of steps done.

    It knows nothing of the network's insides: `optimiser` and `DeepSupervision` do.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PortraitMatting,
        precision: Precision,
        processes: Processes,
    ) -> None:
        self.config, self.precision, self.processes = config, precision, processes
        self.indices = processes.share(config.batch_size)
        if len(self.indices) % config.grad_accum_steps:
            raise PortraitmattingError(
                f"{len(self.indices)} images per process cannot be accumulated in "
                f"{config.grad_accum_steps} equal pieces: change batch_size or grad_accum_steps"
            )
        self.facts = model_facts(model)
        model = model.to(precision.device).to(memory_format=torch.channels_last)
        freeze(model, config.lr_scale)
        self.average = MovingAverage(model)
        self.supervised = DeepSupervision(model).to(precision.device).train()
        self.optimiser = torch.optim.AdamW(
            parameter_groups(model, self.supervised.heads, config.lr_scale, config.weight_decay),
            lr=config.learning_rate,
        )
        self.scaler = precision.scaler()
        self.step = 0
        self.network: nn.Module = self.supervised
        if processes.count > 1:
            self.network = DistributedDataParallel(
                self.supervised, find_unused_parameters=config.coarse_steps > 0
            )

    @property
    def coarse(self) -> bool:
        """Whether the next step trains the coarse stages only."""
        return self.step < self.config.coarse_steps

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; random numbers follow from the recipe's seed and the step."""
        return {
            "step": self.step,
            "facts": self.facts,
            "model": self.supervised.model.state_dict(),
            "coarse": self.supervised.heads.state_dict(),
            "ema": self.average.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the trainer that `state` was taken of."""
        try:
            self.step = state["step"]
            self.supervised.model.load_state_dict(state["model"])
            self.supervised.heads.load_state_dict(state["coarse"])
            self.average.model.load_state_dict(state["ema"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (KeyError, RuntimeError, ValueError):
            raise PortraitmattingError(
                "the checkpoint is of another version of this package or another lr_scale: export "
                "the run's weights and start a new run with init_from"
            ) from None
        # One of a run in fp32 or bf16 is empty; a scaler that starts anew soon finds its scale.
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def train_step(self, samples: Sequence[Batch]) -> dict[str, float]:
        """One update of the weights and their average, by this process's samples of the step.

        Returns the step's row for the log. Raises `NotFinite` before a number that is not finite
        reaches the weights.
        """
        config, began = self.config, time.perf_counter()
        rate = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._accumulate(samples)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_grad)
        means = self.processes.mean(torch.stack([*losses.values(), norm])).tolist()
        values = dict(zip([*losses, "gradient"], means, strict=True))
        # With fp16 an infinite gradient is the scaler's daily business: it skips the step.
        watched = means[:-1] if self.scaler.is_enabled() else means
        if not all(map(math.isfinite, watched)):
            raise NotFinite(self.step, values)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.average.update(self.supervised.model, ema_decay(config, self.step))
        self.step += 1
        height, width = samples[0].image.shape[-2:]
        size = {"step": self.step, "height": height, "width": width, "learning_rate": rate}
        return size | values | {"seconds": round(time.perf_counter() - began, 3)}

    def _accumulate(self, samples: Sequence[Batch]) -> dict[str, Tensor]:
        """The gradients of all samples, piece by piece, and the mean losses, detached."""
        pieces = self.config.grad_accum_steps
        each = len(samples) // pieces
        sums: dict[str, Tensor] = {}
        for number in range(pieces):
            piece = samples[number * each : (number + 1) * each]
            seed_step(self.config.seed, self.step, self.indices[number * each])
            with self._unsynced() if number + 1 < pieces else nullcontext():
                losses = self._losses(join(piece))
                self.scaler.scale(losses["total"] / pieces).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / pieces
        return sums

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        image, alpha, trimap = (t.to(self.precision.device) for t in batch[:3])
        image = image.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            prediction, coarse = self.network(image, coarse=self.coarse)
        return matting_losses(prediction, coarse, alpha, trimap, self.config.losses)

    def _unsynced(self) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once per step, with the last piece."""
        network = self.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
