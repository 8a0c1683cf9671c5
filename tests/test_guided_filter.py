"""The guided filter: equal to a slow reference, without seams between tiles, with the hair back."""

import tracemalloc

import cv2
import numpy as np
import pytest
import torch

from portraitmatting.guided_filter import (
    EPSILON,
    RADIUS,
    TILE,
    guided_upsample,
    guided_upsample_tensor,
)
from portraitmatting.metrics import grad, mad
from portraitmatting.transforms import resize, to_source_size
from portraitmatting.trimap import draw_trimap, unknown_region


def draw_hair(height=600, width=480, background=(90, 130, 120), seed=3):
    """An image uint8 and its exact alpha: a disc with hairs of one pixel in front of a gradient."""
    rng = np.random.default_rng(seed)
    alpha = np.zeros((height, width), np.float32)
    cv2.circle(alpha, (width // 2, height // 2), height // 5, 1.0, -1, cv2.LINE_AA)
    for angle in rng.uniform(0, 2 * np.pi, 90):
        out = np.array([np.cos(angle), np.sin(angle)])
        ends = [np.array([width, height]) / 2 + out * height * part for part in (0.18, 0.34)]
        cv2.line(alpha, *(tuple(map(int, end)) for end in ends), 1.0, 1, cv2.LINE_AA)
    alpha = alpha.clip(0, 1)
    behind = np.array(background) + 50 * np.sin(np.arange(width) / 150)[None, :, None]
    mixed = alpha[..., None] * (40, 30, 20) + (1 - alpha[..., None]) * behind
    noisy = mixed + rng.normal(0, 1.5, (height, width, 3))
    return np.rint(noisy.clip(0, 255)).astype(np.uint8), alpha


def shrunk(alpha, size):
    return np.ascontiguousarray(resize(alpha, size).clip(0, 1))


def slow_guided_upsample(image, coarse):
    """The formulas of the papers window by window, for float32 images."""
    height, width = coarse.shape
    small = np.pad(resize(image, coarse.shape), ((RADIUS,) * 2, (RADIUS,) * 2, (0, 0)), "edge")
    matte = np.pad(coarse, RADIUS, "edge")
    slopes = np.empty((height, width, 3))
    side = 2 * RADIUS + 1
    for y in range(height):
        for x in range(width):
            colours = small[y : y + side, x : x + side].reshape(-1, 3).astype(float)
            values = matte[y : y + side, x : x + side].ravel().astype(float)
            mean = colours.mean(axis=0)
            covariance = colours.T @ colours / len(values) - np.outer(mean, mean)
            with_matte = colours.T @ values / len(values) - mean * values.mean()
            slopes[y, x] = np.linalg.solve(covariance + EPSILON * np.eye(3), with_matte)
    framed = np.pad(slopes, ((RADIUS,) * 2, (RADIUS,) * 2, (0, 0)), "edge")
    lines = np.empty((height, width, 4))
    for y in range(height):
        for x in range(width):
            slope = framed[y : y + side, x : x + side].mean(axis=(0, 1))
            lines[y, x] = *slope, coarse[y, x] - slope @ small[y + RADIUS, x + RADIUS]
    full = cv2.resize(lines, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return ((full[..., :3] * image).sum(axis=2) + full[..., 3]).clip(0, 1)


@pytest.fixture(scope="module")
def scene():
    """A small image, its ground truth, and that at a working size of another aspect."""
    image, ground_truth = draw_hair(150, 110)
    return (image / 255).astype(np.float32), ground_truth, shrunk(ground_truth, (32, 32))


def test_the_result_equals_the_slow_reference(scene):
    image, _, coarse = scene
    np.testing.assert_allclose(
        guided_upsample(image, coarse), slow_guided_upsample(image, coarse), atol=1e-3
    )


def test_tensors_give_the_same_as_arrays(scene):
    image, _, coarse = scene
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    outputs = guided_upsample_tensor(tensor, torch.from_numpy(coarse)[None, None])
    assert outputs.shape == (1, 1, 150, 110)
    np.testing.assert_allclose(outputs[0, 0], guided_upsample(image, coarse), atol=1e-4)


@pytest.mark.parametrize("tile", [7, 64, 149])
def test_tiles_leave_no_seams(scene, tile):
    image, _, coarse = scene
    whole = guided_upsample(image, coarse, tile=1000)
    np.testing.assert_allclose(guided_upsample(image, coarse, tile), whole, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_dtypes_give_nearly_the_same(scene, dtype):
    image, _, coarse = scene
    top = np.iinfo(dtype).max
    outputs = guided_upsample(np.rint(image * top).astype(dtype), coarse)
    assert outputs.dtype == np.float32
    assert np.abs(outputs - guided_upsample(image, coarse)).mean() < 2e-3


def test_the_result_is_exactly_0_or_1_where_the_matte_is(rng):
    """Three working pixels away from all soft ones, in any image."""
    coarse = np.zeros((64, 64), np.float32)
    cv2.circle(coarse, (32, 32), 20, 1.0, -1, cv2.LINE_AA)
    image = rng.integers(0, 256, (500, 700, 3), np.uint8)
    alpha = guided_upsample(image, coarse)
    around = np.ones((7, 7), np.uint8)
    inside = cv2.erode(coarse, around, borderType=cv2.BORDER_REPLICATE) == 1
    outside = cv2.dilate(coarse, around, borderType=cv2.BORDER_REPLICATE) == 0
    rows, columns = (np.arange(n) * 64 // n for n in alpha.shape)
    place = np.ix_(rows, columns)
    assert inside[place].mean() > 0.1 and outside[place].mean() > 0.3
    assert (alpha[inside[place]] == 1).all()
    assert (alpha[outside[place]] == 0).all()
    assert 0.2 < alpha[~(inside | outside)[place]].mean() < 0.8


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_or_full_matte_stays_as_it_is(rng, value):
    image = rng.random((70, 90, 3), np.float32)
    coarse = np.full((32, 64), value, np.float32)
    assert (guided_upsample(image, coarse) == value).all()
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert (guided_upsample_tensor(tensor, torch.from_numpy(coarse)[None, None]) == value).all()


def test_grey_and_flat_images_work(scene):
    """The covariance of their colours has no inverse."""
    _, ground_truth, coarse = scene
    flat = np.full((150, 110, 3), 77, np.uint8)
    smooth = cv2.resize(coarse, (110, 150), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(guided_upsample(flat, coarse), smooth, atol=1e-3)
    grey = np.repeat(np.uint8(200 - 150 * ground_truth)[..., None], 3, axis=2)
    assert np.abs(guided_upsample(grey, coarse) - ground_truth).mean() < 0.01


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (32, 64), (3, 300)])
def test_images_smaller_than_the_matte_get_the_resized_matte(rng, shape):
    coarse = rng.random((32, 64), np.float32)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_array_equal(guided_upsample(image, coarse), to_source_size(coarse, shape))


@pytest.mark.parametrize(("factor", "less_mad", "less_grad"), [(2, 3, 10), (6, 8, 30)])
def test_hair_that_is_lost_at_working_size_comes_back(factor, less_mad, less_grad):
    image, ground_truth = draw_hair()
    coarse = shrunk(ground_truth, (600 // factor, 480 // factor))
    plain, refined = to_source_size(coarse, ground_truth.shape), guided_upsample(image, coarse)
    band = unknown_region(draw_trimap(ground_truth, 6))
    assert mad(refined, ground_truth, band) * less_mad < mad(plain, ground_truth, band)
    assert grad(refined, ground_truth, band) * less_grad < grad(plain, ground_truth, band)


def test_memory_does_not_grow_with_the_image():
    """Apart from image and result: the same for an image six times as large."""
    beside = []
    for height in (1200, 7200):
        image = np.zeros((height, 1000, 3), np.uint8)
        coarse = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        tracemalloc.start()
        guided_upsample(image, coarse)
        beside.append(tracemalloc.get_traced_memory()[1] - height * 1000 * 4)
        tracemalloc.stop()
    assert beside[1] < 1.1 * beside[0]
    assert beside[1] < 60 * TILE**2
