"""The live preview: its window, whether there can be one, what it shows, and what its keys do."""

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background, Blur
from portraitmatting.video.backgrounds import MovingBackground
from portraitmatting.video.ffmpeg import VideoError

if TYPE_CHECKING:  # it needs PyTorch, and a missing screen is reported before that is loaded
    from portraitmatting.video.stream import MattedFrame

_PROBE = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1)"
_HEIGHTS = 60, 4000
"""Lowest and highest height of a window that is remembered, in pixels."""
_FONTS = Path("/usr/share/fonts")
_HEADLESS = (
    "no window: this OpenCV is built without them; pip uninstall opencv-python-headless "
    "and pip install opencv-python, or write to a file with -o"
)


def require_display() -> None:
    """Raise `VideoError` if OpenCV cannot open a window here.

    Tried in a process of its own: without a screen Qt does not raise, it ends the process.
    """
    _quiet_qt()
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if probe.returncode == 0:
        return
    if "not implemented" in probe.stderr:
        raise VideoError(_HEADLESS)
    raise VideoError(
        "no window: there is no screen to open it on (over ssh, try ssh -X); "
        "write to a file with -o, or use --no-window with --virtual-camera"
    )


def _quiet_qt() -> None:
    """OpenCV's wheel points Qt to a folder of fonts that does not exist, and Qt prints many
    warnings about that."""
    if not Path(os.environ.get("QT_QPA_FONTDIR", "/")).is_dir() and _FONTS.is_dir():
        os.environ["QT_QPA_FONTDIR"] = str(_FONTS)


class Window:
    """Context manager: a window that can be resized, keeping the image's proportions. Its height is
    remembered for the next time.

    To be used from the main thread, after `require_display`.
    """

    def __init__(self, title: str = "portraitmatting") -> None:
        self._title = title
        self._shape: tuple[int, ...] = ()
        self._height = _remembered_height()

    def __enter__(self) -> "Window":
        _quiet_qt()
        flags = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
        try:
            cv2.namedWindow(self._title, flags)
        except cv2.error:
            raise VideoError(_HEADLESS) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._visible():
            _remember_height(self._height)
            cv2.destroyWindow(self._title)
        cv2.waitKey(1)

    def show(self, image: NDArray[np.uint8]) -> None:
        """HxWx3 RGB uint8; the window keeps its height, and takes the image's proportions when
        these change."""
        height, width = image.shape[:2]
        if self._shape:
            self._height = cv2.getWindowImageRect(self._title)[3] or self._height
        if image.shape != self._shape:
            self._shape = image.shape
            self._height = self._height or height
            size = max(1, round(self._height * width / height)), self._height
            cv2.resizeWindow(self._title, *size)
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def key(self, milliseconds: int = 1) -> int | None:
        """The key pressed within that time, -1 for none; None once the window has been closed."""
        code = cv2.waitKey(milliseconds)
        if not self._visible():
            return None
        return code if code < 0 else code & 0xFF

    def _visible(self) -> bool:
        try:
            return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:
            return False


def _state_file() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(base or Path.home() / ".local/state") / "portraitmatting" / "window-height"


def _remembered_height() -> int:
    """In pixels; 0 if there is none."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        height = int(_state_file().read_text())
        return height if _HEIGHTS[0] <= height <= _HEIGHTS[1] else 0
    return 0


def _remember_height(height: int) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        _state_file().parent.mkdir(parents=True, exist_ok=True)
        _state_file().write_text(str(height))


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
    """The state that keys change. It is itself a `MovingBackground`: the one that is chosen."""

    backgrounds: list[tuple[str, Background]]
    """Name and background, at least one; key `n` goes through them."""
    chosen: int = 0
    blur_strength: float = 0.03
    """Of the background named "blur", as in `Blur`."""
    alpha_view: bool = False
    side_by_side: bool = False
    mirrored: bool = False
    """In the window only: in results, text must stay readable."""
    paused: bool = False
    overlay: bool = True
    help: bool = False

    @property
    def background_name(self) -> str:
        """For the overlay."""
        name = self.backgrounds[self.chosen][0]
        return f"blur {self.blur_strength:.3f}" if name == "blur" else name

    def at(self, seconds: float) -> Background:
        """The background that is chosen, as it is at this moment."""
        name, background = self.backgrounds[self.chosen]
        if name == "blur":
            return Blur(self.blur_strength)
        return background.at(seconds) if isinstance(background, MovingBackground) else background

    def press(self, key: int) -> Action | None:
        """Take a key's code (-1 for none). What a key does beyond this state is returned."""
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

    def render(self, matted: "MattedFrame") -> NDArray[np.uint8]:
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
        corner = margin, row * step
        cv2.putText(image, line, corner, *style, (255, 255, 255), thickness, cv2.LINE_AA)
    return image


def help_lines() -> list[str]:
    """The keys, for `with_text`."""
    return [f"{key}: {what}" for key, what in KEYS.items()]
