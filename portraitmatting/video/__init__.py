"""Portrait video: files, cameras, and the generator that both are made of.

    reader | camera -> stream (predictor -> smoothing) -> foreground, background -> writer | preview

Arrays are HxWx3 RGB uint8 everywhere here, except where OpenCV's windows and cameras begin. Names
are imported on first use, so that a mistake in a call is found before PyTorch is loaded.
"""

from typing import TYPE_CHECKING

from portraitmatting.lazy import lazy_names

if TYPE_CHECKING:
    from portraitmatting.video.backgrounds import VideoBackground, parse_video_background
    from portraitmatting.video.camera import Camera
    from portraitmatting.video.ffmpeg import VideoError
    from portraitmatting.video.live import run_live
    from portraitmatting.video.live_stream import AutoSize
    from portraitmatting.video.reader import Frame, ImageSequence, VideoReader
    from portraitmatting.video.stream import MattedFrame, matte_stream, matte_video
    from portraitmatting.video.writer import FORMATS, VideoWriter

_HOME = {
    "FORMATS": "writer",
    "AutoSize": "live_stream",
    "Camera": "camera",
    "Frame": "reader",
    "ImageSequence": "reader",
    "MattedFrame": "stream",
    "VideoBackground": "backgrounds",
    "VideoError": "ffmpeg",
    "VideoReader": "reader",
    "VideoWriter": "writer",
    "matte_stream": "stream",
    "matte_video": "stream",
    "parse_video_background": "backgrounds",
    "run_live": "live",
}

__all__ = [
    "FORMATS",
    "AutoSize",
    "Camera",
    "Frame",
    "ImageSequence",
    "MattedFrame",
    "VideoBackground",
    "VideoError",
    "VideoReader",
    "VideoWriter",
    "matte_stream",
    "matte_video",
    "parse_video_background",
    "run_live",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
