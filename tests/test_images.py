"""Reading and writing image files."""

import io
import os
import struct
import sys
import threading
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from image_samples import close, noise, read_bytes, saved, smooth
from portraitmatting.errors import ImageError
from portraitmatting.images import files as images
from portraitmatting.images.files import read_image, write_image
from portraitmatting.images.listing import list_images

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = [".png", ".webp", ".tif", ".tiff"]
DEEP = [".png", ".tif", ".tiff"]


# Round trips


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read(tmp_path, suffix, channels, dtype):
    pixels = noise(37, 53, channels, dtype=dtype)
    if channels == 4:
        pixels[..., 3] = np.iinfo(dtype).max
    write_image(tmp_path / f"a{suffix}", pixels, SRGB)
    read = read_image(tmp_path / f"a{suffix}")
    if dtype == np.uint16 and suffix == ".webp":
        pixels = np.rint(pixels / 257).astype(np.uint8)
    assert read.pixels.dtype == pixels.dtype
    assert read.pixels.flags.c_contiguous
    expected = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[..., :3]
    assert np.array_equal(read.pixels, expected)
    assert read.icc_profile == (None if channels == 1 else SRGB)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3, 4]),
    st.sampled_from(DEEP),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_any_size_and_depth_survives(tmp_path_factory, height, width, channels, suffix, dtype):
    pixels = noise(height, width, channels, dtype=dtype)
    if channels == 4:
        pixels[pixels[..., 3] == 0] = 0
    path = tmp_path_factory.mktemp("a") / f"a{suffix}"
    write_image(path, pixels)
    if dtype == np.uint8:
        with Image.open(path) as image:
            stored = np.asarray(image)
    else:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED).reshape(pixels.shape)
        stored = stored[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    assert np.array_equal(stored.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_alpha_is_written_straight(tmp_path, suffix):
    pixels = noise(20, 30, 4)
    write_image(tmp_path / f"a{suffix}", pixels)
    with Image.open(tmp_path / f"a{suffix}") as image:
        stored = np.asarray(image.convert("RGBA"))
    visible = pixels[..., 3] > 0
    assert np.array_equal(stored[visible], pixels[visible])
    assert np.array_equal(stored[..., 3], pixels[..., 3])


def test_a_large_tiff_of_several_strips_is_readable_by_others(tmp_path):
    pixels = noise(700, 500, 4, dtype=np.uint16) | 1
    write_image(tmp_path / "a.tif", pixels)
    with Image.open(tmp_path / "a.tif") as image:
        assert len(image.tag_v2[273]) > 1
        assert image.mode == "RGBA"
        assert np.array_equal(np.asarray(image), pixels >> 8)
    data = np.frombuffer((tmp_path / "a.tif").read_bytes(), np.uint8)
    stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored[..., [2, 1, 0, 3]], pixels)


def test_jpeg_keeps_profile_and_look(tmp_path):
    for suffix in (".jpg", ".JPEG"):
        write_image(tmp_path / f"a{suffix}", smooth(), SRGB)
        read = read_image(tmp_path / f"a{suffix}")
        assert close(read.pixels, smooth(), 2)
        assert read.icc_profile == SRGB


def test_no_grey_file_carries_an_rgb_profile(tmp_path):
    for suffix in [*LOSSLESS, ".jpg"]:
        write_image(tmp_path / f"a{suffix}", noise(9, 9), SRGB)
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert "icc_profile" not in image.info


def test_floats_are_written_with_8_bits(tmp_path):
    write_image(tmp_path / "a.png", np.array([[0.0, 0.5, 1.0]], np.float32))
    assert read_image(tmp_path / "a.png").pixels[0, :, 0].tolist() == [0, 128, 255]


# Reading what cameras and editors make


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_upright(tmp_path, kind, orientation):
    upright = smooth()
    turned = Image.fromarray(upright)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL transposition that stores it so
    if orientation > 1:
        turned = turned.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_bytes(tmp_path, saved(turned, kind, exif=exif.tobytes()))
    assert read.pixels.shape == upright.shape
    assert close(read.pixels, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_16_bit_png_comes_upright(tmp_path, orientation):
    eight, exif = Image.fromarray(smooth(6, 9)), Image.Exif()
    exif[0x0112] = orientation
    expected = read_bytes(tmp_path, saved(eight, "PNG", exif=exif.tobytes())).pixels
    plain = cv2.imencode(".png", smooth(6, 9)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    # An eXIf chunk after the header, which ends at byte 33.
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    read = read_bytes(tmp_path, plain[:33] + packed + plain[33:])
    assert read.pixels.dtype == np.uint16
    assert np.array_equal(read.pixels, expected.astype(np.uint16) * 257)


def test_palette_one_bit_and_grey_become_rgb(tmp_path):
    colour = Image.fromarray(smooth())
    assert close(read_bytes(tmp_path, saved(colour.quantize(200), "PNG")).pixels, smooth(), 8)
    for mode in ("L", "1"):
        expected = np.asarray(colour.convert(mode).convert("RGB"))
        assert np.array_equal(
            read_bytes(tmp_path, saved(colour.convert(mode), "PNG")).pixels, expected
        )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_sources_lie_over_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    pixels = read_bytes(tmp_path, saved(image.convert(mode), "PNG")).pixels
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 0).all()


def test_16_bit_transparency_lies_over_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint16)
    pixels[..., 3] = [0, 16384, 32768, 65535]
    for suffix in DEEP:
        write_image(tmp_path / f"a{suffix}", pixels)
        row = read_image(tmp_path / f"a{suffix}").pixels[0, :, 0]
        assert row.tolist() == [65535, 49151, 32767, 0]


def test_16_bit_grey_keeps_its_depth(tmp_path):
    grey = noise(20, 30, dtype=np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        read = read_bytes(tmp_path, saved(Image.fromarray(grey), kind)).pixels
        assert read.dtype == np.uint16
        assert (read == grey[..., None]).all()


def test_cmyk_goes_to_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        read = read_bytes(tmp_path, saved(image, kind, icc_profile=b"broken" * 40))
        assert close(read.pixels, np.broadcast_to([255, 0, 0], (8, 8, 3)), 6)
        assert read.icc_profile is None


def test_lab_goes_to_srgb(tmp_path):
    lab = ImageCms.profileToProfile(
        Image.fromarray(smooth()),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert close(read_bytes(tmp_path, saved(lab, "TIFF")).pixels, smooth(), 3)


def test_a_profile_that_no_longer_describes_the_pixels_is_dropped(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    rgb = Image.fromarray(smooth())
    assert read_bytes(tmp_path, saved(rgb, "PNG", icc_profile=lab)).icc_profile is None
    assert read_bytes(tmp_path, saved(rgb, "PNG", icc_profile=b"junk")).icc_profile is None
    assert read_bytes(tmp_path, saved(rgb, "PNG", icc_profile=SRGB)).icc_profile == SRGB


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(tmp_path, kind):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert close(read_bytes(tmp_path, data).pixels, np.broadcast_to([255, 0, 0], (9, 9, 3)), 4)


@pytest.mark.parametrize("name", ["two words.png", "näive 画像.png", "line\nbreak.png"])
def test_any_name_works(tmp_path, name):
    if sys.platform == "win32" and "\n" in name:
        pytest.skip("Windows allows no line break in names")
    write_image(tmp_path / name, noise(4, 5, 3, dtype=np.uint16))
    assert read_image(tmp_path / name).pixels.shape == (4, 5, 3)
    assert [path.name for path in list_images(tmp_path)] == [name]


def test_the_content_counts_and_not_the_suffix(tmp_path):
    data = saved(Image.fromarray(smooth()), "PNG")
    assert np.array_equal(read_bytes(tmp_path, data, "really a png.jpg").pixels, smooth())


def test_many_threads_read_and_write(tmp_path):
    pixels, wrong = noise(60, 60, 3, dtype=np.uint16), []

    def work(index):
        path = tmp_path / f"{index}.png"
        for _ in range(5):
            write_image(path, pixels)
            if not np.array_equal(read_image(path).pixels, pixels):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir(tmp_path)) == 6


# Writing that fails


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ImageError, match="no transparency: write"):
        write_image(tmp_path / "a.jpg", noise(4, 4, 4))
    with pytest.raises(ImageError, match=r"'\.gif'.*\.png"):
        write_image(tmp_path / "a.gif", noise(4, 4))
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "a.webp", noise(1, 17000))
    with pytest.raises(ImageError, match=r"a\.png.*0\.\.1"):
        write_image(tmp_path / "a.png", np.full((4, 4), 255.0))
    for shape in ((4, 4, 2), (4,), (0, 4, 3)):
        with pytest.raises(ImageError, match="expected HxW"):
            write_image(tmp_path / "a.png", np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
    path = tmp_path / "a.png"
    write_image(path, noise(4, 4))
    old = path.read_bytes()

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((ImageError, KeyboardInterrupt)) as caught:
        write_image(path, noise(5, 5))
    if isinstance(failure, OSError):
        assert "a.png: cannot be written: No space left on device" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == old


def test_a_target_that_is_no_folder_is_clear(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.png", tmp_path / "missing" / "a.png"):
        with pytest.raises(ImageError, match="cannot be written"):
            write_image(path, noise(4, 4))
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "a.png", noise(4, 4))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_read_only_folder_is_clear(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ImageError, match="Permission denied"):
            write_image(tmp_path / "a.png", noise(4, 4))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_clear(tmp_path, monkeypatch):
    def write_to_full_disk(_, data):
        with open("/dev/full", "wb") as file:
            file.write(data)

    monkeypatch.setattr(images.Path, "write_bytes", write_to_full_disk)
    with pytest.raises(ImageError, match="No space left on device"):
        write_image(tmp_path / "a.png", noise(400, 400))
    assert not list(tmp_path.iterdir())


# Listing


def test_a_tree_is_listed_sorted_and_relative(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/a.tiff", "a.webp", "note.txt", ".hid.png", ".h/x.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    listed = [path.as_posix() for path in list_images(tmp_path)]
    assert listed == ["a/a.tiff", "a/z.JPG", "a.webp", "b.png"]
    assert [path.as_posix() for path in list_images(tmp_path, exclude=tmp_path / "a")] == listed[2:]


def test_symlinks_are_followed_once(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.png").touch()
    try:
        (tmp_path / "in" / "deep" / "up").symlink_to(tmp_path / "in", target_is_directory=True)
        (tmp_path / "in" / "twin").symlink_to(tmp_path / "in" / "deep", target_is_directory=True)
        (tmp_path / "in" / "self.png").symlink_to(tmp_path / "in" / "self.png")
        (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "gone.png")
    except OSError:
        pytest.skip("no symlinks here")
    listed = [path.as_posix() for path in list_images(tmp_path / "in")]
    assert listed == ["deep/a.png", "gone.png", "self.png"]
    for name in ("gone.png", "self.png"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / "in" / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path) == []


def test_a_folder_that_is_not_there_is_clear(tmp_path):
    with pytest.raises(ImageError, match="cannot be listed"):
        list_images(tmp_path / "no\nfolder")


# What a result keeps besides pixels


def camera_exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "Maker", "Copyright me"
    exif[0x8769] = {0x829A: 0.01, 0x9003: "2024:01:02 03:04:05", 0xA002: 64, 0xA001: 1}
    exif[0x8825] = {1: "N", 2: (50.0, 30.0, 0.0)}
    loaded = Image.Exif()
    loaded.load(exif.tobytes())
    return loaded


XMP = b'<x:xmpmeta><rdf:RDF tiff:Orientation="6">\xc3\xa9</rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_results_keep_exif_xmp_and_resolution(tmp_path, source, suffix):
    options = {"dpi": (300, 300)} if source not in ("WEBP", "AVIF") else {}
    if source == "PNG":
        data = saved(Image.fromarray(smooth()), "PNG", exif=camera_exif(), **options)
        chunk = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + XMP
        packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = data[:33] + packed + data[33:]
    elif source == "TIFF":
        exif = camera_exif()
        exif[700] = XMP
        data = saved(Image.fromarray(smooth()), "TIFF", exif=exif, **options)
    else:
        data = saved(Image.fromarray(smooth()), source, exif=camera_exif(), xmp=XMP, **options)
    image = read_bytes(tmp_path, data)
    assert image.pixels.shape == (64, 48, 3)
    for pixels in (image.pixels, np.dstack([image.pixels, image.pixels[..., :1]])):
        if pixels.shape[2] == 4 and suffix == ".jpg":
            continue
        path = tmp_path / f"result{suffix}"
        write_image(path, pixels, SRGB, image.metadata)
        with Image.open(path) as result:
            exif, info = result.getexif(), dict(result.info)
            assert exif[0x0112] == 1
            assert exif[0x010F] == "Maker"
            assert exif[0x8298] == "Copyright me"
            assert exif.get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"
            assert float(exif.get_ifd(0x8769)[0x829A]) == 0.01
            assert 0xA002 not in exif.get_ifd(0x8769)
            assert [float(value) for value in exif.get_ifd(0x8825)[2]] == [50, 30, 0]
            assert "\xe9".encode() in info["xmp"]
            assert b'"6"' not in info["xmp"]
            if options:
                dpi = info["dpi"] if suffix != ".webp" else (exif[282], exif[283])
                assert [round(float(value)) for value in dpi] == [300, 300]
        again = read_image(path)
        assert np.array_equal(again.pixels.shape, image.pixels.shape)
        assert again.metadata.exif is not None


def test_a_thumbnail_does_not_go_along(tmp_path):
    thumbnail = saved(Image.fromarray(smooth(20, 20)), "JPEG")
    exif = camera_exif().tobytes()
    body = bytearray(exif[6:])
    # A second directory after the first: JPEGInterchangeFormat and its length.
    end, tags = 8 + 2 + 12 * struct.unpack_from(">H", body, 8)[0], len(body)
    struct.pack_into(">I", body, end, tags)
    body += struct.pack(">HHHIIHHIII", 2, 513, 4, 1, tags + 30, 514, 4, 1, len(thumbnail), 0)
    data = saved(Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0" + bytes(body) + thumbnail)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(-1)[514] == len(thumbnail)
    metadata = read_bytes(tmp_path, data).metadata
    assert metadata.exif is not None
    assert thumbnail not in metadata.exif
    write_image(tmp_path / "a.jpg", smooth(), None, metadata)
    with Image.open(tmp_path / "a.jpg") as result:
        assert not result.getexif().get_ifd(-1)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(k, m) for k in ("PNG", "WEBP", "TIFF", "AVIF") for m in ("RGBA", "LA")]
    + [("PNG", "P"), ("GIF", "RGBA")],
)
def test_the_alpha_of_a_source_is_delivered(tmp_path, kind, mode):
    image = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 8))
    options = {"lossless": True} if kind == "WEBP" else {}
    read = read_bytes(tmp_path, saved(image.convert(mode), kind, **options))
    assert close(read.alpha, [[0] * 8 + [255] * 8] * 8, 1)
    assert (read.pixels[:, :8] == 255).all()


def test_opaque_sources_have_no_alpha(tmp_path):
    for kind in ("PNG", "WEBP", "TIFF", "JPEG"):
        assert read_bytes(tmp_path, saved(Image.fromarray(smooth()), kind)).alpha is None
    assert read_bytes(tmp_path, saved(Image.new("RGBA", (4, 4), "red"), "PNG")).alpha is None


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_colours_that_nobody_sees_are_written_black(tmp_path, suffix):
    pixels = noise(9, 9, 4)
    pixels[:5, :, 3] = 0
    write_image(tmp_path / f"a{suffix}", pixels)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert not np.asarray(image)[:5].any()


# Files that are passed over


def test_images_of_kinds_that_are_not_read_are_counted(tmp_path):
    def put(name, data=b"content"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)

    png = saved(Image.fromarray(smooth()), "PNG")
    for name in ("a.CR2", "b/c.cr2", "d.psd", "e.svg", ".hidden.psd"):
        put(name)
    for name in ("notes.txt", "Makefile", "page.html", "film.mp4", "font.ttf", "BM.md"):
        put(name, {"film.mp4": b"\0\0\0\x18ftypisom", "page.html": b"<html><svg>"}.get(name, b"BM"))
    put("no_suffix", png)
    put("named.wrongly", png)
    put("drawing.xml", b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>")
    put("read.png", png)
    os.mkfifo(tmp_path / "pipe") if hasattr(os, "mkfifo") else None
    unread = Counter()
    assert list_images(tmp_path, unread=unread) == [Path("read.png")]
    expected = {".cr2": 2, ".psd": 1, ".svg": 1, "no suffix": 1, ".wrongly": 1, ".xml": 1}
    assert unread == expected


def test_a_tree_of_any_depth_is_listed(tmp_path):
    folder = tmp_path
    for _ in range(1200):
        folder /= "a"
        folder.mkdir()
    (folder / "a.png").touch()
    try:
        assert len(list_images(tmp_path)[0].parts) == 1201
    finally:  # pytest would stumble over it
        (folder / "a.png").unlink()
        while folder != tmp_path:
            folder.rmdir()
            folder = folder.parent


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())
