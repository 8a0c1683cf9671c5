"""What the live preview shows, and what its keys do; no window needed."""

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background, blur
from portraitmatting.video.backgrounds import MovingBackground
from portraitmatting.video.stream import MattedFrame

Action = Literal["quit", "snapshot", "record"]

KEYS = {
    "h": "this help",
    "n": "next background",
    "[ ]": "blur the scene less, more",
    "a": "alpha matte",
    "s": "side by side with the camera",
    "m": "mirror the window",
    "space": "pause",
    "p": "snapshot as transparent PNG",
    "r": "start and stop recording",
    "o": "overlay",
    "q": "quit (or Esc)",
}
_ESCAPE = 27
_ACTIONS: dict[int, Action] = {
    ord("q"): "quit",
    _ESCAPE: "quit",
    ord("p"): "snapshot",
    ord("r"): "record",
}
_BLUR_STEP = 1.4
_BLUR_LIMITS = 0.005, 0.25


@dataclass
class Controls:
    """The state that keys change. It is itself a `MovingBackground`: the one chosen at the time."""

    backgrounds: list[tuple[str, Background]]
    """Name and background, at least one; key `n` goes through them."""
    chosen: int = 0
    blur_strength: float = 0.03
    """Of the background named "blur", as in `compositing.blur`."""
    alpha_view: bool = False
    side_by_side: bool = False
    mirrored: bool = False
    """In the window only: others see text the right way round."""
    paused: bool = False
    overlay: bool = True
    help: bool = False
    _blur: tuple[float, Background] | None = field(default=None, repr=False)

    @property
    def background_name(self) -> str:
        """For the overlay."""
        name = self.backgrounds[self.chosen][0]
        return f"blur {self.blur_strength:.3f}" if name == "blur" else name

    def __call__(self, image: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        name, background = self.backgrounds[self.chosen]
        if name == "blur":
            if self._blur is None or self._blur[0] != self.blur_strength:
                self._blur = self.blur_strength, blur(self.blur_strength)
            background = self._blur[1]
        return background(image, alpha)

    def seek(self, seconds: float) -> None:
        """Hand the time on to a background that moves."""
        background = self.backgrounds[self.chosen][1]
        if isinstance(background, MovingBackground):
            background.seek(seconds)

    def press(self, key: int) -> Action | None:
        """Take a key's code (-1 for none); what is beyond this state comes back as an action."""
        switches = {
            "h": "help",
            "a": "alpha_view",
            "s": "side_by_side",
            "m": "mirrored",
            " ": "paused",
            "o": "overlay",
        }
        name = chr(key).lower() if 0 <= key < 128 else ""
        if name in switches:
            setattr(self, switches[name], not getattr(self, switches[name]))
        elif name == "n":
            self.chosen = (self.chosen + 1) % len(self.backgrounds)
        elif name and name in "[]":
            self._blur_by(_BLUR_STEP if name == "]" else 1 / _BLUR_STEP)
        return _ACTIONS.get(ord(name)) if name else None

    def _blur_by(self, factor: float) -> None:
        names = [name for name, _ in self.backgrounds]
        if "blur" not in names:
            return
        if self.chosen == names.index("blur"):
            self.blur_strength = float(np.clip(self.blur_strength * factor, *_BLUR_LIMITS))
        self.chosen = names.index("blur")

    def render(self, matted: MattedFrame) -> NDArray[np.uint8]:
        """The image for the window, HxWx3 RGB uint8, twice as wide side by side."""
        if self.alpha_view:
            grey = np.rint(matted.alpha * 255).astype(np.uint8)
            view = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            view = matted.composite()
        views = [matted.image, view] if self.side_by_side else [view]
        return np.hstack([cv2.flip(part, 1) if self.mirrored else part for part in views])


def with_text(image: NDArray[np.uint8], lines: list[str]) -> NDArray[np.uint8]:
    """A copy of HxWx3 uint8 with lines of text on a darkened corner, readable on anything."""
    if not lines:
        return image
    image = image.copy()
    # Letters of about 1/32 of the height, within what is readable.
    scale = float(np.clip(image.shape[0] / 32 / 22, 0.4, 1.2))
    style = cv2.FONT_HERSHEY_SIMPLEX, scale
    thickness = 1 if scale < 0.8 else 2
    step, margin = round(30 * scale), round(12 * scale)
    width = max(cv2.getTextSize(line, *style, thickness)[0][0] for line in lines)
    box = image[: step * len(lines) + 2 * margin, : width + 2 * margin]
    box[:] = box // 3
    for row, line in enumerate(lines, 1):
        place = margin, row * step
        cv2.putText(image, line, place, *style, (255, 255, 255), thickness, cv2.LINE_AA)
    return image


def help_lines() -> list[str]:
    """The keys, for `with_text`."""
    return [f"{key}: {what}" for key, what in KEYS.items()]
