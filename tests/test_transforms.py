"""Working sizes, tensors for the network, and resizing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portraitmatting import PortraitmattingError
from portraitmatting.transforms import (
    network_size,
    resize,
    resize_tensor,
    to_source_size,
    to_tensor,
)

sides = st.integers(1, 20000)
short_sides = st.integers(1, 48).map(lambda n: 32 * n)


@pytest.mark.parametrize(
    ("image", "short_side", "expected"),
    [
        ((768, 1024), 768, (768, 1024)),
        ((1000, 1500), 768, (768, 1152)),
        ((1500, 1000), 768, (1152, 768)),
        ((1080, 1920), 768, (768, 1376)),  # 1365.3, rounded up to a multiple of 32
        ((8, 8), 640, (640, 640)),
        ((1, 1), 32, (32, 32)),
        ((100, 400), 640, (640, 2560)),  # 4:1 is the longest that keeps its short side
    ],
)
def test_the_short_side_is_exact_and_the_long_side_rounded_up(image, short_side, expected):
    assert network_size(*image, short_side) == expected


@given(sides, sides, short_sides)
def test_every_working_size_is_usable_and_bounded(height, width, short_side):
    h, w = network_size(height, width, short_side)
    assert h % 32 == w % 32 == 0
    assert min(h, w) >= 32
    assert h * w <= 4 * short_side**2
    assert (h <= w) == (height <= width) or h == w
    assert network_size(width, height, short_side) == (w, h)
    short, long = sorted((height, width))
    if long <= 4 * short:
        assert min(h, w) == short_side
        assert 0 <= max(h, w) - short_side * long / short < 32


@pytest.mark.parametrize("aspect", [5, 20, 60])
def test_images_longer_than_4_to_1_become_smaller_and_keep_their_aspect_nearly(aspect):
    h, w = network_size(100, 100 * aspect, 640)
    assert h < 640
    assert 0.8 < w / h / aspect < 1.25


@pytest.mark.parametrize(("short_side", "near"), [(0, 32), (-64, 32), (100, 96), (650, 640)])
def test_the_error_for_a_wrong_short_side_names_a_near_multiple_of_32(short_side, near):
    with pytest.raises(PortraitmattingError, match=f"short side {short_side}.* {near}$"):
        network_size(10, 10, short_side)


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_a_tensor_holds_the_image_scaled_to_0_to_1(rng, dtype, peak):
    image = (rng.random((7, 5, 3)) * peak).astype(dtype)
    tensor = to_tensor(image, (7, 5))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), (image / peak).transpose(2, 0, 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [(7, 5), (4, 4), (32, 32)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_tensor_shares_no_memory_with_the_image(rng, dtype, size):
    image = (rng.random((7, 5, 3)) * 1.99).astype(dtype)
    image.setflags(write=False)
    to_tensor(image, size).fill_(0.5)  # neither warns of read-only memory nor changes it
    assert 0.5 not in image


@pytest.mark.parametrize("size", [(7, 5), (4, 4), (32, 64)])
def test_views_give_the_same_tensors_as_copies(rng, size):
    large = rng.integers(0, 256, (14, 10, 6), np.uint8)
    views = (
        large[::2, ::2, ::2],
        large[6::-1, 4::-1, 2::-1],
        large[:3, :5].T[::2, :3],
        large[:7, :5, 3:],
    )
    for view in views:
        torch.testing.assert_close(to_tensor(view, size), to_tensor(view.copy(), size))


def area_average(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A slow reference: each target pixel is the mean of the source pixels under it, weighted by
    their overlap."""
    result = np.zeros(size)
    for row in range(size[0]):
        top, bottom = (np.array([row, row + 1]) * plane.shape[0] / size[0]).tolist()
        for column in range(size[1]):
            left, right = (np.array([column, column + 1]) * plane.shape[1] / size[1]).tolist()
            for y in range(int(top), min(plane.shape[0], int(np.ceil(bottom)))):
                for x in range(int(left), min(plane.shape[1], int(np.ceil(right)))):
                    share = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                    result[row, column] += plane[y, x] * share
    return result * size[0] * size[1] / plane.size


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (10, 9), (1, 1), (9, 7)])
def test_shrinking_averages_areas(rng, size):
    plane = rng.random((10, 9)).astype(np.float32)
    expected = area_average(plane, size)
    np.testing.assert_allclose(resize(plane, size), expected, atol=1e-5)
    tensor = resize_tensor(torch.from_numpy(plane)[None, None], size)
    np.testing.assert_allclose(tensor[0, 0], expected, atol=1e-5)


small = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(small, small, small, small, st.integers(0, 9))
def test_tensors_are_resized_like_arrays(height, width, h, w, seed):
    shrinks = h <= height and w <= width
    grows = h >= height and w >= width
    if not (shrinks or grows):
        w = max(w, width) if h >= height else min(w, width)
    image = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = resize(image, (h, w)).clip(0, 1)
    outputs = resize_tensor(tensor, (h, w))[0].permute(1, 2, 0)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(small, small, small, small)
def test_a_resized_matte_stays_in_range_and_constant_mattes_stay_constant(height, width, h, w):
    noise = np.random.default_rng(0).integers(0, 2, (h, w)).astype(np.float32)
    back = to_source_size(noise, (height, width))
    assert back.shape == (height, width)
    assert back.dtype == np.float32
    assert back.min() >= 0
    assert back.max() <= 1
    for value in (0, 1):
        certain = to_source_size(np.full((h, w), value, np.float32), (height, width))
        np.testing.assert_allclose(certain, value, atol=1e-6)
