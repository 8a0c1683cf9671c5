"""Portrait video: files, cameras, and the generator that both are made of.

    reader | camera -> stream (predictor -> temporal) -> foreground, background -> writer | preview

Arrays are HxWx3 RGB uint8 everywhere here, except where OpenCV's windows and cameras begin.
"""

from portraitmatting.video.backgrounds import VideoBackground, parse_video_background
from portraitmatting.video.convert import matte_video
from portraitmatting.video.presets import PRESETS, AutoSize
from portraitmatting.video.reader import Frame, VideoError, VideoReader
from portraitmatting.video.stream import MattedFrame, matte_stream
from portraitmatting.video.writer import FORMATS, VideoWriter

__all__ = [
    "FORMATS",
    "PRESETS",
    "AutoSize",
    "Frame",
    "MattedFrame",
    "VideoBackground",
    "VideoError",
    "VideoReader",
    "VideoWriter",
    "matte_stream",
    "matte_video",
    "parse_video_background",
]
