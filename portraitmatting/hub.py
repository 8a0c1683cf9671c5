"""The Hugging Face Hub: `from_pretrained`, `save_pretrained`, `push_to_hub`.

The hub's `model.safetensors` is a checkpoint of this package, whose metadata holds everything that
loading needs. `config.json` repeats it for the hub's pages and is never read.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from portraitmatting.checkpoint.format import (
    CheckpointInfo,
    read_checkpoint,
    save_checkpoint,
    smallest_exact,
)
from portraitmatting.device import choose_device, limit_threads
from portraitmatting.errors import CheckpointError

_USE = """```python
from portraitmatting import PortraitMatting, Predictor

predictor = Predictor(PortraitMatting.from_pretrained("this folder, or its name on the hub"))
```"""


class OnHub(ModelHubMixin, library_name="portraitmatting"):
    """What `PortraitMatting` inherits to be loaded from and saved to the hub.

    `from_pretrained(name_or_folder, device=None)` loads a repository's or folder's
    `model.safetensors` with the checks of `load_network`. `save_pretrained(folder)` writes that
    file, `config.json` and a model card, and raises `CheckpointError` for a network whose
    `checkpoint` is None.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        model: Any = self
        info = _checkpoint_info(model)
        path = save_directory / SAFETENSORS_SINGLE_FILE
        save_checkpoint(path, model, info, smallest_exact(model))
        description = asdict(model.config) | {"checkpoint": asdict(info)}
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (save_directory / CONFIG_NAME).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, device: Any = None, config: Any = None, **download: Any
    ) -> Any:
        if os.path.isdir(model_id):
            path = Path(model_id, SAFETENSORS_SINGLE_FILE)
        else:
            path = Path(hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, **download))
        network: Any = cls  # always PortraitMatting
        with limit_threads(1):  # the process may still fork afterwards
            model = network.from_state(*read_checkpoint(path))
            return model.to(choose_device(str(device or "cpu")))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The checkpoint's metadata as the model card, the README of a repository on the hub."""
        info = asdict(_checkpoint_info(self))
        info |= info.pop("facts")
        rows = "".join(f"| {name.replace('_', ' ')} | {value} |\n" for name, value in info.items())
        data = ModelCardData(
            license="other",
            library_name="portraitmatting",
            pipeline_tag="image-segmentation",
            tags=["portrait-matting", "image-matting"],
        )
        table = f"| | |\n|---|---|\n{rows}"
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# Portraitmatting\n\n{table}\n{_USE}\n")


def _checkpoint_info(model: Any) -> CheckpointInfo:
    info: CheckpointInfo | None = model.checkpoint
    if info is None:
        raise CheckpointError(
            "nothing is known of these weights: set model.checkpoint to a CheckpointInfo, with "
            "their origin, licence and working_short_side, before they are saved"
        )
    return info
