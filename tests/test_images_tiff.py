"""TIFF files as many programs write them, re-made by tifffile and Pillow."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from portraitmatting.errors import ImageError
from portraitmatting.images.decode import decode


def written(pixels, **options):
    buffer = io.BytesIO()
    byteorder = options.pop("byteorder", "<")
    bigtiff = options.pop("bigtiff", False)
    with tifffile.TiffWriter(buffer, byteorder=byteorder, bigtiff=bigtiff) as file:
        file.write(pixels, metadata=None, **options)
    return buffer.getvalue()


def noise(*shape, dtype=np.uint16, largest=None):
    largest = largest or np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, largest + 1, shape).astype(dtype)


LAYOUTS = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "planes": {"planarconfig": "separate"},
    "planes, LZW": {"planarconfig": "separate", "compression": "lzw", "predictor": 2},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 32)},
    "tiles, deflate": {"tile": (16, 32), "compression": "zlib", "predictor": 2},
    "tiled planes": {"tile": (32, 16), "planarconfig": "separate", "compression": "zstd"},
    "PackBits": {"compression": "packbits"},
    "LZMA, big-endian": {"compression": "lzma", "byteorder": ">"},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_rgb(layout, dtype):
    pixels, options = noise(40, 50, 3, dtype=dtype), LAYOUTS[layout]
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    read = decode(written(stored, photometric="rgb", **options))
    assert read.pixels.dtype == dtype
    assert np.array_equal(read.pixels, pixels)
    assert read.alpha is None


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_grey_of_every_depth(photometric, bits):
    largest = (1 << bits) - 1
    grey = noise(33, 21, dtype=np.uint8 if bits <= 8 else np.uint16, largest=largest)
    if bits == 1:
        data = written(grey.astype(bool), photometric=photometric)
    else:
        packed = {} if bits in (8, 16) else {"bitspersample": bits}
        data = written(grey, photometric=photometric, **packed)
    read = decode(data)
    full = np.iinfo(read.pixels.dtype).max
    assert full == (255 if bits <= 8 else 65535)
    expected = np.rint(grey / largest * full)
    expected = full - expected if photometric == "miniswhite" else expected
    assert np.abs(read.pixels - expected[..., None]).max() <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": 3}])
def test_floats_from_0_to_1(dtype, options):
    if dtype == np.float64 and options:
        options = {"compression": "zlib"}
    pixels = np.random.default_rng(0).random((20, 30, 3)).astype(dtype)
    read = decode(written(pixels, photometric="rgb", **options))
    assert read.pixels.dtype == np.uint16
    assert np.abs(read.pixels / 65535 - pixels.astype(np.float64)).max() < 1e-4


def test_other_floats_and_integers_are_refused():
    for pixels in (
        np.full((4, 4), 200, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), 7, np.int16),
        np.full((4, 4), 7, np.uint32),
        np.full((4, 4), 7, np.complex64),
    ):
        with pytest.raises(ImageError, match=r": (scale|export)"):
            decode(written(pixels, photometric="minisblack"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extra_samples(dtype):
    full = np.iinfo(dtype).max
    pixels = noise(8, 8, 4, dtype=dtype)
    pixels[:4, :, 3] = 0

    straight = decode(written(pixels, photometric="rgb", extrasamples=["unassalpha"]))
    assert np.array_equal(straight.alpha, pixels[..., 3])
    share = pixels[..., 3:] / full
    over_white = pixels[..., :3] * share + full * (1 - share)
    assert np.abs(straight.pixels - over_white).max() <= 1

    premultiplied = pixels.copy()
    premultiplied[..., :3] = np.rint(pixels[..., :3] * share)
    read = decode(written(premultiplied, photometric="rgb", extrasamples=["assocalpha"]))
    assert np.array_equal(read.alpha, straight.alpha)
    assert np.abs(read.pixels.astype(int) - straight.pixels).max() <= 1

    # A selection saved in an editor is no transparency.
    read = decode(written(pixels, photometric="rgb", extrasamples=["unspecified"]))
    assert read.alpha is None
    assert np.array_equal(read.pixels, pixels[..., :3])

    five = np.dstack([pixels[..., :3], pixels[..., 0], pixels[..., 3]])
    read = decode(written(five, photometric="rgb", extrasamples=["unspecified", "unassalpha"]))
    assert np.array_equal(read.alpha, pixels[..., 3])

    grey = np.ascontiguousarray(pixels[..., [0, 3]])
    read = decode(
        written(grey, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    )
    assert np.array_equal(read.alpha, pixels[..., 3])


def test_cmyk_planes_palette_and_luma_with_chroma():
    inks = np.zeros((4, 8, 8), np.uint8)
    inks[1:3] = 255  # magenta and yellow
    read = decode(written(inks, photometric="separated", planarconfig="separate"))
    assert (read.pixels[0, 0] == [255, 0, 0]).all()
    deep = inks.astype(np.uint16) * 257
    read = decode(written(deep, photometric="separated", planarconfig="separate"))
    assert (read.pixels[0, 0] == [255, 0, 0]).all()

    indices = noise(8, 8, dtype=np.uint8)
    colormap = noise(3, 256)
    read = decode(written(indices, photometric="palette", colormap=colormap))
    assert np.array_equal(read.pixels, (colormap.T >> 8)[indices])

    y, x = np.mgrid[:64, :64]
    smooth = np.dstack([4 * x, 4 * y, 255 - 4 * x]).astype(np.uint8)
    for compression in ("jpeg", "tiff_lzw"):
        buffer = io.BytesIO()
        Image.fromarray(smooth).convert("YCbCr").save(buffer, "TIFF", compression=compression)
        read = decode(buffer.getvalue())
        assert np.abs(read.pixels.astype(int) - smooth).mean() < 6, compression


def test_what_a_file_lacks_is_damage_and_never_other_memory():
    pixels = noise(64, 64, 3)
    data = written(pixels, photometric="rgb", rowsperstrip=8, compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets = file.pages.first.tags[279]
        start = offsets.valueoffset
    hole = bytearray(data)
    hole[start : start + 4] = bytes(4)  # a strip of no bytes
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(hole))


def test_raw_files_of_cameras_are_refused():
    data = written(noise(9, 9, 3, dtype=np.uint8), extratags=[(50706, "B", 4, b"\1\4\0\0", True)])
    with pytest.raises(ImageError, match=r"raw file.*export"):
        decode(data)
