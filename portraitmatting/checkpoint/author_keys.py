"""The author's names for the weights, and ours: a pure translation from one dict to another."""

import re

from torch import Tensor

from portraitmatting.errors import CheckpointError

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
        name, found = re.subn(rf"^{pattern}(?=\.)", ours, key)
        if found:
            return name
    raise CheckpointError(f"unknown key {key!r}: not a Portraitmatting checkpoint of the author's")
