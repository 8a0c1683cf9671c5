"""Deep supervision: heads for the decoder's coarse stages that exist in training only."""

from torch import Tensor, nn

from portraitmatting.modeling.model import PortraitMatting, Prediction

STAGES = 3
"""How many of the decoder's stages are supervised, from the coarsest: strides 32, 16 and 8."""
OUTPUTS = 4
"""Of a stage's head: the logit of alpha's coverage, and the trimap's three."""


class DeepSupervision(nn.Module):
    """The network, and a 1x1 head for each of the decoder's first `STAGES` stages.

    image (B, 3, H, W) -> the prediction, and each head's logits (B, `OUTPUTS`, h, w). With
    `coarse`, what only the finer stages and the network's own heads need is not computed, and
    there is no prediction. The heads are saved with the run, never exported.
    """

    def __init__(self, model: PortraitMatting) -> None:
        super().__init__()
        self.model = model
        channels = model.config.decoder_channels[:STAGES]
        self.heads = nn.ModuleList(nn.Conv2d(c, OUTPUTS, 1) for c in channels)
        self._maps: list[Tensor] = []
        for stage in model.decoder.fusions[:STAGES]:
            stage.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._maps.append(output)

    def forward(
        self, image: Tensor, coarse: bool = False
    ) -> tuple[Prediction | None, list[Tensor]]:
        self._maps.clear()
        prediction = None
        if coarse:
            self._run_coarse(image)
        else:
            prediction = self.model(image)
        logits = [head(m) for head, m in zip(self.heads, self._maps, strict=True)]
        self._maps.clear()
        return prediction, logits

    def _run_coarse(self, image: Tensor) -> None:
        """The model's own forward as far as the last supervised stage."""
        _, *skips, last = self.model.encoder(image)
        x = self.model.ppm(last)
        below: list[Tensor | None] = [None, *reversed(skips)]
        for stage, skip in zip(self.model.decoder.fusions[:STAGES], below, strict=False):
            x = stage(x, skip)
