"""A run's first weights: random, one of our checkpoints, or timm's Swin-T in the encoder."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portraitmatting.checkpoint.format import CheckpointInfo, read_state
from portraitmatting.checkpoint.load import load_network
from portraitmatting.errors import CheckpointError, PortraitmattingError
from portraitmatting.modeling.model import ModelConfig, PortraitMatting

IMAGENET = "swin_tiny_patch4_window7_224.ms_in1k"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_DROPPED = re.compile(
    r"norm\.(weight|bias)|head\.(fc\.)?(weight|bias)|.*relative_position_index|.*attn_mask"
)
_PATCH = ("patch_embed.proj.weight", "patch_embed.proj.bias")
_ROW_OF_PATCH = ((0, 1), (0, 2), (1, 1), (1, 2))
"""Rows 0-3 of a patch: (stem site, counted from the strided kernel's centre; row of its 3x3)."""


def initial_model(init_from: str) -> PortraitMatting:
    """The network that `TrainConfig.init_from` names: random, trained, or with timm's encoder."""
    if init_from == "scratch":
        return PortraitMatting()
    if init_from == "default":
        return load_network()
    if init_from == "imagenet":
        return _with_encoder(_download())
    if not Path(init_from).is_file():
        raise PortraitmattingError(
            f"init_from {init_from!r}: expected scratch, default, imagenet or the path of a "
            "checkpoint"
        )
    state, _ = read_state(Path(init_from))
    return _with_encoder(state) if is_timm_swin(state) else load_network(Path(init_from))


def model_facts(model: PortraitMatting) -> dict[str, Any]:
    """A network's sizes and what is known of its weights, as plain values.

    Each checkpoint of a run contains them, and so depends on nothing outside the run.
    """
    info = model.checkpoint
    return {"config": asdict(model.config), "checkpoint": asdict(info) if info else None}


def model_from_facts(facts: Mapping[str, Any]) -> PortraitMatting:
    """A network of these sizes with random weights."""
    model = PortraitMatting(ModelConfig(**facts["config"]))
    model.checkpoint = CheckpointInfo(**facts["checkpoint"]) if facts["checkpoint"] else None
    return model


def _with_encoder(state: Mapping[str, Tensor]) -> PortraitMatting:
    model = PortraitMatting()
    model.encoder.load_state_dict(encoder_from_timm(state, model.encoder.state_dict()))
    return model


def _download() -> dict[str, Tensor]:
    import timm

    try:
        state: dict[str, Tensor] = timm.create_model(IMAGENET, pretrained=True).state_dict()
        return state
    except Exception as error:  # the hub's client has errors of its own, which may change
        raise PortraitmattingError(
            f"timm's {IMAGENET} could not be downloaded ({str(error).splitlines()[0]}): "
            "fetch the file elsewhere and give its path as init_from"
        ) from error


def is_timm_swin(state: Mapping[str, Tensor]) -> bool:
    """Whether this is the state of a Swin classifier with a 4x4 patch convolution."""
    patch = state.get(_PATCH[0])
    return patch is not None and patch.ndim == 4 and patch.shape[1:] == (3, 4, 4)


def encoder_from_timm(
    state: Mapping[str, Tensor], encoder: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """timm's `swin_tiny_patch4_window7_224` state dict -> the whole state of `model.encoder`.

    `encoder` is the state of a newly initialised encoder, from which the output norms are taken:
    timm's network has none. Every key of timm's is used or listed as dropped (final norm,
    classifier, derived buffers); others, and wrong shapes, raise `CheckpointError`.
    Since timm 0.9, the merging between stages i-1 and i belongs to layer i.
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


def stem_from_patch_convolution(
    weight: Tensor,
    bias: Tensor,
    stem: dict[str, Tensor],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> dict[str, Tensor]:
    """The encoder's stem and patch embedding that equal a 4x4 stride-4 convolution, exactly.

    The first convolution copies the 27 values under its 3x3 window, one to each channel. Pixels are
    not negative, so both PReLUs leave them as they are, and the second convolution copies them. The
    strided 3x3 around stem site (2I, 2J) finds all 16 pixels of patch (I, J) at offsets 0 and 1,
    never at a border, so zero padding has no effect. Mean and deviation go into its weights. Stem
    channels after the 27th keep their weights and are read with weight 0: they are free to learn.

    Args:
        weight: (D, 3, 4, 4), of the convolution.
        bias: (D,).
        stem: the entries `stem.0.*` and `stem.2.*` of a newly initialised encoder with at least 27
            stem channels.
        mean: of RGB, which the convolution's input has subtracted.
        std: of RGB, by which its input is divided.

    Returns:
        The entries `stem.0`, `stem.2` and `patch_embed.proj` that give the same D values per site
        from RGB in [0, 1], at any size whose sides are multiples of 4.
    """
    channels = stem["stem.0.weight"].shape[0]
    if channels < 27 or weight.shape[1:] != (3, 4, 4):
        shape = "x".join(map(str, weight.shape))
        raise PortraitmattingError(
            f"a {shape} patch convolution does not fit a stem of {channels} channels: it must be "
            "Dx3x4x4, and the stem needs 27 channels to carry its pixels"
        )
    out = {name: value.clone() for name, value in stem.items()}
    out["stem.0.weight"][:27] = torch.eye(27).view(27, 3, 3, 3).to(weight)
    out["stem.0.bias"][:27] = 0
    out["stem.2.weight"][:27] = 0
    out["stem.2.weight"][range(27), range(27), 1, 1] = 1
    out["stem.2.bias"][:27] = 0

    scale = weight / weight.new_tensor(std).view(1, 3, 1, 1)
    # D, colour, row, column, site y, site x
    taps = weight.new_zeros(weight.shape[0], 3, 3, 3, 3, 3)
    for y, (site_y, row) in enumerate(_ROW_OF_PATCH):
        for x, (site_x, column) in enumerate(_ROW_OF_PATCH):
            taps[:, :, row, column, 1 + site_y, 1 + site_x] = scale[:, :, y, x]
    strided = weight.new_zeros(weight.shape[0], channels, 3, 3)
    strided[:, :27] = taps.flatten(1, 3)
    out["patch_embed.proj.weight"] = strided
    shift = (scale * weight.new_tensor(mean).view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    out["patch_embed.proj.bias"] = bias - shift
    return out
