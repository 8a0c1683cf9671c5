"""Checkpoint files: `registry` finds, `format` reads and writes, `load` makes networks of them.

Names are imported on first use: `registry` serves calls that must not wait for PyTorch.
"""

from portraitmatting.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AUTHOR": "format",
        "DEFAULT": "registry",
        "FOLDER_VARIABLE": "registry",
        "METADATA_KEY": "format",
        "STORAGE": "format",
        "SUMS": "registry",
        "CheckpointInfo": "format",
        "checkpoints_folder": "registry",
        "describe": "load",
        "known_sums": "registry",
        "load_model": "load",
        "load_network": "load",
        "locate": "registry",
        "metadata_text": "format",
        "parse_metadata": "format",
        "save_checkpoint": "format",
        "sha256": "registry",
        "verify": "load",
    },
)
