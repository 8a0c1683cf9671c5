"""Where a run's first weights come from."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from portraitmatting.checkpoint import CheckpointInfo, load_network
from portraitmatting.checkpoint.state_files import read_state
from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import ModelConfig, PortraitMatting
from portraitmatting.training.imagenet import encoder_from_timm, is_timm_swin

IMAGENET = "swin_tiny_patch4_window7_224.ms_in1k"


def starting_model(start: str) -> PortraitMatting:
    """The network that `TrainConfig.start` means: fresh, trained, or with timm's Swin-T inside."""
    if start == "scratch":
        return PortraitMatting()
    if start == "default":
        return load_network()
    if start == "imagenet":
        return _with_encoder(_download())
    if not Path(start).is_file():
        raise PortraitmattingError(
            f"start {start!r}: expected scratch, default, imagenet or the path of a checkpoint"
        )
    state, _ = read_state(Path(start))
    return _with_encoder(state) if is_timm_swin(state) else load_network(Path(start))


def model_facts(model: PortraitMatting) -> dict[str, Any]:
    """Sizes of a network and what is known of its weights, as plain values.

    They travel with a run's checkpoints, which so depend on nothing outside of the run.
    """
    info = model.checkpoint
    return {"config": asdict(model.config), "checkpoint": asdict(info) if info else None}


def model_from_facts(facts: Mapping[str, Any]) -> PortraitMatting:
    """A network of these sizes, its weights fresh."""
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
    except Exception as error:  # the hub's client raises kinds of its own, which may change
        raise PortraitmattingError(
            f"timm's {IMAGENET} could not be downloaded ({str(error).splitlines()[0]}): "
            "fetch the file elsewhere and give its path as start"
        ) from error
