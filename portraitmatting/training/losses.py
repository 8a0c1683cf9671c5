"""What a prediction is blamed for.

Every loss is a figure per image, averaged over the batch's images. A batch cut into pieces,
over accumulation steps or processes, therefore gives the gradient of the whole.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from portraitmatting.modeling.model import Prediction
from portraitmatting.training.config import LossWeights
from portraitmatting.trimap import UNKNOWN


def matting_losses(
    prediction: Prediction,
    coarse: Sequence[Tensor],
    alpha: Tensor,
    trimap: Tensor,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """Weighted losses by name and their sum as `total`, float32 scalars.

    `alpha` (B, 1, H, W) in [0, 1] and `trimap` (B, H, W), int64 classes, are the truth; `coarse`
    holds logits (B, 1, h, w) from the decoder's stages, any number, each h, w dividing H, W.
    """
    raw = prediction.alpha.float()
    unknown = (trimap == UNKNOWN).unsqueeze(1).to(raw)
    losses = {
        "trimap": weights.trimap * F.cross_entropy(prediction.trimap_logits.float(), trimap),
        "alpha": weights.alpha * masked_l1(raw, alpha, unknown),
        "laplacian": weights.laplacian * laplacian_loss(raw, alpha, unknown),
        "whole": weights.whole * F.l1_loss(raw, alpha),
        "coarse": weights.coarse * coverage_loss(coarse, alpha),
    }
    losses["total"] = torch.stack(list(losses.values())).sum()
    return losses


def masked_l1(predicted: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference where `mask` is 1; all (B, 1, H, W). An empty mask gives 0."""
    return _mean_per_image((predicted - truth).abs() * mask, mask)


def laplacian_loss(predicted: Tensor, truth: Tensor, mask: Tensor, levels: int = 5) -> Tensor:
    """L1 between Laplacian pyramids, level i weighted 2^i, of (B, 1, H, W) where `mask` is 1.

    Context-Aware Image Matting (Hou and Liu, ICCV 2019), equation 2; the pyramid is Burt and
    Adelson's (1983). Outside of the mask the truth stands in for the prediction, so that only the
    masked pixels are judged, by their number; a level narrower than two pixels ends the pyramid.
    """
    difference = (predicted - truth) * mask
    total = difference.new_zeros(len(difference))
    for level in range(levels):
        if min(difference.shape[-2:]) < 2:
            break
        smaller = _reduce(difference)
        # The pyramid is linear: that of the difference is the difference of the two pyramids.
        band = difference - _expand(smaller, difference.shape[-2:])
        total = total + 2.0**level * band.abs().sum(dim=(1, 2, 3))
        difference = smaller
    return (total / mask.sum(dim=(1, 2, 3)).clamp(min=1)).mean()


def coverage_loss(coarse: Sequence[Tensor], alpha: Tensor) -> Tensor:
    """Deep supervision: cross entropy of each map's logits with alpha averaged over its cells."""
    if not coarse:
        return alpha.new_zeros(())
    terms = [
        F.binary_cross_entropy_with_logits(
            logits.float(), F.adaptive_avg_pool2d(alpha, (logits.shape[-2], logits.shape[-1]))
        )
        for logits in coarse
    ]
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
    """Twice the size by zeros between the pixels and the same blur, four times as strong."""
    spread = x.new_zeros(*x.shape[:-2], size[0], size[1])
    spread[..., ::2, ::2] = 4 * x
    return _blur(spread)
