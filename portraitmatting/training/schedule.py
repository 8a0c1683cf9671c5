"""What changes with the step: learning rate, working size, decay of the average."""

import math

import numpy as np

from portraitmatting.training.config import TrainConfig

_ASPECTS = ((1, 1), (1, 1), (3, 4), (4, 3))
"""Width to height of a step's images; half of the steps are square."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to the floor (Loshchilov and Hutter, ICLR 2017)."""
    warm = max(1, round(config.warm_up * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, config.steps - 1 - warm)
    height = config.floor + (1 - config.floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.learning_rate * height


def working_size(config: TrainConfig, step: int) -> tuple[int, int]:
    """(height, width) of a step's images, multiples of 32, short side as `config.sizes` says."""
    short = next(side for start, side in reversed(config.sizes) if step >= start * config.steps)
    width, height = _ASPECTS[np.random.default_rng((config.seed, step)).integers(len(_ASPECTS))]
    unit = short / min(width, height)
    return round(height * unit / 32) * 32, round(width * unit / 32) * 32


def ema_decay(config: TrainConfig, step: int) -> float:
    """The average's decay: at first (1 + step) / (10 + step), which soon forgets the start."""
    return min(config.ema, (1 + step) / (10 + step))
