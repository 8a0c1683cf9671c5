"""timm's Swin-T, as trained on ImageNet, turned into our encoder."""

import re
from collections.abc import Mapping

from torch import Tensor

from portraitmatting.errors import CheckpointError
from portraitmatting.training.stem import stem_from_patch_convolution

_DROPPED = re.compile(
    r"norm\.(weight|bias)|head\.(fc\.)?(weight|bias)|.*relative_position_index|.*attn_mask"
)
_PATCH = ("patch_embed.proj.weight", "patch_embed.proj.bias")


def is_timm_swin(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the entries of a Swin classifier with a 4x4 patch convolution."""
    patch = state.get(_PATCH[0])
    return patch is not None and patch.ndim == 4 and patch.shape[1:] == (3, 4, 4)


def encoder_from_timm(
    state: Mapping[str, Tensor], encoder: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """timm's `swin_tiny_patch4_window7_224` state dict to the whole state of `model.encoder`.

    `encoder` is the state of a freshly initialised encoder: what ImageNet's network does not have,
    the output norms, stays as it is there. Every key of timm's is used or on the list of those
    dropped (final norm, classifier, derived buffers); others, and wrong shapes, raise
    `CheckpointError`.
    In timm, since 0.9, the merging between stages i-1 and i stands in layer i.
    """
    stem = {name: value for name, value in encoder.items() if re.match(r"stem\.[02]\.", name)}
    out = dict(encoder)
    weight, bias = (state[name] for name in _PATCH)
    out |= stem_from_patch_convolution(weight, bias, stem)
    for name, value in state.items():
        if name in _PATCH or _DROPPED.fullmatch(name):
            continue
        ours = _our_name(name)
        if ours not in encoder:
            raise CheckpointError(
                f"unknown entry {name!r}: expected timm's swin_tiny_patch4_window7_224"
            )
        if value.shape != encoder[ours].shape:
            raise CheckpointError(
                f"{name} is {tuple(value.shape)}, expected {tuple(encoder[ours].shape)} as in "
                "timm's swin_tiny_patch4_window7_224"
            )
        out[ours] = value
    given = {_our_name(name) for name in state}
    missing = sorted(
        name for name in encoder if name.startswith(("stages", "merges")) and name not in given
    )
    missing = [name for name in missing if not _DROPPED.fullmatch(name)]
    if missing:
        raise CheckpointError(f"{len(missing)} entries are missing, the first is {missing[0]!r}")
    return out


def _our_name(name: str) -> str:
    merge = re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name)
    if merge:
        return f"merges.{int(merge[1]) - 1}.{merge[2]}"
    return re.sub(r"^layers\.(\d+)\.blocks\.", r"stages.\1.", name)
