"""Composites, cut-outs and backgrounds."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portraitmatting.compositing import (
    Blur,
    checkerboard,
    color,
    composite,
    image_background,
    parse_background,
    rgba,
)
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.colour import adobe_rgb, convert_rgb
from portraitmatting.images.files import write_image
from portraitmatting.images.pixels import to_dtype, to_unit

DTYPES = [np.uint8, np.uint16, np.float32, np.float64]
BACKGROUNDS = {
    "color": color("#336699"),
    "image": image_background(
        np.random.default_rng(1).integers(0, 256, (30, 90, 3)).astype(np.uint8)
    ),
    "blur": Blur(),
    "checkerboard": checkerboard(),
}


def noise(height=24, width=32, dtype=np.uint8):
    unit = np.random.default_rng(0).random((height, width, 3))
    return to_dtype(unit, dtype)


def ramp(height=24, width=32):
    return np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))


# Composites


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_a_composite_mixes_by_alpha_and_rounds_last(dtype, other):
    foreground, background = noise(dtype=dtype), noise(dtype=other)[::-1]
    result = composite(foreground, ramp(), background)
    weight = ramp()[..., None].astype(np.float64)
    exact = weight * to_unit(foreground) + (1 - weight) * to_unit(background)
    full = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    assert result.dtype == dtype
    assert np.abs(result - exact * full).max() <= (1e-6 if full == 1 else 0.51)


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_0_and_1_give_the_exact_pixels(dtype):
    foreground, background = noise(dtype=dtype), noise(dtype=dtype)[::-1]
    for level, expected in ((0, background), (1, foreground)):
        result = composite(foreground, np.full((24, 32), level, np.float32), background)
        assert np.allclose(result, expected, rtol=0, atol=1e-6)


@given(st.integers(0, 65535), st.integers(0, 65535), st.floats(0, 1, width=32))
def test_a_mixture_lies_between_its_parts(first, second, level):
    one = np.full((1, 1, 3), first, np.uint16)
    other = np.full((1, 1, 3), second, np.uint16)
    value = composite(one, np.full((1, 1), level, np.float32), other)[0, 0, 0]
    assert min(first, second) <= value <= max(first, second)


def test_texts_images_and_callables_are_taken_as_backgrounds():
    image, alpha, foreground = noise(), ramp(), noise()[::-1]
    card = noise(50, 20)
    for given_, background in [
        ("blur:0.1", Blur(0.1)(image, alpha)),
        ("red", color("red")(image, alpha)),
        (card, image_background(card)(image, alpha)),
        (checkerboard(), checkerboard()(image, alpha)),
    ]:
        expected = composite(foreground, alpha, background)
        assert np.array_equal(composite(foreground, alpha, given_, image), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cut_out_has_straight_alpha(dtype):
    foreground = noise(dtype=dtype)
    result = rgba(foreground, ramp())
    assert result.dtype == dtype
    level = to_dtype(ramp(), dtype)
    assert np.array_equal(result[..., 3], level)
    assert np.array_equal(result[level > 0][:, :3], foreground[level > 0])
    assert (result[level == 0] == 0).all()  # else files would be a fifth larger


@pytest.mark.parametrize(
    ("foreground", "alpha", "background", "says"),
    [
        (noise(), ramp(24, 31), noise(), "alpha .24, 31. does not fit"),
        (noise(), ramp() * 255, noise(), "alpha.*255"),
        (noise(), (ramp() * 255).astype(np.uint8), noise(), "alpha.*uint8"),
        (noise()[..., 0], ramp(), noise(), "HxWx3"),
        (noise(), ramp(), lambda image, alpha: image[1:], "background .23, 32, 3. does not fit"),
        (noise(), ramp(), noise()[..., 0], "HxWx3 RGB background"),
        (noise(), ramp(), "reddish", "'reddish'.*#rrggbb"),
        (noise(), ramp(), noise().astype(np.float32), "background.*255"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line(foreground, alpha, background, says):
    with pytest.raises(PortraitmattingError, match=says) as caught:
        composite(foreground, alpha, background)
    assert str(caught.value).isprintable()


# Backgrounds


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (40, 1), (24, 32), (101, 67)])
def test_a_background_has_the_images_size_and_dtype(name, dtype, size):
    image = noise(*size, dtype=dtype)
    for alpha in (ramp(*size), np.zeros(size), np.ones(size)):
        background = BACKGROUNDS[name](image, alpha)
        assert background.shape == image.shape
        assert background.dtype == dtype
        composite(image, alpha, background)  # which checks the range


@pytest.mark.parametrize("text", ["#ff8000", "#f80", "rgb(255, 128, 0)"])
def test_a_colour_fills_the_background(text):
    expected = [255, 136 if text == "#f80" else 128, 0]
    assert (color(text)(noise(), ramp()) == expected).all()
    deep = color(text)(noise(dtype=np.uint16), ramp())
    assert (deep == np.array(expected) * 257).all()


@pytest.mark.parametrize(("height", "width"), [(40, 40), (20, 80), (160, 60), (37, 53)])
def test_a_background_image_covers_the_frame_and_keeps_its_aspect(height, width):
    y, x = np.mgrid[:80, :120]
    disc = (np.hypot(y - 39.5, x - 59.5) < 15)[..., None]
    card = np.where(disc, [1.0, 0, 0], [0, 0, 1.0])
    image = noise(height, width)
    shown = image_background(card)(image, ramp(height, width))
    red = shown[..., 0] > 127
    assert (shown.astype(int).sum(axis=2) > 200).all()  # no empty margin
    rows, columns = red.any(axis=1).sum(), red.any(axis=0).sum()
    if rows < height and columns < width:
        assert abs(rows - columns) <= 2
    centre = np.argwhere(red).mean(axis=0)
    assert np.abs(centre - [(height - 1) / 2, (width - 1) / 2]).max() < 1


def test_a_background_image_of_the_same_size_is_not_changed():
    card = noise()
    assert np.array_equal(image_background(card)(noise()[::-1], ramp()), card)


def disc_scene(height=180, width=240):
    """A red disc with a soft edge in front of a grey-blue gradient: the image, its alpha, and the
    gradient without the disc."""
    y, x = np.mgrid[:height, :width]
    far = np.hypot(y - height * 0.6, x - width / 2) / height
    alpha = np.clip((0.3 - far) / 0.05, 0, 1).astype(np.float32)
    wall = np.dstack([0.2 + 0.1 * x / width, 0.3 + 0.2 * y / height, np.full(x.shape, 0.5)])
    image = alpha[..., None] * [1.0, 0.0, 0.0] + (1 - alpha[..., None]) * wall
    return image, alpha, wall


@pytest.mark.parametrize("strength", [0.01, 0.03, 0.1])
def test_a_blur_has_no_halo_of_the_person(strength):
    image, alpha, wall = disc_scene()
    background = Blur(strength)(image, alpha)
    around = alpha < 0.5
    plain = Blur(strength)(image, np.zeros_like(alpha))
    halo = np.abs(background - wall)[around].mean()
    assert halo < np.abs(plain - wall)[around].mean() / 2
    assert halo < 0.02
    assert background[..., 0].max() < 0.6  # the red is gone even behind the person


def test_a_blur_blurs_and_scales_with_the_image():
    image = noise(120, 160, dtype=np.float32)
    empty = np.zeros((120, 160), np.float32)
    spreads = [Blur(strength)(image, empty).std() for strength in (0.005, 0.02, 0.1)]
    assert image.std() > spreads[0] > spreads[1] > spreads[2]
    double = image.repeat(2, axis=0).repeat(2, axis=1)
    large = Blur(0.05)(double, np.zeros((240, 320), np.float32))
    small = Blur(0.05)(image, empty)
    assert np.abs(large[::2, ::2] - small).mean() < 0.01


@pytest.mark.parametrize("level", [0.0, 0.3, 0.9])
def test_a_blur_keeps_an_even_colour(level):
    image = np.full((50, 70, 3), 120, np.uint8)
    assert (Blur()(image, np.full((50, 70), level, np.float32)) == 120).all()


def test_a_checkerboard_alternates():
    shown = checkerboard(squares=3)(noise(30, 40), ramp(30, 40))
    assert (shown[:10, :10] == 255).all()
    assert (shown[:10, 10:20] == 204).all()
    assert (shown[10:20, :10] == 204).all()
    assert (shown[10:20, 10:20] == 255).all()


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: color("#12"),
        lambda: color("#11223344"),
        lambda: Blur(0),
        lambda: Blur(float("nan")),
        lambda: checkerboard(0),
        lambda: image_background(np.zeros((0, 4, 3), np.uint8)),
        lambda: image_background(np.zeros((4, 4), np.uint8)),
        lambda: Blur()(noise(), ramp(3, 3)),
    ],
)
def test_wrong_backgrounds_are_refused(mistake):
    with pytest.raises(PortraitmattingError) as caught:
        mistake()
    assert str(caught.value).isprintable()


# Command lines


def test_texts_become_backgrounds(tmp_path):
    image, alpha = noise(dtype=np.float32), ramp()
    card = noise()[::-1]
    write_image(tmp_path / "my wall.png", card)
    for text, expected in {
        "red": color("red"),
        "#abc": color("#aabbcc"),
        "blur": Blur(),
        "blur:0.1": Blur(0.1),
        "checkerboard": checkerboard(),
        "chequer": checkerboard(),  # the word of older versions
        str(tmp_path / "my wall.png"): image_background(card),
    }.items():
        assert np.array_equal(parse_background(text)(image, alpha), expected(image, alpha))


@pytest.mark.parametrize("text", ["reddish", "#12", "blur:", "blur:9", "blur:much", "a\nb.png", ""])
def test_the_error_for_other_texts_lists_what_is_allowed(text):
    with pytest.raises(PortraitmattingError, match="blur") as caught:
        parse_background(text)
    assert str(caught.value).isprintable()


def test_the_error_for_a_damaged_image_says_what_is_wrong_with_it(tmp_path):
    (tmp_path / "wall.png").write_bytes(b"")
    with pytest.raises(PortraitmattingError, match=r"wall\.png.*empty"):
        parse_background(str(tmp_path / "wall.png"))


def test_portraitmatting_composite_is_always_the_function():
    """A module of that name would replace the function when it is imported."""
    code = "from portraitmatting import Predictor, composite; assert callable(composite), composite"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_backgrounds_are_converted_to_the_images_profile(tmp_path, dtype):
    """Colours, images and checkerboards are sRGB. A blur has the image's profile already, and the
    result of a callable is taken as it is."""
    adobe = adobe_rgb()
    photo, nobody = to_dtype(noise(), dtype), np.zeros((24, 32), np.float32)
    green = np.full((24, 32, 3), (0, 177, 64), np.uint8)
    expected = convert_rgb(green, None, adobe)
    assert np.abs(expected[0, 0].astype(int) - (0, 177, 64)).max() > 40
    write_image(tmp_path / "srgb.png", green)
    write_image(tmp_path / "adobe.png", expected, adobe)
    for background in ("#00b140", green, str(tmp_path / "srgb.png"), str(tmp_path / "adobe.png")):
        seen = composite(photo, nobody, background, icc_profile=adobe)
        assert seen.dtype == dtype
        assert np.abs(to_unit(seen) - to_unit(expected)).max() < 2.5 / 255
    white = composite(photo, nobody, "checkerboard", icc_profile=adobe)
    assert to_unit(white).max() > 0.99
    for background in ("blur", lambda image, alpha: image[::-1]):
        plain = composite(photo, nobody, background)
        assert np.array_equal(composite(photo, nobody, background, icc_profile=adobe), plain)
