"""Portrait matting: a photo in, the person's alpha matte out, hair included.

    from portraitmatting import Predictor, load_model
    matte = Predictor(load_model()).predict(image)  # HWC RGB, uint8, uint16 or float

Names are imported on first use, so that `import portraitmatting` is instant.
"""

from typing import TYPE_CHECKING

from portraitmatting.lazy import lazy_names

if TYPE_CHECKING:
    from portraitmatting.checkpoint.load import load_model
    from portraitmatting.choices import PRESETS
    from portraitmatting.compositing import composite
    from portraitmatting.errors import PortraitmattingError
    from portraitmatting.foreground import estimate_foreground
    from portraitmatting.images.files import read_image, write_image
    from portraitmatting.matte import Matte
    from portraitmatting.modeling.model import ModelConfig, PortraitMatting
    from portraitmatting.predictor import Predictor

_HOME = {
    "ModelConfig": "modeling.model",
    "PortraitMatting": "modeling.model",
    "load_model": "checkpoint.load",
    "Matte": "matte",
    "Predictor": "predictor",
    "PRESETS": "choices",
    "PortraitmattingError": "errors",
    "composite": "compositing",
    "estimate_foreground": "foreground",
    "read_image": "images.files",
    "write_image": "images.files",
}

__all__ = [
    "PRESETS",
    "Matte",
    "ModelConfig",
    "PortraitMatting",
    "PortraitmattingError",
    "Predictor",
    "composite",
    "estimate_foreground",
    "load_model",
    "read_image",
    "write_image",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
