"""Find, verify, read, convert and save checkpoints.

Ours are safetensors files whose metadata holds the network's configuration and how the weights are
meant to be used; the author's pickles are recognised by their keys and converted in memory.
`python -m portraitmatting checkpoint convert|info|verify` does the same for files.

`shelf` finds files without PyTorch; `files` reads and writes them. Names are imported on first use.
"""

from typing import TYPE_CHECKING

from portraitmatting.lazy import lazy_names

if TYPE_CHECKING:
    from portraitmatting.checkpoint.files import (
        AUTHOR,
        METADATA_KEY,
        STORAGE,
        CheckpointInfo,
        describe,
        load_model,
        load_network,
        metadata_text,
        parse_metadata,
        save_checkpoint,
        verify,
    )
    from portraitmatting.checkpoint.registry import (
        DEFAULT,
        FOLDER_VARIABLE,
        SUMS,
        checkpoints_folder,
        known_sums,
        locate,
        sha256,
    )

_HOME = {
    "AUTHOR": "files",
    "DEFAULT": "registry",
    "FOLDER_VARIABLE": "registry",
    "STORAGE": "files",
    "SUMS": "registry",
    "CheckpointInfo": "files",
    "checkpoints_folder": "registry",
    "METADATA_KEY": "files",
    "describe": "files",
    "known_sums": "registry",
    "load_model": "files",
    "load_network": "files",
    "locate": "registry",
    "metadata_text": "files",
    "parse_metadata": "files",
    "save_checkpoint": "files",
    "sha256": "registry",
    "verify": "files",
}

__all__ = [
    "AUTHOR",
    "DEFAULT",
    "FOLDER_VARIABLE",
    "METADATA_KEY",
    "STORAGE",
    "SUMS",
    "CheckpointInfo",
    "checkpoints_folder",
    "describe",
    "known_sums",
    "load_model",
    "load_network",
    "locate",
    "metadata_text",
    "parse_metadata",
    "save_checkpoint",
    "sha256",
    "verify",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
