"""Deep supervision: heads for the decoder's coarse stages that exist in training only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from portraitmatting.modeling.model import PortraitMatting, Prediction

STAGES = ("decoder.fusions.0", "decoder.fusions.1", "decoder.fusions.2")
"""The network's supervised modules, strides 32, 16 and 8."""


class DeepSupervision(nn.Module):
    """The network and one 1x1 head per supervised module; to the prediction and the heads' logits.

    `stages` name modules of `model` whose output is a map (B, C, h, w). They are read through
    hooks, so that the network knows nothing of this. The heads are saved with the run, never
    exported.
    """

    def __init__(self, model: PortraitMatting, stages: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._maps: dict[str, Tensor] = {}
        self._stages = list(stages)
        for stage in stages:
            model.get_submodule(stage).register_forward_hook(self._keep(stage))
        channels = self._channels()
        self.heads = nn.ModuleList(nn.Conv2d(channels[stage], 1, 1) for stage in stages)

    def _keep(self, stage: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._maps[stage] = output

        return hook

    def _channels(self) -> dict[str, int]:
        """Found by one look at a small black image, since no module publishes its output's."""
        training, device = self.model.training, next(self.model.parameters()).device
        with torch.no_grad():
            self.model.eval()(torch.zeros(1, 3, 64, 64, device=device))
        self.model.train(training)
        return {stage: int(value.shape[1]) for stage, value in self._maps.items()}

    def forward(self, image: Tensor) -> tuple[Prediction, list[Tensor]]:
        self._maps.clear()
        prediction = self.model(image)
        maps = [self._maps[stage] for stage in self._stages]
        self._maps.clear()
        return prediction, [head(m) for head, m in zip(self.heads, maps, strict=True)]
