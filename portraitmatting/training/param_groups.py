"""The parts of the network that can learn at rates of their own, as the optimiser's groups."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from portraitmatting.errors import PortraitmattingError

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
