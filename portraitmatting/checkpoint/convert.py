"""Any checkpoint file under our names: the author's keys are translated, a pure dict to dict."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from portraitmatting.checkpoint.format import (
    METADATA_KEY,
    CheckpointInfo,
    dequantise_int8,
    parse_metadata,
    read_state,
)
from portraitmatting.errors import CheckpointError

AUTHOR = CheckpointInfo(
    origin="Portraitmatting (Qinglin Liu, 2023), the author's own checkpoint",
    licence="academic use only",
    working_short_side=768,
)
"""What is known of the author's files, which say nothing of themselves."""

_RENAMED = [
    (r"start_conv\.(\d)", r"encoder.stem.\1"),
    (r"trans\.patch_embed", r"encoder.patch_embed"),
    (r"trans\.layers\.(\d)\.blocks", r"encoder.stages.\1"),
    (r"trans\.layers\.(\d)\.downsample", r"encoder.merges.\1"),
    (r"trans\.norm(\d)", r"encoder.norms.\1"),
    (r"ppm\.comp", r"ppm.reduce"),
    (r"ppm\.features", r"ppm.branches"),
    (r"tran(\d)\.blocks", r"decoder.fusions.\1.blocks"),
    (r"convtri", r"trimap_head.layers"),
    (r"conv5", r"alpha_head.coarse"),
    (r"convo", r"alpha_head.fine"),
]
_FUSION = re.compile(r"conv([1-4])\.0\.")
_DROPPED = re.compile(r".*\.relative_position_index")  # follows from the window's size alone


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, CheckpointInfo]:
    """A file of ours, or the author's in any wrapping: its weights under our names, the network's
    configuration (None: the published one), and what is known of them.

    Raises `CheckpointError`, which names the file; that the weights fit the network is not checked.
    """
    state, texts = read_state(path)
    text = texts.get(METADATA_KEY)
    try:
        state = dequantise_int8(state)
        if is_author_state(state):
            state = from_author_keys(state)
        elif text is None:
            raise CheckpointError(
                f"not a Portraitmatting checkpoint: {len(state)} tensors named "
                f"{', '.join(map(repr, list(state)[:3]))}, ..."
            )
        return (state, *(parse_metadata(text) if text is not None else (None, AUTHOR)))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def is_author_state(state: dict[str, Tensor]) -> bool:
    """Whether the keys of `state` are the author's."""
    return any(key.startswith("start_conv.") for key in state)


def from_author_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The author's state dict under our names; every key is translated or dropped on purpose.

    Raises `CheckpointError` for a key that is neither.
    """
    return {_rename(key): value for key, value in state.items() if not _DROPPED.fullmatch(key)}


def _rename(key: str) -> str:
    if match := _FUSION.match(key):  # conv1 is the lowest of the U, our fusion 0
        return f"decoder.fusions.{int(match[1]) - 1}.project.{key[match.end() :]}"
    for pattern, ours in _RENAMED:
        name, count = re.subn(rf"^{pattern}(?=\.)", ours, key)
        if count:
            return name
    raise CheckpointError(f"unknown key {key!r}: not a Portraitmatting checkpoint of the author's")
