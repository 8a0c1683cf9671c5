"""What the optimiser does: groups of parameters, the learning rate of a step, averaged weights."""

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.training.config import TrainConfig

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
"""Part to what its parameters' names begin with; a merging belongs to the stage it feeds."""


def part_of(name: str) -> str:
    """The part that a parameter of the network belongs to."""
    for part, pattern in PARTS.items():
        if re.match(pattern, name):
            return part
    raise PortraitmattingError(f"parameter {name} belongs to no part: add it to PARTS")


def freeze(model: nn.Module, lr_scale: Mapping[str, float]) -> None:
    """Let no gradient reach the parts whose scale is 0."""
    _check(lr_scale)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lr_scale.get(part_of(name), 1.0) > 0)


def parameter_groups(
    model: nn.Module, extra: nn.Module, lr_scale: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW groups, each with `part` and `lr_scale`, its factor on the schedule's rate.

    Vectors (norms, biases, slopes) and position tables do not decay. `extra` are the heads that
    only training has; they learn at the full rate. Frozen parameters are left out.
    """
    _check(lr_scale)
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


def _check(lr_scale: Mapping[str, float]) -> None:
    for part, scale in lr_scale.items():
        if part not in PARTS or scale < 0:
            raise PortraitmattingError(
                f"lr_scale.{part} = {scale}: expected {', '.join(PARTS)}, from 0"
            )


def learning_rate(config: TrainConfig, step: int) -> float:
    """A linear warmup, then the full rate, falling linearly to `min_lr` in the last `decay_steps`.

    The step after the last would have `min_lr`. Without `decay_steps`, half a cosine from the
    warmup to the end (Loshchilov and Hutter, ICLR 2017).
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
    """The averaged weights, which validation scores and export ships: `model`, in eval mode."""

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
