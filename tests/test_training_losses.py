"""Losses against hand-worked cases and slow references."""

import cv2
import numpy as np
import pytest
import torch

from portraitmatting.modeling.heads import fuse
from portraitmatting.modeling.model import Prediction
from portraitmatting.training.losses import (
    LossWeights,
    coverage_loss,
    fuse_softly,
    laplacian_loss,
    masked_l1,
    matting_losses,
)
from portraitmatting.trimap import BACKGROUND, FOREGROUND, UNKNOWN


def batch(count: int, height: int = 32, width: int = 48):
    generator = torch.Generator().manual_seed(5)
    raw = torch.randn(count, 1, height, width, generator=generator)
    logits = torch.randn(count, 3, height, width, generator=generator)
    coarse = [torch.randn(count, 4, height // s, width // s, generator=generator) for s in (16, 8)]
    alpha = torch.rand(count, 1, height, width, generator=generator)
    trimap = torch.randint(0, 3, (count, height, width), generator=generator)
    trimap[0] = BACKGROUND  # an image with no unknown pixel at all
    return Prediction(raw, logits), coarse, alpha, trimap


def test_masked_l1_counts_only_the_mask_of_each_image():
    truth = torch.zeros(3, 1, 2, 2)
    predicted = torch.tensor([[1.0, 3.0, 5.0, 7.0]] * 3).view(3, 1, 2, 2)
    mask = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).view(3, 1, 2, 2)
    assert masked_l1(predicted, truth, mask).item() == pytest.approx((2 + 7 + 0) / 3)


def reference_pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """Burt and Adelson's pyramid, by OpenCV's filter with its border replicated."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]).astype(np.float64) / 256
    bands = []
    for _ in range(levels):
        if min(image.shape) < 2:
            break
        small = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = small * 4
        bands.append(image - cv2.filter2D(spread, -1, kernel, borderType=cv2.BORDER_REPLICATE))
        image = np.ascontiguousarray(small)
    return bands


@pytest.mark.parametrize("height, width", [(32, 48), (33, 21), (7, 5)])
def test_laplacian_equals_the_difference_of_two_pyramids(height, width):
    rng = np.random.default_rng(1)
    ours, truth = rng.random((2, height, width))
    mask = (rng.random((height, width)) < 0.5).astype(np.float64)
    stand_in = np.where(mask > 0, ours, truth)
    pairs = zip(reference_pyramid(stand_in, 5), reference_pyramid(truth, 5), strict=True)
    expected = sum(2**i * np.abs(a - b).sum() for i, (a, b) in enumerate(pairs)) / mask.sum()
    tensors = (torch.from_numpy(a)[None, None] for a in (ours, truth, mask))
    assert laplacian_loss(*tensors).item() == pytest.approx(expected, rel=1e-9)


def test_coverage_is_the_share_of_a_cell_that_the_person_and_the_classes_fill():
    alpha = torch.zeros(1, 1, 32, 32)
    alpha[..., :16, :8] = 1  # half of the upper left 16x16 cell
    trimap = torch.zeros(1, 32, 32, dtype=torch.int64)
    trimap[:, :16, :8] = FOREGROUND
    covered = torch.tensor([[[[0.5, 1e-6], [1e-6, 1e-6]]]])
    shares = torch.cat([1 - covered, torch.full_like(covered, 1e-6), covered], dim=1)
    right = torch.cat([torch.logit(covered), shares.log()], dim=1)
    assert coverage_loss([right], alpha, trimap).item() == pytest.approx(np.log(2) / 4, abs=1e-4)
    for channels in ([-1, 1, 1, 1], [1, -1, -1, -1]):
        wrong = right * torch.tensor(channels).view(1, 4, 1, 1)
        assert coverage_loss([wrong], alpha, trimap) > 1


def test_the_soft_fusion_is_the_hard_one_where_the_trimap_is_sure_and_teaches_both_heads():
    prediction, _, alpha, trimap = batch(2)
    sure = 60 * torch.nn.functional.one_hot(trimap, 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(fuse_softly(prediction.alpha, sure), fuse(prediction.alpha, sure))
    leaves = [t.clone().requires_grad_() for t in prediction]
    torch.nn.functional.l1_loss(fuse_softly(*leaves), alpha).backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_coarse_training_has_the_same_rows_and_its_own_loss_only():
    prediction, coarse, alpha, trimap = batch(2)
    whole = matting_losses(prediction, coarse, alpha, trimap, LossWeights())
    alone = matting_losses(None, coarse, alpha, trimap, LossWeights())
    assert list(alone) == list(whole)
    assert alone["total"] == alone["coarse"] == whole["coarse"] > 0


def test_a_perfect_prediction_costs_almost_nothing():
    _, _, alpha, trimap = batch(2)
    alpha[(trimap == FOREGROUND).unsqueeze(1)] = 1
    alpha[(trimap == BACKGROUND).unsqueeze(1)] = 0
    logits = 50 * torch.nn.functional.one_hot(trimap, 3).permute(0, 3, 1, 2).float()
    losses = matting_losses(Prediction(alpha, logits), [], alpha, trimap, LossWeights())
    assert losses["total"] < 1e-6


def test_known_pixels_do_not_enter_the_alpha_losses_but_the_whole_one():
    prediction, coarse, alpha, trimap = batch(2)
    before = matting_losses(prediction, coarse, alpha, trimap, LossWeights())
    worse = prediction._replace(alpha=prediction.alpha + 9 * (trimap != UNKNOWN).unsqueeze(1))
    after = matting_losses(worse, coarse, alpha, trimap, LossWeights())
    assert after["alpha"] == before["alpha"] and after["laplacian"] == before["laplacian"]
    assert after["whole"] > before["whole"]


def test_weights_scale_their_loss_and_total_is_the_sum():
    prediction, coarse, alpha, trimap = batch(2)
    one = matting_losses(prediction, coarse, alpha, trimap, LossWeights(trimap=1, coarse=1))
    two = matting_losses(prediction, coarse, alpha, trimap, LossWeights(trimap=2, coarse=0))
    assert two["trimap"] == pytest.approx(2 * one["trimap"].item())
    assert two["coarse"] == 0
    parts = [value for name, value in two.items() if name != "total"]
    assert two["total"].item() == pytest.approx(sum(parts).item())


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole():
    """What accumulation and several processes rely on."""
    prediction, coarse, alpha, trimap = batch(4)
    leaves = [t.clone().requires_grad_() for t in (*prediction, *coarse)]

    def gradient(slices: list[slice]) -> list[torch.Tensor]:
        total = 0
        for part in slices:
            cut = [t[part] for t in leaves]
            losses = matting_losses(
                Prediction(*cut[:2]), cut[2:], alpha[part], trimap[part], LossWeights()
            )
            total = total + losses["total"] / len(slices)
        return torch.autograd.grad(total, leaves)

    whole = gradient([slice(0, 4)])
    for a, b in zip(whole, gradient([slice(0, 2), slice(2, 4)]), strict=True):
        torch.testing.assert_close(a, b)
