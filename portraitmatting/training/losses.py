"""The losses of a batch, and the heads of deep supervision.

Every loss is computed per image and averaged over the batch, so that a batch that is split, over
accumulation steps or processes, has the same gradient.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portraitmatting.modeling.model import PortraitMatting, Prediction
from portraitmatting.training.config import LossWeights
from portraitmatting.trimap import FOREGROUND, UNKNOWN

_LEVELS = 5
"""Of the Laplacian pyramid."""
STAGES = 3
"""Number of the decoder's stages that are supervised, from the coarsest: strides 32, 16 and 8."""
OUTPUTS = 4
"""Logits of a stage's head: one of alpha's mean, three of the trimap's classes."""


class DeepSupervision(nn.Module):
    """The network, and a 1x1 head for each of the decoder's first `STAGES` stages.

    image (B, 3, H, W) -> the prediction, and each head's logits (B, `OUTPUTS`, h, w). With
    `coarse`, the finer stages and the network's own heads are left out, and there is no
    prediction. The heads are saved with the run, never exported.
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
        """The model's forward up to the last supervised stage."""
        _, *skips, last = self.model.encoder(image)
        x = self.model.ppm(last)
        below: list[Tensor | None] = [None, *reversed(skips)]
        for stage, skip in zip(self.model.decoder.fusions[:STAGES], below, strict=False):
            x = stage(x, skip)


def matting_losses(
    prediction: Prediction | None,
    coarse: Sequence[Tensor],
    alpha: Tensor,
    trimap: Tensor,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """Weighted losses by name and their sum as `total`, float32 scalars.

    Args:
        prediction: the network's; None while only its coarse stages are trained, when every loss
            but `coarse` is 0.
        coarse: logits (B, 4, h, w) of the decoder's stages, any number; h, w divide H, W.
        alpha: the ground truth, (B, 1, H, W) in [0, 1].
        trimap: the ground truth, (B, H, W), int64 classes.
        weights: 0 leaves a loss out.
    """
    zero = alpha.new_zeros(())
    losses = dict.fromkeys(("trimap", "alpha", "laplacian", "whole", "fusion"), zero)
    if prediction is not None:
        raw, logits = prediction.alpha.float(), prediction.trimap_logits.float()
        unknown = (trimap == UNKNOWN).unsqueeze(1).to(raw)
        losses = {
            "trimap": weights.trimap * F.cross_entropy(logits, trimap),
            "alpha": weights.alpha * masked_l1(raw, alpha, unknown),
            "laplacian": weights.laplacian * laplacian_loss(raw, alpha, unknown),
            "whole": weights.whole * F.l1_loss(raw, alpha),
            "fusion": weights.fusion * F.l1_loss(fuse_softly(raw, logits), alpha),
        }
    losses["coarse"] = weights.coarse * coverage_loss(coarse, alpha, trimap)
    losses["total"] = torch.stack(list(losses.values())).sum()
    return losses


def fuse_softly(raw: Tensor, trimap_logits: Tensor) -> Tensor:
    """p(foreground) + p(unknown) * alpha: `heads.fuse` with a gradient for both heads.

    Raw alpha (B, 1, H, W) and trimap logits (B, 3, H, W) -> (B, 1, H, W) in [0, 1].
    """
    p = trimap_logits.softmax(dim=1)
    return p[:, FOREGROUND, None] + p[:, UNKNOWN, None] * raw.clamp(0, 1)


def masked_l1(predicted: Tensor, ground_truth: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference where `mask` is 1; all (B, 1, H, W). An empty mask gives 0."""
    return _mean_per_image((predicted - ground_truth).abs() * mask, mask)


def laplacian_loss(predicted: Tensor, ground_truth: Tensor, mask: Tensor) -> Tensor:
    """L1 between Laplacian pyramids where `mask` is 1, level i weighted 2^i; all (B, 1, H, W).

    Context-Aware Image Matting (Hou and Liu, ICCV 2019), equation 2; the pyramid is Burt and
    Adelson's (1983). Outside the mask the ground truth replaces the prediction, and the sum is
    divided by the number of masked pixels. The pyramid ends before levels become narrower than two
    pixels.
    """
    difference = (predicted - ground_truth) * mask
    total = difference.new_zeros(len(difference))
    for level in range(_LEVELS):
        if min(difference.shape[-2:]) < 2:
            break
        smaller = _reduce(difference)
        # The pyramid is linear: that of the difference is the difference of the two pyramids.
        band = difference - _expand(smaller, difference.shape[-2:])
        total = total + 2.0**level * band.abs().sum(dim=(1, 2, 3))
        difference = smaller
    return (total / mask.sum(dim=(1, 2, 3)).clamp(min=1)).mean()


def coverage_loss(coarse: Sequence[Tensor], alpha: Tensor, trimap: Tensor) -> Tensor:
    """Deep supervision: cross entropy with what each cell contains, averaged over the maps.

    A map's first logit predicts alpha's mean in the cell, the other three the shares of the
    trimap's classes. Shapes as in `matting_losses`.
    """
    if not coarse:
        return alpha.new_zeros(())
    classes = F.one_hot(trimap, 3).permute(0, 3, 1, 2).to(alpha)
    terms = []
    for logits in coarse:
        size = (logits.shape[-2], logits.shape[-1])
        cover, shares = (F.adaptive_avg_pool2d(target, size) for target in (alpha, classes))
        terms.append(F.binary_cross_entropy_with_logits(logits[:, :1].float(), cover))
        terms.append(F.cross_entropy(logits[:, 1:].float(), shares))
    return torch.stack(terms).mean()


def _mean_per_image(values: Tensor, mask: Tensor) -> Tensor:
    per_image = values.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)
    return per_image.mean()


def _binomial(like: Tensor) -> Tensor:
    taps = like.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return torch.outer(taps, taps).view(1, 1, 5, 5)


def _blur(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), _binomial(x))


def _reduce(x: Tensor) -> Tensor:
    return _blur(x)[..., ::2, ::2]


def _expand(x: Tensor, size: Sequence[int]) -> Tensor:
    """To `size`, twice as large: zeros between the pixels, then the same blur, times four."""
    spread = x.new_zeros(*x.shape[:-2], size[0], size[1])
    spread[..., ::2, ::2] = 4 * x
    return _blur(spread)
