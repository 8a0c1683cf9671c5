"""What changes with the step: learning rate, working size, decay of the average."""

import math

import numpy as np

from portraitmatting.training.config import TrainConfig

_ASPECTS = ((1, 1), (1, 1), (3, 4), (4, 3))
"""Width to height of a step's images; half of the steps are square."""


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


def working_size(config: TrainConfig, step: int) -> tuple[int, int]:
    """(height, width) of a step's images, multiples of 32, whose short side is one of `sizes`."""
    rng = np.random.default_rng((config.seed, step))
    width, height = _ASPECTS[rng.integers(len(_ASPECTS))]
    sides = next(entry[1:] for entry in reversed(config.sizes) if step >= entry[0])
    unit = sides[rng.integers(len(sides))] / min(width, height)
    return round(height * unit / 32) * 32, round(width * unit / 32) * 32


def ema_decay(config: TrainConfig, step: int) -> float:
    """The average's decay: at first (1 + step) / (10 + step), which soon forgets the start."""
    return min(config.ema, (1 + step) / (10 + step))
