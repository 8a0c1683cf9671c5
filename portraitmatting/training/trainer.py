"""One step of training: parts of the network and their learning rates, averaged weights, and the
trainer, which holds everything that a step changes."""

import copy
import math
import re
import time
from collections.abc import Mapping, Sequence
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
from portraitmatting.training.runtime import Precision, Processes, seed_step

PARTS = {
    "stem": r"encoder\.(stem|patch_embed)\.",
    "stage1": r"encoder\.(stages\.0|norms\.0)\.",
    "stage2": r"encoder\.(stages\.1|merges\.0|norms\.1)\.",
    "stage3": r"encoder\.(stages\.2|merges\.1|norms\.2)\.",
    "stage4": r"encoder\.(stages\.3|merges\.2|norms\.3)\.",
    "ppm": r"ppm\.",
    "decoder": r"decoder\.",
    "heads": r"(alpha|trimap)_head\.",
}
"""Part of the network to the pattern that its parameters' names begin with; a patch merging belongs
to the stage that follows it."""


def part_of(name: str) -> str:
    """The part that a parameter of the network belongs to."""
    for part, pattern in PARTS.items():
        if re.match(pattern, name):
            return part
    raise PortraitmattingError(f"parameter {name} belongs to no part: add it to PARTS")


def freeze(model: nn.Module, lr_scale: Mapping[str, float]) -> None:
    """Compute no gradients for the parts whose scale is 0."""
    for part, scale in lr_scale.items():
        if part not in PARTS or scale < 0:
            raise PortraitmattingError(
                f"lr_scale.{part} = {scale}: expected {', '.join(PARTS)}, from 0"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lr_scale.get(part_of(name), 1.0) > 0)


def parameter_groups(
    model: nn.Module, extra: nn.Module, lr_scale: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW groups, each with `part` and `lr_scale`, its factor on the learning rate.

    Args:
        model: the network, after `freeze`: frozen parameters are left out.
        extra: the heads that exist in training only; they learn at the full rate.
        lr_scale: part of the network to its factor; 1 for others.
        weight_decay: of matrices; vectors (norms, biases, slopes) and position tables have none.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    named = [(part_of(n), n, p) for n, p in model.named_parameters() if p.requires_grad]
    named += [("coarse", n, p) for n, p in extra.named_parameters()]
    for part, name, parameter in named:
        decays = parameter.ndim > 1 and "relative_position" not in name
        group = groups.setdefault(
            (part, decays),
            {
                "part": part,
                "lr_scale": lr_scale.get(part, 1.0),
                "weight_decay": weight_decay if decays else 0.0,
                "params": [],
            },
        )
        group["params"].append(parameter)
    if not any(group["part"] in PARTS for group in groups.values()):
        raise PortraitmattingError("lr_scale: every part is frozen, nothing would learn")
    return list(groups.values())


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step: a linear warmup, then the full rate, then in the last `decay_steps` a
    linear fall, which would reach `min_lr` one step after the last.

    Without `decay_steps` it falls by half a cosine from the warmup to the end (Loshchilov and
    Hutter, ICLR 2017).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = config.steps - step
    if config.decay_steps is None:
        share = left / max(1, config.steps - config.warmup_steps)
        height = (1 - math.cos(math.pi * share)) / 2
    else:
        height = min(1.0, left / (config.decay_steps + 1))
    return config.learning_rate * height + config.min_lr * (1 - height)


class MovingAverage:
    """The averaged weights, which are validated and exported: those of `model`, in eval mode."""

    def __init__(self, model: PortraitMatting) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: PortraitMatting, decay: float) -> None:
        """Average = decay * average + (1 - decay) * weights; what is not a float is copied."""
        ours, theirs = self.model.state_dict(), model.state_dict()
        for name, value in theirs.items():
            if value.is_floating_point():
                ours[name].lerp_(value, 1 - decay)
            else:
                ours[name].copy_(value)


def ema_decay(config: TrainConfig, step: int) -> float:
    """The average's decay: at first (1 + step) / (10 + step), which soon forgets the start."""
    return min(config.ema, (1 + step) / (10 + step))


class NotFinite(PortraitmattingError):
    """A loss or gradient is infinite or not a number; `values` are all those of the step."""

    def __init__(self, step: int, values: dict[str, float]) -> None:
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        super().__init__(f"step {step}: not finite: {bad}")
        self.values = values


class Trainer:
    """The network with its coarse heads, its average, the optimiser, and the number of steps done.

    It knows nothing of the network's inside: `PARTS` and `DeepSupervision` do.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PortraitMatting,
        precision: Precision,
        processes: Processes,
    ) -> None:
        """Raises `PortraitmattingError` if a batch cannot be divided as the recipe says.

        Args:
            config: the recipe.
            model: the network that is trained; moved to the device of `precision`.
            precision: the device, and the dtype that a step computes in.
            processes: those that share each batch.
        """
        self.config, self.precision, self.processes = config, precision, processes
        self.indices = processes.share(config.batch_size)
        if len(self.indices) % config.grad_accum_steps:
            raise PortraitmattingError(
                f"{len(self.indices)} images per process cannot be accumulated in "
                f"{config.grad_accum_steps} equal parts: change batch_size or grad_accum_steps"
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
        """Whether the next step trains only the coarse stages."""
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
        """Continue from what `state` returned."""
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
        # In fp32 and bf16 its state is empty; a new scaler soon finds its scale.
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def train_step(self, samples: Sequence[Batch]) -> dict[str, float]:
        """One update of the weights and their average from this process's samples of the step.

        Returns the step's row of the log. Raises `NotFinite`, before the weights change, if a loss
        or gradient is not finite.
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
        # In fp16 infinite gradients are normal: the scaler skips the step.
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
        """Sums up the gradients of all samples, part by part, and returns the mean losses."""
        count = self.config.grad_accum_steps
        each = len(samples) // count
        sums: dict[str, Tensor] = {}
        for start in range(0, len(samples), each):
            seed_step(self.config.seed, self.step, self.indices[start])
            is_last = start + each == len(samples)
            with nullcontext() if is_last else self._unsynced():
                losses = self._losses(join(samples[start : start + each]))
                self.scaler.scale(losses["total"] / count).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / count
        return sums

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        image, alpha, trimap = (t.to(self.precision.device) for t in batch[:3])
        image = image.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            prediction, coarse = self.network(image, coarse=self.coarse)
        return matting_losses(prediction, coarse, alpha, trimap, self.config.losses)

    def _unsynced(self) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once per step, with the last part."""
        network = self.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
