"""What can be given as an image: arrays, paths, bytes, open files, PIL images."""

import io

import numpy as np
import pytest
from PIL import Image

from portraitmatting import PortraitmattingError, read_image, write_image
from portraitmatting.images.pixels import to_dtype
from portraitmatting.images.source import as_image, as_rgb


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
def test_grey_becomes_rgb_and_keeps_its_values(dtype):
    grey = np.array([[0, 1], [1, 0], [0, 0]], dtype)
    for image in (grey, grey[:, :, None], np.dstack([grey] * 3)):
        rgb = as_rgb(image)
        assert rgb.dtype == (np.float32 if np.dtype(dtype).kind == "f" else dtype)
        np.testing.assert_array_equal(rgb, np.dstack([grey] * 3))


REFUSED = {
    "rgba": (np.zeros((5, 6, 4), np.uint8), "5x6x4: drop its alpha channel"),
    "chw": (np.zeros((3, 5, 6), np.uint8), "3x5x6: put the colours last"),
    "batch": (np.zeros((1, 5, 6, 3), np.uint8), "1x5x6x3"),
    "two channels": (np.zeros((5, 6, 2), np.uint8), "5x6x2"),
    "vector": (np.zeros(5, np.uint8), "got 5$"),
    "scalar": (np.float32(0.5), "expected an RGB"),
    "no rows": (np.zeros((0, 6, 3), np.uint8), "0x6x3"),
    "no columns": (np.zeros((5, 0), np.uint8), "5x0"),
    "no channels": (np.zeros((5, 6, 0), np.uint8), "5x6x0"),
    "nan": (np.full((5, 6, 3), np.nan, np.float32), "0..1"),
    "one nan": (np.pad(np.full((1, 1), np.nan), 3), "0..1"),
    "0..255 as float": (np.full((5, 6, 3), 200.0, np.float32), "divide by"),
    "negative": (np.full((5, 6, 3), -0.5, np.float32), "0..1"),
    "int64": (np.zeros((5, 6, 3), np.int64), "int64.*use uint8, uint16 or float"),
    "bool": (np.zeros((5, 6), bool), "bool"),
    "complex": (np.zeros((5, 6), complex), "complex"),
    "object": (np.full((5, 6), None), "object"),
}


@pytest.mark.parametrize(("image", "message"), REFUSED.values(), ids=REFUSED)
def test_arrays_that_are_no_images_are_refused_in_one_line(image, message):
    with pytest.raises(PortraitmattingError, match=message) as caught:
        as_rgb(image)
    assert "\n" not in str(caught.value)


def test_an_image_may_be_a_path_bytes_a_file_or_a_pil_image(tiny_predictor, photo, tmp_path):
    write_image(tmp_path / "photo.png", photo)
    data = (tmp_path / "photo.png").read_bytes()
    expected = tiny_predictor.predict(photo)
    sources = [tmp_path / "photo.png", str(tmp_path / "photo.png"), data, io.BytesIO(data)]
    sources += [Image.fromarray(photo), Image.open(io.BytesIO(data)), read_image(sources[0])]
    for source in sources:
        matte = tiny_predictor.predict(source)
        np.testing.assert_array_equal(matte.image, photo)
        np.testing.assert_array_equal(matte.alpha, expected.alpha)


def test_a_pil_image_gives_the_same_as_its_file(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.fromarray(photo).convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.arange(120, dtype=np.uint8) * 2, (90, 1))))
    palette = Image.fromarray(photo).quantize(30)
    cases = {
        "turned.png": (Image.fromarray(photo), {"exif": exif}),
        "turned.tif": (Image.fromarray(photo), {"exif": exif}),
        "palette.png": (palette, {"transparency": 3}),
        "clear.png": (clear, {}),
        "grey-alpha.png": (clear.convert("LA"), {}),
        "cmyk.tif": (Image.fromarray(photo).convert("CMYK"), {}),
        "one-bit.png": (Image.fromarray(photo).convert("1"), {}),
        "deep.png": (Image.fromarray(photo[..., 0].astype(np.uint16) * 257), {}),
    }
    for name, (image, options) in cases.items():
        image.save(tmp_path / name, **options)
        from_file, opened = read_image(tmp_path / name), Image.open(tmp_path / name)
        for source in (opened, opened.copy()):
            outputs = as_image(source)
            np.testing.assert_array_equal(outputs.pixels, from_file.pixels, name)
            assert (outputs.alpha is None) == (from_file.alpha is None), name
            if outputs.alpha is not None:
                np.testing.assert_array_equal(outputs.alpha, from_file.alpha, name)
    assert as_image(Image.open(tmp_path / "turned.png")).pixels.shape == (120, 90, 3)


@pytest.mark.parametrize("source", [None, "nothere.jpg", "", b"", b"text", 3, [[1], [2, 3]], {}])
def test_the_error_for_what_is_no_image_names_its_type(tiny_predictor, source):
    with pytest.raises(PortraitmattingError) as caught:
        tiny_predictor.predict(source)
    assert str(caught.value).isprintable() and not str(caught.value).endswith("got ")
    if source is None:
        assert "got NoneType" in str(caught.value)


def test_open_files_that_give_no_bytes_are_refused(tiny_predictor, tmp_path):
    closed = io.BytesIO(b"")
    closed.close()
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10")
    with (
        (tmp_path / "a.jpg").open(encoding="utf-8") as as_text,
        (tmp_path / "new").open("wb") as to_write,
    ):
        for source in (closed, io.StringIO("text"), as_text, to_write):
            with pytest.raises(PortraitmattingError, match=r"^the open file .+path$"):
                tiny_predictor.predict(source)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pil_images_without_pixels_are_refused(tiny_predictor, mode, size):
    with pytest.raises(PortraitmattingError, match="has no pixels"):
        tiny_predictor.predict(Image.new(mode, size))


def test_arrays_of_either_byte_order_give_the_same_matte(tiny_predictor, photo):
    deep = to_dtype(photo, np.uint16)
    swapped = tiny_predictor.predict(deep.astype(deep.dtype.newbyteorder(">")))
    np.testing.assert_array_equal(swapped.alpha, tiny_predictor.predict(deep).alpha)
