"""A working size that follows a target rate."""

from portraitmatting.choices import MULTIPLE, preset_short_side
from portraitmatting.errors import PortraitmattingError
from portraitmatting.predictor import Predictor

_PATIENCE = 5
"""Frames that must agree before the size changes."""
_SPARE = 0.85
"""A larger size must promise to leave this much of the time unused, or sizes would swing."""


class AutoSize:
    """Chooses, frame by frame, the largest working size between the presets "fast" and "quality"
    that keeps `target` frames per second.

    Tell it what the network took and what the rest of the frame took; `short_side` is what to use
    next. The network's time is taken to grow with the area. It never goes below "fast": a slow
    image is of more use than a wrong matte.
    """

    def __init__(self, predictor: Predictor, target: float = 24) -> None:
        if not target > 0:
            raise PortraitmattingError(f"target rate {target:g}: use more than 0 frames per second")
        low, high = (preset_short_side(predictor.short_side, name) for name in ("fast", "quality"))
        self._sizes = range(low, high + 1, MULTIPLE)
        self._budget = 1 / target
        self.short_side = preset_short_side(predictor.short_side, "balanced")
        self._network: list[float] = []
        self._rest = 0.0

    def rest_took(self, seconds: float) -> None:
        """What a frame cost besides the network, waiting for the camera not counted."""
        self._rest += 0.2 * (seconds - self._rest)

    def network_took(self, seconds: float) -> None:
        """What the network took for a frame at the present size; may change `short_side`."""
        self._network.append(seconds)
        if len(self._network) <= _PATIENCE:
            return
        # The first frame at a new size pays for warming up. The median ignores a hiccup.
        typical = sorted(self._network[1:])[_PATIENCE // 2]
        self._network.clear()
        room = self._budget - self._rest
        fitting = [size for size in self._sizes if self._promise(typical, size) <= room]
        best = max(fitting, default=self._sizes[0])
        if best > self.short_side and self._promise(typical, best) > _SPARE * room:
            best = max(self.short_side, best - MULTIPLE)
        self.short_side = best

    def _promise(self, seconds: float, size: int) -> float:
        return seconds * (size / self.short_side) ** 2
