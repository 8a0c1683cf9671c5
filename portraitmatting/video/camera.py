"""Cameras: a real one, read by a thread of its own so that each frame is the newest, and a
virtual one for other programs."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import one_line
from portraitmatting.video.ffmpeg import VideoError, is_url
from portraitmatting.video.reader import Frame

T = TypeVar("T")


class Newest(Generic[T]):
    """A slot for one item: a newer one replaces one that was not taken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self._error: BaseException | None = None
        self.dropped = 0
        """Items that were replaced before they were taken."""

    def put(self, item: T) -> None:
        """Never waits."""
        with self._changed:
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify()

    def close(self, error: BaseException | None = None) -> None:
        """Nothing will be put any more, because of `error` if one is given."""
        with self._changed:
            self._closed, self._error = True, self._error or error
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T | None:
        """Wait for the newest item; None once closed. Raises the error that the slot was closed
        with, and TimeoutError after `timeout` seconds without an item."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._item is not None or self._closed, timeout):
                raise TimeoutError
            item, self._item = self._item, None
            if item is None and self._error is not None:
                raise self._error
            return item


_PROBED = 6
"""How many camera indices are tried when the one asked for does not work."""
_FIRST_FRAME_SECONDS = 10.0
_LOST_SECONDS = 3.0
"""A camera that gives no frame for so long counts as lost."""
_MILLISECOND = Fraction(1, 1000)

# FFmpeg inside OpenCV would print lines of its own before our error; OpenCV reads this once, at the
# first use.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Camera:
    """Context manager over a camera (index "0", "1" or device "/dev/video0"), a stream's URL or a
    video file, opened by OpenCV.

    Iterate to get `Frame`s. A camera or a stream gives its newest frame each time, with the time at
    which it came; older ones that were not taken are counted in `dropped`. A file, or a URL with an
    end, gives every frame, at its own rate. The iteration ends with the file, or when the camera
    gives no more frames, which sets `lost`. Raises `VideoError` for a camera that is missing, busy
    or gives no frame, with the indices that do work.

    Args:
        source: Index, device, URL or file.
        width: Asked of a camera, which may give another size.
        height: Likewise.
        rate: Likewise, in frames per second.
    """

    def __init__(
        self,
        source: str,
        width: int | None = None,
        height: int | None = None,
        rate: float = 30,
    ) -> None:
        self._source = source
        self.lost = False
        self._slot: Newest[Frame] = Newest()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = self._read_at = time.monotonic()
        self._capture = _open(source)
        # Servers send a file as fast as they can: newest frames would skip most of it.
        self.is_file = Path(source).is_file() or (
            is_url(source) and self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        )
        if not self.is_file and not is_url(source):
            # USB carries only a few large uncompressed images per second. The format comes first:
            # it determines which sizes and rates there are.
            wanted = {
                cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*"MJPG"),
                cv2.CAP_PROP_FRAME_WIDTH: width,
                cv2.CAP_PROP_FRAME_HEIGHT: height,
                cv2.CAP_PROP_FPS: rate,
            }
            for setting, value in wanted.items():
                if value is not None:
                    self._capture.set(setting, value)

    @property
    def dropped(self) -> int:
        """Frames that were replaced before they were taken."""
        return self._slot.dropped

    def __enter__(self) -> "Camera":
        if not self.is_file:
            self._thread = threading.Thread(target=self._read_on, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is None:
            self._capture.release()
        else:  # which releases the camera; a driver that hangs must not hang the program
            self._thread.join(_LOST_SECONDS)

    def age(self, frame: Frame) -> float:
        """Seconds since `frame`, the last one of this camera, was read."""
        read_at = self._read_at if self.is_file else self._began + frame.seconds
        return time.monotonic() - read_at

    def __iter__(self) -> Iterator[Frame]:
        return self._file_frames() if self.is_file else self._newest_frames()

    def _file_frames(self) -> Iterator[Frame]:
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else 25.0
        due = time.monotonic()
        index = 0
        while (bgr := _read(self._capture)) is not None:
            self._read_at = time.monotonic()
            yield self._frame(bgr, index / rate)
            index += 1
            due = max(due + 1 / rate, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        if not index:
            raise VideoError(f"{one_line(self._source)}: no frame in it can be decoded")

    def _newest_frames(self) -> Iterator[Frame]:
        patience = _FIRST_FRAME_SECONDS
        while True:
            try:
                frame = self._slot.get(patience)
            except TimeoutError:
                frame = None
            if frame is None:
                if patience == _FIRST_FRAME_SECONDS:
                    raise VideoError(_no_frame(self._source))
                self.lost = True
                return
            yield frame
            patience = _LOST_SECONDS

    def _read_on(self) -> None:
        last, patience = time.monotonic(), _FIRST_FRAME_SECONDS
        try:
            while not self._stop.is_set():
                bgr = _read(self._capture)
                now = time.monotonic()
                if bgr is not None:
                    last, patience = now, _LOST_SECONDS
                    self._slot.put(self._frame(bgr, now - self._began))
                elif now - last > patience:
                    break
                else:  # a single bad frame is common with USB
                    self._stop.wait(0.01)
        except BaseException as error:
            self._slot.close(error)
        finally:
            self._capture.release()
            self._slot.close()

    def _frame(self, bgr: cv2.typing.MatLike, seconds: float) -> Frame:
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        return Frame(rgb, int(seconds / _MILLISECOND), _MILLISECOND)  # type: ignore[arg-type]


def working_cameras(skip: str = "") -> list[int]:
    """The camera indices from 0 to 5 that give a frame, `skip` left out; takes a while."""
    working = []
    for index in range(_PROBED):
        if str(index) == skip:
            continue
        with _quiet_opencv():
            capture = cv2.VideoCapture(index)
            if capture.isOpened() and _read(capture) is not None:
                working.append(index)
            capture.release()
    return working


def _open(source: str) -> cv2.VideoCapture:
    if source.isdecimal() and len(source) > 9:
        raise VideoError(f"camera {source[:20]}: no such index: cameras are counted from 0")
    with _quiet_opencv():
        capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if capture.isOpened():
        return capture
    if source.isdecimal() or source.startswith("/dev/"):
        raise VideoError(f"camera {one_line(source)} cannot be opened: {_advice(source)}")
    if is_url(source):
        problem = "no stream that OpenCV can open: check the address and that something sends there"
    elif Path(source).exists():
        problem = "no video that OpenCV can play: convert it to MP4"
    else:
        problem = "no such file: give a camera index such as 0, a video file or a URL"
    raise VideoError(f"{one_line(source)}: {problem}")


def _no_frame(source: str) -> str:
    if is_url(source):
        return f"{one_line(source)} gives no frame: check that something sends there"
    return (
        f"camera {one_line(source)} gives no frame: close other programs that use it, or "
        f"{_advice(source)}"
    )


def _advice(source: str) -> str:
    working = working_cameras(skip=source)
    if working:
        return f"these indices work: {', '.join(map(str, working))}"
    return "no other camera works either; give a video file instead"


def _read(capture: cv2.VideoCapture) -> cv2.typing.MatLike | None:
    ok, bgr = capture.read()
    return bgr if ok else None


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV prints several warnings for every camera that does not exist."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


class VirtualCamera:
    """Context manager over a camera for other programs; raises `VideoError` without pyvirtualcam or
    a driver.

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
