"""The moving average of the weights, which is what validation judges and export ships."""

import copy

import torch

from portraitmatting.modeling.model import PortraitMatting


class MovingAverage:
    """`model` is a copy of the given network, in eval mode, whose weights trail its."""

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
