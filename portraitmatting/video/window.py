"""Where live images go: the preview window, whether there can be one, and a virtual camera."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import one_line
from portraitmatting.video.container import VideoError

_PROBE = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1)"
_HEIGHTS = 60, 4000
"""Of windows that are remembered, in pixels."""
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
    """OpenCV's wheel points Qt to a folder of fonts that it does not have, and Qt complains about
    it at length."""
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


class VirtualCamera:
    """Context manager; raises `VideoError` without pyvirtualcam, or without a driver for it.

    `rate` is announced to other programs; frames are sent as they come, never delayed to keep it.
    """

    def __init__(self, rate: float = 30) -> None:
        try:
            import pyvirtualcam
        except ImportError:
            raise VideoError(
                'a virtual camera needs pyvirtualcam: pip install -e ".[virtualcam]"'
            ) from None
        self._make = pyvirtualcam.Camera
        self._rate = rate
        self._camera: Any = None
        self.device = ""
        """Its name in other programs, once the first frame has been sent."""

    def __enter__(self) -> "VirtualCamera":
        return self

    def __exit__(self, *_: object) -> None:
        if self._camera is not None:
            self._camera.close()

    def send(self, image: NDArray[np.uint8]) -> None:
        """HxWx3 RGB uint8, all of one size."""
        if self._camera is None:
            height, width = image.shape[:2]
            try:
                self._camera = self._make(width, height, self._rate)
            except RuntimeError as error:
                raise VideoError(
                    f"no virtual camera ({one_line(str(error))}): install OBS Studio, "
                    "or on Linux v4l2loopback (sudo modprobe v4l2loopback exclusive_caps=1)"
                ) from None
            self.device = self._camera.device
        self._camera.send(np.ascontiguousarray(image))
