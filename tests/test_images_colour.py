"""What colours mean (ICC profiles and other notes), depth, and the kinds that phones write."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from portraitmatting.images.colour import (
    adobe_rgb,
    convert_rgb,
    make_profile,
    profile_of_codes,
)
from portraitmatting.images.decode import decode
from portraitmatting.images.encode import encode_image

P3 = profile_of_codes(12, 13)
GREEN = np.array([0, 177, 64], np.uint8)


def smooth(height=48, width=64, dtype=np.uint8):
    y, x = np.mgrid[:height, :width]
    rgb = np.dstack([x / width, y / height, 1 - x / width])
    return np.rint(rgb * np.iinfo(dtype).max).astype(dtype)


def saved(pixels, kind, **options):
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def with_chunks(png, **chunks):
    packed = b""
    for kind, content in chunks.items():
        chunk = kind.encode() + content
        packed += struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:33] + packed + png[33:]


def as_srgb(image):
    """As a colour-managed viewer shows it, by Pillow's own way to littleCMS."""
    rgb = Image.fromarray(image.pixels)
    if image.icc_profile is None:
        return np.asarray(rgb).astype(int)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.icc_profile))
    converted = ImageCms.profileToProfile(rgb, profile, ImageCms.createProfile("sRGB"), 1)
    return np.asarray(converted).astype(int)


# sRGB into a photo's profile, and back


