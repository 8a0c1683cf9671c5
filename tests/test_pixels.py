"""Conversions between 8 bits, 16 bits and floats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.pixels import to_dtype, to_unit

SHAPES = array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)


@given(arrays(st.sampled_from([np.uint8, np.uint16]), SHAPES))
def test_integers_are_the_same_after_conversion_and_back(pixels):
    for other in (np.uint16, np.float32, np.float64):
        back = to_dtype(to_dtype(pixels, other), pixels.dtype)
        assert back.dtype == pixels.dtype
        assert np.array_equal(back, pixels)


@given(arrays(np.float64, SHAPES, elements=st.floats(0, 1)))
def test_floats_are_rounded_to_the_nearest(pixels):
    for dtype, full in ((np.uint8, 255), (np.uint16, 65535)):
        assert np.abs(to_dtype(pixels, dtype) - pixels * full).max(initial=0) <= 0.51


def test_full_scale_maps_to_full_scale():
    ends = np.array([0, 255], np.uint8)
    assert to_dtype(ends, np.uint16).tolist() == [0, 65535]
    assert to_unit(ends).tolist() == [0, 1]
    assert to_dtype(np.array([0.0, 1.0]), np.uint16).tolist() == [0, 65535]
    assert to_dtype(np.array([127, 128, 129], np.uint16), np.uint8).tolist() == [0, 0, 1]


def test_a_small_overshoot_is_clamped():
    assert to_unit(np.array([-0.005, 1.005])).tolist() == [0, 1]


@pytest.mark.parametrize("value", [255.0, -1.0, np.nan, np.inf])
def test_floats_of_another_range_are_refused(value):
    with pytest.raises(PortraitmattingError, match=r"image.*0\.\.1.*255"):
        to_unit(np.array([0.5, value]), "image")


@pytest.mark.parametrize("dtype", [np.int32, bool, np.complex64])
def test_other_types_are_refused(dtype):
    with pytest.raises(PortraitmattingError, match="uint8, uint16 or float"):
        to_dtype(np.zeros(3, dtype), np.uint8)
