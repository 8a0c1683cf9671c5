"""Portrait matting: a photo in, the person's alpha matte out, hair included.

    from portraitmatting import Predictor, load_model
    matte = Predictor(load_model()).predict(image)  # HWC RGB, uint8, uint16 or float

Names are imported on first use, so that `import portraitmatting` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portraitmatting.checkpoint import load_model
    from portraitmatting.composite import composite
    from portraitmatting.errors import PortraitmattingError
    from portraitmatting.foreground import estimate_foreground
    from portraitmatting.images import read_image, write_image
    from portraitmatting.model import ModelConfig, PortraitMatting
    from portraitmatting.predictor import Matte, Predictor
    from portraitmatting.presets import PRESETS

_HOME = {
    "ModelConfig": "model",
    "PortraitMatting": "model",
    "load_model": "checkpoint",
    "Matte": "predictor",
    "Predictor": "predictor",
    "PRESETS": "presets",
    "PortraitmattingError": "errors",
    "composite": "composite",
    "estimate_foreground": "foreground",
    "read_image": "images",
    "write_image": "images",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