@pytest.mark.parametrize("profile", [P3, adobe_rgb(), profile_of_codes(9, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_background_keeps_its_look_in_a_wide_profile(profile, dtype):
    full = 1 if dtype == np.float32 else np.iinfo(dtype).max
    pixels = (np.broadcast_to(GREEN, (5, 7, 3)) / 255 * full).astype(dtype)
    converted = convert_rgb(pixels, None, profile)
    assert converted.dtype == dtype
    assert converted.shape == pixels.shape
    assert abs(converted[0, 0, 0] / full * 255 - GREEN[0]) > 40
    eight = np.rint(converted / full * 255).astype(np.uint8)
    viewed = ImageCms.profileToProfile(
        Image.fromarray(eight),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        1,
    )
    assert np.abs(np.asarray(viewed)[0, 0].astype(int) - GREEN).max() <= 3
    back = convert_rgb(converted, profile, None)
    assert np.abs(back.astype(float) - pixels).max() <= 3 * full / 255


@pytest.mark.parametrize(
    "colour", [(0, 177, 64), (255, 255, 255), (0, 0, 0), (3, 250, 7), (90, 0, 1)]
)
def test_a_flat_8_bit_background_is_seen_as_asked_in_the_widest_profile(colour):
    prophoto = make_profile((0.3457, 0.3585), (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), 1.8)
    pixel = convert_rgb(np.array([[colour]], np.uint8), None, prophoto)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(prophoto))
    seen = ImageCms.profileToProfile(
        Image.fromarray(pixel), profile, ImageCms.createProfile("sRGB")
    )
    assert np.abs(np.asarray(seen)[0, 0].astype(int) - colour).max() <= 5


def test_without_a_sound_profile_nothing_is_converted():
    pixels = smooth()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (None, b"", b"junk", lab, P3[:200]):
        assert np.array_equal(convert_rgb(pixels, None, profile), pixels)


# Meaning that is no ICC profile


def test_cameras_that_note_adobe_rgb_in_exif():
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 65535, 0xA005: {1: "R03"}}
    image = decode(saved(smooth(), "JPEG", exif=exif.tobytes()))
    assert image.icc_profile == adobe_rgb()
    # An ICC profile counts for more, and calibrated files are sRGB.
    assert decode(saved(smooth(), "JPEG", exif=exif.tobytes(), icc_profile=P3)).icc_profile == P3
    exif[0x8769] = {0xA001: 1}
    assert decode(saved(smooth(), "JPEG", exif=exif.tobytes())).icc_profile is None
    # A result says it by its profile, and nothing contradicts that.
    result = encode_image(image.pixels, ".jpg", image.icc_profile, image.metadata)
    assert 0xA001 not in Image.open(io.BytesIO(result)).getexif().get_ifd(0x8769)


def test_png_chunks_about_colour():
    png = saved(np.full((4, 4, 3), 128, np.uint8), "PNG")
    srgb_primaries = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    wide_primaries = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    for chunks in (
        {"gAMA": struct.pack(">I", 45455), "cHRM": srgb_primaries},
        {"sRGB": b"\0", "gAMA": struct.pack(">I", 100000)},
        {"gAMA": bytes(4)},
        {"cICP": bytes([1, 13, 0, 1]), "gAMA": struct.pack(">I", 100000)},
        {"cHRM": bytes(32)},
    ):
        assert decode(with_chunks(png, **chunks)).icc_profile is None, chunks
    linear = decode(with_chunks(png, gAMA=struct.pack(">I", 100000)))
    assert np.abs(as_srgb(linear) - 188).max() <= 1  # half the light
    grey = saved(np.full((4, 4), 128, np.uint8), "PNG")
    assert (
        np.abs(as_srgb(decode(with_chunks(grey, gAMA=struct.pack(">I", 100000)))) - 188).max() <= 1
    )

    colour = saved(
        np.broadcast_to(convert_rgb(GREEN[None, None], None, P3), (4, 4, 3)).copy(), "PNG"
    )
    for chunks in ({"cHRM": wide_primaries}, {"cICP": bytes([12, 13, 0, 1])}):
        assert np.abs(as_srgb(decode(with_chunks(colour, **chunks)))[0, 0] - GREEN).max() <= 3


def test_nclx_of_heic_and_avif():
    colour = np.broadcast_to(convert_rgb(GREEN[None, None], None, P3), (32, 32, 3)).copy()
    heic = saved(colour, "HEIF", quality=-1, chroma=444, color_primaries=12,
                 transfer_characteristics=13, matrix_coefficients=6, full_range_flag=1)  # fmt: skip
    avif = imagecodecs.avif_encode(colour, level=100, pixelformat="444", primaries=12, transfer=13)
    for data in (heic, avif):
        image = decode(data)
        assert image.icc_profile == P3
        assert np.abs(as_srgb(image)[0, 0] - GREEN).max() <= 6
    assert decode(saved(colour, "HEIF")).icc_profile is None
    assert decode(saved(colour, "AVIF")).icc_profile is None


def test_grey_with_a_profile_of_its_own_becomes_srgb():
    profile = imagecodecs.cms_profile("gray", whitepoint=[0.3457, 0.3585, 1], gamma=1.0)
    for dtype in (np.uint8, np.uint16):
        grey = np.full((6, 6), np.iinfo(dtype).max // 2, dtype)
        png = encode_image(grey, ".png")
        chunk = {"iCCP": b"grey\0\0" + zlib.compress(profile)}
        image = decode(with_chunks(png, **chunk))
        assert image.icc_profile is None
        assert abs(image.pixels.mean() / np.iinfo(dtype).max * 255 - 188) < 2


# Depth


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_and_heic_keep_their_depth(bits):
    deep = smooth(dtype=np.uint16)
    avif = imagecodecs.avif_encode(deep >> (16 - bits), level=100, bitspersample=bits)
    files = [avif]
    if bits == 10:
        heif = pillow_heif.from_bytes("RGB;16", (64, 48), deep.astype("<u2").tobytes())
        buffer = io.BytesIO()
        heif.save(buffer, quality=-1, chroma=444)
        files.append(buffer.getvalue())
    for data in files:
        image = decode(data)
        assert image.pixels.dtype == np.uint16
        assert (image.pixels.astype(int) % 257 != 0).mean() > 0.5
        assert np.abs(image.pixels.astype(int) - deep).mean() < 700
        assert image.pixels.max() > 65400


def test_pnm_jpeg_xl_and_png_keep_16_bits():
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    ppm = b"P6 # made by hand\n30 20\n# more\n65535\n" + deep.astype(">u2").tobytes()
    text = b"P3\n30 20\n65535\n" + b" ".join(b"%d" % value for value in deep.flat)
    for data in (ppm, text, imagecodecs.jpegxl_encode(deep, lossless=True),
                 encode_image(deep, ".png")):  # fmt: skip
        assert np.array_equal(decode(data).pixels, deep)
    low = b"P5 30 20 1023\n" + (deep[..., 0] >> 6).astype(">u2").tobytes()
    assert np.abs(decode(low).pixels[..., 0] / 65535 - (deep[..., 0] >> 6) / 1023).max() < 1e-4
    assert decode(b"P5 2 1 255\n\x00\xff").pixels[0, :, 0].tolist() == [0, 255]


def test_16_bit_png_with_one_transparent_colour():
    deep = np.full((4, 4, 3), 1000, np.uint16)
    deep[:2] = 77
    image = decode(with_chunks(encode_image(deep, ".png"), tRNS=struct.pack(">3H", 77, 77, 77)))
    assert image.alpha.tolist() == [[0] * 4] * 2 + [[65535] * 4] * 2
    assert (image.pixels[:2] == 65535).all()
    assert (image.pixels[2:] == 1000).all()


# Kinds


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "JPEG2000"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_phones_and_archives(kind, mode):
    pixels = np.dstack([smooth(), np.full((48, 64), 255, np.uint8)])
    pixels[:8, :, 3] = 0
    image = decode(saved(Image.fromarray(pixels).convert(mode), kind))
    expected = np.asarray(Image.fromarray(smooth()).convert(mode).convert("RGB")).astype(int)
    assert np.abs(image.pixels[10:].astype(int) - expected[10:]).mean() < 4
    assert (image.alpha is not None) == (mode == "RGBA")
    if image.alpha is not None:
        assert (image.alpha[:8] < 5).all()
        assert (image.alpha[9:] > 250).all()


def test_heic_is_turned_once():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Phone"
    image = decode(saved(smooth(), "HEIF", exif=exif.tobytes()))
    assert image.pixels.shape == (64, 48, 3)
    assert b"Phone" in image.metadata.exif


def test_bitmaps_of_32_bits():
    def bitmap(alpha):
        pixels = np.zeros((4, 4, 4), np.uint8)
        pixels[..., 2], pixels[..., 3] = 200, alpha  # red
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        header = struct.pack("<IiiHHIIiiII", 124, 4, -4, 1, 32, 3, 64, 0, 0, 0, 0)
        header = (header + masks).ljust(124, b"\0")
        return struct.pack("<2sIHHI", b"BM", 138 + 64, 0, 0, 138) + header + pixels.tobytes()

    image = decode(bitmap(0))
    assert image.alpha is None
    assert (image.pixels == [200, 0, 0]).all()
    half = np.tile(np.array([0, 255], np.uint8), (4, 2))
    image = decode(bitmap(half))
    assert np.array_equal(image.alpha, half)
    assert (image.pixels[:, 0] == 255).all()


def test_metadata_of_any_size():
    profile = P3 + bytes(2 << 20)
    xmp = b"<x:xmpmeta>" + bytes(range(65, 91)) * 100_000 + b"</x:xmpmeta>"
    png = saved(smooth(), "PNG", icc_profile=profile)
    text = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    image = decode(with_chunks(png, iTXt=text, zTXt=b"Comment\0\0" + zlib.compress(bytes(9 << 20))))
    assert image.icc_profile == profile
    assert image.metadata.xmp == xmp
    for suffix in (".png", ".tif", ".webp", ".jpg"):  # JPEG holds no more than 64 KB of it
        again = decode(encode_image(image.pixels, suffix, image.icc_profile, image.metadata))
        assert again.icc_profile == profile
        assert again.metadata == (None if suffix == ".jpg" else image.metadata)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_of_few_bits_with_one_transparent_level(bits):
    largest = (1 << bits) - 1
    levels = [largest, 0] * 8
    row = int("".join(f"{level:0{bits}b}" for level in levels), 2).to_bytes(2 * bits, "big")
    for level, alpha in ((largest, [0, 255] * 8), (0, [255, 0] * 8)):
        chunks = {
            "IHDR": struct.pack(">IIBBBBB", 16, 1, bits, 0, 0, 0, 0),
            "tRNS": struct.pack(">H", level),
            "IDAT": zlib.compress(b"\0" + row),
            "IEND": b"",
        }
        image = decode(b"\x89PNG\r\n\x1a\n" + with_chunks(bytes(33), **chunks)[33:])
        assert image.alpha[0].tolist() == alpha
