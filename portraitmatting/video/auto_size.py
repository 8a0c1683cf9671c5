"""A working size that follows a target rate."""

from portraitmatting.choices import MULTIPLE, preset_short_side
from portraitmatting.errors import PortraitmattingError
from portraitmatting.predictor import Predictor

_FRAMES_PER_MATTE = 3
"""Displayed frames for which one pass of the network must do: mattes are carried in between."""
_PATIENCE = 5
"""Passes before the size changes."""
_SPARE = 0.85
"""A larger size must promise to leave this much of the time unused, or sizes would swing."""
_HARDLY_SLOWER = 1.1
"""A size that is at most so many times as slow as the smallest one is taken in any case."""


class AutoSize:
    """Chooses, pass by pass, the largest working size between the presets "live" and "quality" at
    which the network alone gives a matte for every third of `target` frames per second.

    Tell it what the network took; `short_side` is what to use next. The network's time is taken as
    a constant and a part that grows with the area, both measured as sizes change; until then all of
    it is taken to grow.
    """

    def __init__(self, predictor: Predictor, target: float = 24) -> None:
        if not target > 0:
            raise PortraitmattingError(f"target rate {target:g}: use more than 0 frames per second")
        own = predictor.short_side
        low, high = (preset_short_side(own, name) for name in ("live", "quality"))
        self._sizes = range(low, high + 1, MULTIPLE)
        self._budget = _FRAMES_PER_MATTE / target
        self.short_side = preset_short_side(own, "fast")
        self._seconds: list[float] = []
        self._slope: float | None = None
        """Seconds per area (short side squared), once two sizes have been measured."""
        self._last: tuple[int, float] | None = None
        """The last size and what it took."""

    def network_took(self, seconds: float) -> None:
        """What the network alone took for a frame at the present size; may change `short_side`."""
        self._seconds.append(seconds)
        if len(self._seconds) <= _PATIENCE:
            return
        # The first frame at a new size pays for warming up. The median ignores a hiccup.
        typical = sorted(self._seconds[1:])[_PATIENCE // 2]
        self._seconds.clear()
        size = self.short_side
        if self._last is not None and self._last[0] != size:
            slope = (typical - self._last[1]) / (size**2 - self._last[0] ** 2)
            self._slope = min(max(slope, 0.0), typical / size**2)
        self._last = size, typical
        self.short_side = self._best(typical)

    def _best(self, typical: float) -> int:
        slope = typical / self.short_side**2 if self._slope is None else self._slope

        def promise(size: int) -> float:
            return typical + slope * (size**2 - self.short_side**2)

        room = max(self._budget, _HARDLY_SLOWER * promise(self._sizes[0]))
        best = max((size for size in self._sizes if promise(size) <= room), default=self._sizes[0])
        if best > self.short_side and promise(best) > _SPARE * room:
            return max(self.short_side, best - MULTIPLE)
        return best
