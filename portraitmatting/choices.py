"""Named points between fast and sharp, the same for images, videos and cameras.

The weights and everything after the network stay as they are; a preset is a working size. The
detail that the network does not see at a smaller one is taken from the image (`refine`).
"""

import copy
from typing import TYPE_CHECKING

from portraitmatting.errors import PortraitmattingError
from portraitmatting.transforms import MULTIPLE

if TYPE_CHECKING:
    from portraitmatting.predictor import Predictor

PRESETS = {"fast": 0.6, "balanced": 0.8, "quality": 1.0}
"""Preset to its part of the short side that the checkpoint works best at."""


def check_preset(preset: str, *others: str) -> None:
    """Raise PortraitmattingError unless `preset` is one of `others` or of `PRESETS`."""
    known = [*others, *PRESETS]
    if preset not in known:
        raise PortraitmattingError(f"preset {preset!r}: use {', '.join(known)}")


def preset_short_side(predictor: "Predictor", preset: str) -> int:
    """The working short side of a preset, a multiple of 32, for the predictor's own at "quality".

    Raises PortraitmattingError for an unknown preset.
    """
    check_preset(preset)
    sides = predictor.short_side * PRESETS[preset] / MULTIPLE
    return max(1, round(sides)) * MULTIPLE


def at_short_side(predictor: "Predictor", short_side: int) -> "Predictor":
    """The same network at another working size; `predictor` stays as it is."""
    if predictor.short_side == short_side:
        return predictor
    twin = copy.copy(predictor)
    twin.short_side = short_side
    return twin


def at_preset(predictor: "Predictor", preset: str) -> "Predictor":
    """The same network at a preset of the predictor's working size; errors as above."""
    return at_short_side(predictor, preset_short_side(predictor, preset))
