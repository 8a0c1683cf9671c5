"""The result as a camera that meeting programs can choose."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import one_line
from portraitmatting.video.container import VideoError


class VirtualCamera:
    """Context manager; raises `VideoError` without pyvirtualcam, or without a driver for it.

    `rate` is what programs are told; frames are sent as they come, never delayed to keep it.
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
