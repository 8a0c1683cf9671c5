"""The network: equal to the author's, at any size, in every mode that people use it in."""

import copy

import numpy as np
import pytest
import torch

from golden_weights import GOLDEN, image
from portraitmatting import PortraitmattingError
from portraitmatting.modeling.heads import fuse


@pytest.mark.parametrize("size", [(64, 96), (224, 224), (256, 320)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_network_equals_the_authors(golden_model, size):
    golden = np.load(GOLDEN)
    with torch.inference_mode():
        alpha, trimap_logits = golden_model(image(*size))
    name = f"{size[0]}x{size[1]}"
    assert np.abs(alpha.numpy() - golden[f"alpha_{name}"]).max() < 1e-5
    assert np.abs(trimap_logits.numpy() - golden[f"trimap_logits_{name}"]).max() < 1e-5


def test_the_network_has_the_published_number_of_parameters(golden_model):
    assert sum(p.numel() for p in golden_model.parameters()) == 35_439_340


def test_the_outputs_are_named(tiny_model):
    prediction = tiny_model(torch.rand(2, 3, 32, 64))
    assert prediction.alpha.shape == (2, 1, 32, 64)
    assert prediction.trimap_logits.shape == (2, 3, 32, 64)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 250, 320), "256x320"),
        ((1, 3, 1, 1), "32x32"),
        ((1, 3, 0, 32), "32x32"),
        ((3, 64, 64), "got 3x64x64"),
        ((1, 4, 64, 64), "got 1x4x64x64"),
    ],
)
def test_the_error_for_other_sizes_names_a_size_to_pad_to(tiny_model, shape, message):
    with pytest.raises(PortraitmattingError, match=message):
        tiny_model(torch.zeros(shape))


def test_gradients_reach_every_parameter(tiny_model):
    torch.manual_seed(1)
    prediction = tiny_model.train()(torch.rand(2, 3, 64, 96))
    (prediction.alpha.square().mean() + prediction.trimap_logits.square().mean()).backward()
    without = [
        name
        for name, parameter in tiny_model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert without == []


def test_autocast_gives_nearly_the_same(tiny_model):
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        exact = tiny_model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = tiny_model(images)
    assert rough.alpha.dtype == torch.bfloat16
    torch.testing.assert_close(rough.alpha.float(), exact.alpha, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_copy_with_cast_weights_gives_nearly_the_same(golden_model, dtype):
    images = image(64, 96)
    twin = golden_model.at_precision(dtype)
    with torch.inference_mode():
        exact, rough = golden_model(images), twin(images)
    precision = torch.finfo(dtype).eps
    for mine, theirs in zip(rough, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() < 16 * precision * theirs.abs().max()
    assert {p.dtype for p in golden_model.parameters()} == {torch.float32}


def test_copies_and_channels_last_give_the_same(tiny_model):
    images = torch.rand(2, 3, 64, 96)
    twin = copy.deepcopy(tiny_model).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for mine, theirs in zip(
            tiny_model(images),
            twin(images.contiguous(memory_format=torch.channels_last)),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_batches_are_independent(tiny_model):
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        together = tiny_model(images).alpha
        alone = torch.cat([tiny_model(image[None]).alpha for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_fuse_takes_alpha_only_in_the_unknown_region():
    alpha = torch.tensor([-0.5, 0.3, 1.5, 0.3, 0.3]).view(1, 1, 1, 5)
    classes = torch.tensor([1, 1, 1, 0, 2])
    logits = torch.nn.functional.one_hot(classes, 3).T.reshape(1, 3, 1, 5).float()
    assert fuse(alpha, logits).flatten().tolist() == pytest.approx([0, 0.3, 1, 0, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("output", [0, 1])
def test_an_output_that_is_not_finite_affects_only_its_image(value, output):
    outputs = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    outputs[output][1, 0, 2, 2] = value
    matte = fuse(*outputs)
    assert matte[0].isfinite().all()
    assert matte[1].isnan().all()
