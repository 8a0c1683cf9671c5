"""Portrait matting: a photo in, the person's alpha matte out, hair included.

    from portraitmatting import Predictor, load_model
    matte = Predictor(load_model()).predict(image)  # HWC RGB, uint8, uint16 or float

Names are imported on first use: the commands, which import this package too, must answer a wrong
call before PyTorch is loaded.
"""

from typing import TYPE_CHECKING

from portraitmatting.lazy import lazy_names

if TYPE_CHECKING:  # what type checkers and editors see
    from portraitmatting.checkpoint.load import load_model
    from portraitmatting.choices import PRESETS
    from portraitmatting.compositing import composite
    from portraitmatting.errors import PortraitmattingError
    from portraitmatting.foreground import estimate_foreground
    from portraitmatting.images.files import read_image, write_image
    from portraitmatting.matte import Matte
    from portraitmatting.modeling.model import ModelConfig, PortraitMatting
    from portraitmatting.predictor import Predictor

_MODULES = {
    "PRESETS": "choices",
    "Matte": "matte",
    "ModelConfig": "modeling.model",
    "PortraitMatting": "modeling.model",
    "PortraitmattingError": "errors",
    "Predictor": "predictor",
    "composite": "compositing",
    "estimate_foreground": "foreground",
    "load_model": "checkpoint.load",
    "read_image": "images.files",
    "write_image": "images.files",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
