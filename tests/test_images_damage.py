"""Damaged, incomplete and hostile files: an error in one line, or an image, and nothing else."""

import os
import random
import subprocess
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.fuzz_decode import damage, outcome, samples
from image_samples import close, noise, read_bytes, saved, smooth
from portraitmatting.errors import ImageError
from portraitmatting.images.decode import decode
from portraitmatting.images.files import read_image, write_image
from portraitmatting.images.listing import list_images

SAMPLES = samples()


def truncated(kind, part=0.6, **options):
    data = saved(Image.fromarray(noise(90, 120, 3)), kind, **options)
    return data[: int(len(data) * part)]


HEAD_ONLY = saved(Image.fromarray(smooth()), "JPEG")[:20]
BROKEN = {
    "empty": (b"", "empty .0 bytes."),
    "text": (b"hello, I am a text", "text, not an image"),
    "html": (b"\n<!DOCTYPE html><html></html>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
    "zeros": (bytes(5000), "unknown kind"),
    "head": (HEAD_ONLY, "JPEG|damaged"),
    "float": (saved(Image.new("F", (4, 4), 255), "TIFF"), "floating-point.*255.*scale"),
    "negative": (saved(Image.new("I", (4, 4), -5), "TIFF"), "signed integers.*export"),
    "jpeg": (truncated("JPEG"), "damaged or incomplete"),
    "progressive": (truncated("JPEG", progressive=True), "damaged or incomplete"),
    "png": (truncated("PNG"), "damaged or incomplete"),
    "webp": (truncated("WEBP"), "damaged or incomplete"),
    "gif": (truncated("GIF"), "damaged or incomplete"),
    "bmp": (truncated("BMP"), "damaged or incomplete"),
    "tiff": (truncated("TIFF", compression="tiff_adobe_deflate"), "damaged or incomplete"),
    "deep": (
        cv2.imencode(".png", noise(90, 90, 3, dtype=np.uint16))[1].tobytes()[:9000],
        "damaged",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, case):
    data, says = BROKEN[case]
    with pytest.raises(ImageError, match=says) as caught:
        read_bytes(tmp_path, data, "my\nimage.jpg")
    message = str(caught.value)
    assert "my\\nimage.jpg" in message
    assert message.isprintable()


def test_missing_files_and_folders_are_clear(tmp_path):
    for path in (tmp_path / "no.png", tmp_path, tmp_path / "nul\0.png"):
        with pytest.raises(ImageError, match="cannot be opened") as caught:
            read_image(path)
        assert str(caught.value).isprintable()


def test_a_decompression_bomb_is_refused_without_a_warning(tmp_path, monkeypatch):
    data = saved(Image.new("1", (400, 400)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 300)  # Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_bytes(tmp_path, data).pixels.shape == (400, 400, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 100)  # Pillow refuses
    with pytest.raises(ImageError, match="megapixels: scale"):
        read_bytes(tmp_path, data)


def test_odd_exif_neither_warns_nor_costs_the_image(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exif in (b"Exif\0\0II*\0\x08\0\0\0\x09\0", b"Exif\0\0garbage", b"Exif\0\0II*\0"):
            data = saved(Image.fromarray(smooth()), "JPEG", exif=exif)
            assert close(read_bytes(tmp_path, data).pixels, smooth())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_an_image_error_or_an_image(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"]))
    content = bytearray(saved(Image.fromarray(smooth(12, 14)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("a") / "a.jpg"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert read_image(path).pixels.ndim == 3
        except ImageError as error:
            assert str(error).isprintable()


# Damage that a file's own checks tell


@pytest.mark.parametrize("kind", ["PNG", "PNG 16 bits", "PNG palette"])
def test_every_flipped_bit_of_a_png_is_noticed(kind):
    sound = SAMPLES[kind]
    for bit in random.Random(0).sample(range(8 * len(sound)), 400):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError):
            decode(bytes(data))
    data = bytearray(sound)
    data[sound.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageError, match=r"damaged \(the checksum of IDAT .*copy or export"):
        decode(bytes(data))


def test_a_png_whose_checksums_are_right_and_pixels_are_few():
    for bits, colour in ((8, 2), (16, 2), (16, 6), (16, 0)):
        width = {0: 1, 2: 3, 6: 4}[colour] * bits // 8 * 20
        rows = zlib.compress(bytes((1 + width) * 7))  # of 20

        def chunk(kind, content):
            both = kind + content
            size, checksum = len(content), zlib.crc32(both)
            return size.to_bytes(4, "big") + both + checksum.to_bytes(4, "big")

        header = bytes([0, 0, 0, 20, 0, 0, 0, 20, bits, colour, 0, 0, 0])
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
        with pytest.raises(ImageError, match="damaged"):
            decode(data + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["JPEG", "JPEG grey", "JPEG progressive"])
def test_a_jpeg_cut_in_its_scan_with_an_end_marker(kind):
    pixels = Image.fromarray(noise(120, 160, 3)).convert("L" if "grey" in kind else "RGB")
    sound = saved(pixels, "JPEG", progressive="progressive" in kind)
    assert decode(sound).pixels.shape == (120, 160, 3)
    for share in (0.3, 0.6, 0.9) if kind != "JPEG progressive" else ():
        with pytest.raises(ImageError, match="damaged or incomplete"):
            decode(sound[: int(len(sound) * share)] + b"\xff\xd9")
    grey = Image.new("L", (40, 40), 128)  # ends like a cut one, and is sound
    assert (decode(saved(grey, "JPEG")).pixels == 128).all()


def test_every_kind_cut_anywhere():
    for kind, sound in SAMPLES.items():
        for share in np.linspace(0, 1, 100, endpoint=False):
            data = sound[: int(len(sound) * share)]
            with pytest.raises(ImageError) as caught:
                decode(data)
                raise AssertionError(f"{kind} cut at {share:.0%} is read")
            assert str(caught.value).isprintable(), kind


def test_a_short_run_of_the_fuzz_benchmark():
    kinds = sorted(SAMPLES)
    for number in range(300):
        kind = kinds[number % len(kinds)]
        data = damage(SAMPLES[kind], random.Random(f"test {number}"))
        assert outcome(data) in ("read", "refused"), (kind, number)


# Memory


_IN_SHORT_MEMORY = """
import io, re, resource, sys
from PIL import Image
from portraitmatting.errors import ImageError
from portraitmatting.images.decode import decode
buffer = io.BytesIO()
Image.new("RGB", (4000, 3000)).save(buffer, sys.argv[1], progressive=True)
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
for spare in (10, 25, 50, 70):
    resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20, resource.RLIM_INFINITY))
    try:
        decode(buffer.getvalue())
    except ImageError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits of address space")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF", "JXL"])
def test_a_sound_file_is_not_called_damaged_in_short_memory(kind):
    run = subprocess.run(
        [sys.executable, "-c", _IN_SHORT_MEMORY, kind], capture_output=True, text=True
    )
    lines = run.stdout.splitlines()
    assert lines, run.stderr
    assert all("not enough memory" in line and "scale" in line for line in lines)


def test_a_bomb_of_any_kind_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for kind, data in SAMPLES.items():
        with pytest.raises(ImageError, match=r"megapixels: scale"):
            decode(data)
            raise AssertionError(kind)


# Names


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
@pytest.mark.parametrize(
    "name",
    ["line\nbreak.png", "-rf.png", "\udcff\udc80.png", "n" * 251 + ".png", "é" * 125 + ".png"],
)
def test_names_of_every_sort_are_read_listed_and_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SAMPLES["PNG"])
    assert [os.fsencode(path) for path in list_images(tmp_path)] == [os.fsencode(name)]
    assert read_image(path).pixels.shape == (45, 62, 3)
    path.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).isprintable()


def test_the_longest_name_can_be_written(tmp_path):
    write_image(tmp_path / ("n" * 200 + ".png"), smooth())
    assert read_image(tmp_path / ("n" * 200 + ".png")).pixels.shape == (48, 64, 3)
