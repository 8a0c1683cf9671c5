"""Portrait video: files, cameras, and the generator that both are made of.

    reader | camera -> stream | live_stream -> writer | preview

Arrays are HxWx3 RGB uint8 everywhere but where OpenCV's windows and cameras begin. The names for
notebooks are imported on first use: commands must answer a wrong call before PyTorch is loaded.
"""

from portraitmatting.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
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
    },
)
