"""What can be made of a matte: results, files, crops, and what a notebook shows."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from portraitmatting import (
    Matte,
    PortraitmattingError,
    composite,
    estimate_foreground,
    load_model,
    write_image,
)
from portraitmatting.choices import KINDS
from portraitmatting.compositing import Blur, checkerboard, rgba
from portraitmatting.images.metadata import Metadata
from portraitmatting.images.pixels import to_dtype

PEAKS = {np.uint8: 255, np.uint16: 65535, np.float32: 1}


def test_the_foreground_is_estimated_on_first_use_and_once(tiny_predictor, photo, monkeypatch):
    calls = []

    def estimate(image, *_):
        calls.append(1)
        return image

    monkeypatch.setattr("portraitmatting.matte.estimate_foreground", estimate)
    matte = tiny_predictor.predict(photo)
    assert not calls
    assert matte.foreground is matte.foreground
    matte.rgba()
    matte.composite("red")
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", PEAKS)
def test_a_cut_out_keeps_depth_colours_and_alpha(matte, dtype):
    peak = PEAKS[dtype]
    image = (matte.image / 255 * peak).astype(dtype)
    cut_out = Matte(image, matte.alpha, matte.trimap).rgba()
    assert cut_out.shape == (90, 120, 4)
    assert cut_out.dtype == dtype
    np.testing.assert_allclose(cut_out[..., 3] / peak, matte.alpha, atol=0.5 / 255)
    np.testing.assert_array_equal(cut_out[45, 60, :3], image[45, 60])


def test_a_result_has_the_kind_method_and_dtype_that_were_asked_for(matte):
    image, alpha = matte.image, matte.alpha
    fast = estimate_foreground(to_dtype(image, np.uint16), alpha, "fast")
    made = {kind: matte.result(kind, "teal", "fast", np.uint16) for kind in KINDS}
    np.testing.assert_array_equal(made["alpha"], to_dtype(alpha, np.uint16))
    np.testing.assert_array_equal(made["foreground"], fast)
    np.testing.assert_array_equal(made["rgba"], rgba(fast, alpha))
    np.testing.assert_array_equal(made["composite"], composite(fast, alpha, "teal"))
    assert matte.result("alpha").dtype == np.uint8
    for mistake in ({"kind": "shadow"}, {"method": "best"}, {"dtype": "int8"}):
        with pytest.raises(PortraitmattingError, match=r"shadow|best|int8"):
            matte.result(**mistake)


def test_composites_take_colours_images_blurs_and_callables(matte, rng):
    outside, inside = matte.alpha == 0, matte.alpha == 1
    red = matte.composite("red")
    assert (red[outside] == [255, 0, 0]).all()
    np.testing.assert_array_equal(red[inside], matte.image[inside])
    pixels = np.full((7, 300, 3), 77, np.uint8)  # another size and aspect
    assert (matte.composite(pixels)[outside] == 77).all()
    assert (matte.composite(pixels / np.float32(255))[outside] == 77).all()
    same_size = rng.integers(0, 256, matte.image.shape, np.uint8)
    np.testing.assert_array_equal(matte.composite(same_size)[outside], same_size[outside])
    np.testing.assert_array_equal(
        matte.composite(lambda image, alpha: image // 2)[outside], matte.image[outside] // 2
    )


def test_a_blur_shows_the_image_and_not_its_foreground(matte, monkeypatch):
    monkeypatch.setattr(
        "portraitmatting.matte.estimate_foreground", lambda image, *_: np.zeros_like(image)
    )
    blurred = matte.composite("blur:0.02")
    far = np.s_[:3, :, :]  # rows above the person
    assert np.abs(blurred[far].astype(int) - matte.image[far]).max() < 25


def test_a_background_of_another_size_from_a_callable_is_refused(matte):
    with pytest.raises(PortraitmattingError, match="does not fit"):
        matte.composite(lambda image, alpha: image[:5])
    with pytest.raises(PortraitmattingError, match="no-such-colour"):
        matte.composite("no-such-colour")


@pytest.mark.parametrize("dtype", PEAKS)
def test_a_notebook_shows_the_cut_out(matte, dtype):
    peak = PEAKS[dtype]
    shown = Matte((matte.image / 255 * peak).astype(dtype), matte.alpha, matte.trimap)
    png = Image.open(io.BytesIO(shown._repr_png_()))
    assert (png.format, png.mode, png.size) == ("PNG", "RGBA", (120, 90))
    assert png.getpixel((60, 45))[3] == 255
    assert png.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize(("shape", "size"), [((600, 2048), (1024, 300)), ((3000, 1), (1, 1024))])
def test_a_notebook_shows_a_small_copy_of_a_large_image(shape, size):
    matte = Matte(
        np.zeros((*shape, 3), np.uint8), np.full(shape, 0.5, np.float32), np.zeros(shape, np.uint8)
    )
    assert Image.open(io.BytesIO(matte._repr_png_())).size == size
    assert not matte._foregrounds  # for all pixels that would take seconds


def test_results_are_saved_with_profile_and_metadata(matte, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    matte = replace(matte, icc_profile=profile, metadata=Metadata(dpi=(300, 300)))
    for name, kind, mode in [
        ("a.png", "rgba", "RGBA"),
        ("a.jpg", "composite", "RGB"),
        ("a.webp", "foreground", "RGB"),
        ("a.tif", "alpha", "L"),
    ]:
        matte.save(tmp_path / name, kind, background="teal", method="fast")
        with Image.open(tmp_path / name) as saved:
            assert saved.mode == mode
            assert (saved.info.get("icc_profile") is not None) == (kind != "alpha")
            assert name == "a.webp" or round(saved.info["dpi"][0]) == 300
        shown = matte.to_pil(kind, "teal", "fast")
        assert (shown.mode, shown.size) == (mode, (120, 90))
        np.testing.assert_array_equal(shown, matte.result(kind, "teal", "fast"))
    for path in ("a.jpg", "a.gif", "nowhere/a.png"):
        with pytest.raises(PortraitmattingError, match=r"a\."):
            matte.save(tmp_path / path)


def test_a_crop_contains_the_whole_person_and_a_margin(matte):
    inside = np.argwhere(matte.alpha > 0)
    top, bottom = inside[:, 0].min(), inside[:, 0].max() + 1
    tight = matte.crop()
    assert tight.alpha.shape == tight.image.shape[:2] == tight.trimap.shape
    assert abs(tight.alpha.shape[0] - (bottom - top)) <= 2
    assert tight.alpha.sum() == pytest.approx(matte.alpha.sum(), rel=1e-3)
    wide = matte.crop(0.1)
    side = max(tight.alpha.shape)
    assert wide.alpha.shape[1] == tight.alpha.shape[1] + 2 * round(0.1 * side)
    assert matte.crop(9).alpha.shape == matte.alpha.shape
    empty = Matte(matte.image, np.zeros_like(matte.alpha), matte.trimap)
    assert empty.is_empty and not matte.is_empty
    assert empty.crop(0.1).alpha.shape == empty.alpha.shape
    for margin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(PortraitmattingError, match="margin"):
            matte.crop(margin)


ALPHA = np.full((8, 9), 0.5, np.float32)
IMAGE = np.full((8, 9, 3), 100, np.uint8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: composite([[1]], ALPHA, "red"), "expected a NumPy array HxWx3, got list"),
        (lambda: composite(IMAGE, None, "red"), "expected a NumPy array HxW, got NoneType"),
        (lambda: composite(IMAGE, ALPHA, None), "expected a background .*, got NoneType"),
        (lambda: composite(IMAGE, ALPHA, Path("a.png")), "expected a background .*, got PosixPath"),
        (lambda: composite(IMAGE, ALPHA, Blur), "expected a background .*, got Blur"),
        (lambda: composite(IMAGE, ALPHA, lambda *_: None), "gives NoneType"),
        (lambda: composite(IMAGE[:, :0], ALPHA[:, :0], "blur"), r"got \(8, 0, 3\)"),
        (lambda: Blur("much"), "blur strength"),
        (lambda: checkerboard(float("nan")), "1 square"),
        (lambda: estimate_foreground(torch.zeros(8, 9, 3), ALPHA), "got Tensor"),
        (lambda: estimate_foreground(IMAGE, ALPHA, device="gpu"), "unknown device 'gpu'"),
        (lambda: estimate_foreground(IMAGE, ALPHA, device="cuda:99"), "device 'cuda:99'"),
        (lambda: estimate_foreground(np.zeros((8, 9, 3), "g"), ALPHA), "of type .* not supported"),
        (lambda: Matte(IMAGE, ALPHA, None).result("alpha", dtype="x"), "results of type 'x'"),
        (lambda: write_image("a.png", [[1]]), "expected a NumPy array of pixels, got list"),
        (lambda: load_model(3), "expected a checkpoint's name or path, got int"),
    ],
)
def test_mistakes_in_calls_are_one_line(call, words):
    with pytest.raises(PortraitmattingError, match=words):
        call()


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_the_byte_order_of_files_is_no_mistake(dtype):
    image, order = (IMAGE / 255).astype(dtype), np.dtype(dtype).newbyteorder("=")
    expected = estimate_foreground(image.astype(order), ALPHA)
    np.testing.assert_array_equal(estimate_foreground(image, ALPHA), expected)
    assert Matte(IMAGE, ALPHA, None).result("rgba", dtype=dtype).dtype == dtype
