"""Kinds of videos in (transparent, HDR, mirrored, images, folders) and out (kinds of results)."""

import struct
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is an extra")

from portraitmatting.commands import webcam  # noqa: E402
from portraitmatting.errors import PortraitmattingError  # noqa: E402
from portraitmatting.images.files import read_image, write_image  # noqa: E402
from portraitmatting.video import VideoReader, matte_video  # noqa: E402
from portraitmatting.video.ffmpeg import Converter, VideoError  # noqa: E402
from portraitmatting.video.reader import open_video  # noqa: E402
from portraitmatting.video.stream import matte_stream  # noqa: E402
from portraitmatting.video.writer import plan_videos  # noqa: E402
from video_samples import STEP, TIME_BASE, decoded, drawn_frame, tiny_predictor, write_video  # noqa: E402


def encode(path, pixels, codec, pixel_format, options=None, count=2, **color):
    """`count` frames of HxWx3 or HxWx4 uint8."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = pixel_format
        for name, value in color.items():
            setattr(stream.codec_context, name, value)
        for _ in range(count):
            frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[2] == 4 else "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.mark.parametrize(
    "name,codec,pixel_format",
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("b.webm", "libvpx", "yuva420p"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("png.mov", "png", "rgba"),
        ("animation.mov", "qtrle", "argb"),
    ],
)
def test_what_is_transparent_in_a_video_stays_so(tmp_path, name, codec, pixel_format):
    pixels = np.full((48, 64, 4), 120, np.uint8)
    pixels[..., 3] = np.repeat([0, 128, 255, 255], 16)
    options = {"auto-alt-ref": "0"} if "vpx" in codec else {"profile": "4444"}
    encode(tmp_path / name, pixels, codec, pixel_format, options)
    with VideoReader(tmp_path / name) as reader:
        (frame, _) = reader
    assert frame.image[:, 2:14].min() > 250 and np.abs(frame.image[:, 50:] - 120.0).max() < 4
    bound = frame.alpha.astype(float)
    assert bound[:, 2:14].max() < 3 and np.abs(bound[:, 18:30] - 128).max() < 4
    for matted in matte_stream([frame], tiny_predictor()):
        assert (matted.alpha * 255 <= bound + 1e-3).all()
    matte_video(tmp_path / name, tmp_path / "frames", tiny_predictor(), foreground="none")
    result = read_image(tmp_path / "frames" / "000002.png")
    assert result.alpha is not None and (result.alpha <= frame.alpha).all()


def test_opaque_videos_have_no_alpha(tmp_path):
    encode(tmp_path / "a.mov", np.full((48, 64, 4), 255, np.uint8), "qtrle", "argb")
    with VideoReader(tmp_path / "a.mov") as reader:
        assert next(iter(reader)).alpha is None


@pytest.mark.parametrize("flip,turns", [(False, 0), (True, 0), (True, 1), (True, 2), (False, 3)])
def test_mirrored_and_turned_videos_are_shown_upright(tmp_path, flip, turns):
    write_video(tmp_path / "in.mp4", count=1)
    # a b c d of x' = ax + cy, y' = bx + dy: first mirrored left to right, then turned clockwise.
    matrix = np.array([[-1 if flip else 1, 0], [0, 1]])
    for _ in range(turns):
        matrix = matrix @ [[0, 1], [-1, 0]]
    (a, b), (c, d) = matrix.tolist()
    data = bytearray((tmp_path / "in.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 20] = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
    (tmp_path / "turned.mp4").write_bytes(data)
    with VideoReader(tmp_path / "in.mp4") as plain, VideoReader(tmp_path / "turned.mp4") as turned:
        stored, upright = next(iter(plain)).image, next(iter(turned)).image
    wanted = np.rot90(stored[:, ::-1] if flip else stored, -turns)
    np.testing.assert_array_equal(upright, wanted)


def test_the_stream_that_is_marked_as_default_counts(tmp_path):
    with av.open(str(tmp_path / "two.mkv"), "w") as out:
        streams = []
        for value in (50, 200):
            stream = out.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            kinds = av.stream.Disposition
            stream.disposition = kinds.default if value == 200 else kinds(0)
            streams.append((stream, value))
        for stream, value in streams:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
            out.mux(stream.encode())
    with VideoReader(tmp_path / "two.mkv") as reader:
        assert abs(next(iter(reader)).image.mean() - 200) < 4


@pytest.mark.parametrize("transfer", [16, 18])  # PQ, HLG
def test_hdr_is_not_flat(transfer):
    # Grey wedges whose code values are evenly spaced.
    codes = np.repeat(np.linspace(64, 940, 16).astype(np.uint16), 4)
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, row in zip(frame.planes, (codes, np.full(32, 512), np.full(32, 512)), strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        rows[:, : len(row)] = row
        plane.update(rows.tobytes())
    frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = transfer, 9, 9, 1
    image, _ = Converter().to_arrays(frame, (64, 48))
    tones = image[24, 1::4].astype(int)
    assert np.ptp(tones, axis=1).max() <= 1  # grey stays grey
    tones = tones[:, 0]
    assert (np.diff(tones) >= 0).all() and tones[0] <= 2 and tones[-1] >= 235
    frame.color_trc = frame.color_primaries = 1
    flat = Converter().to_arrays(frame, (64, 48))[0][24, 1::4, 0].astype(int)
    if transfer == 16:  # taken for SDR, the shadows would be lifted
        assert (tones[2:6] < flat[2:6] - 8).all()
    assert np.abs(tones - flat).max() > 5


def test_chroma_of_half_resolution_is_interpolated():
    # A soft ramp from blue to orange: repeated chroma pixels show as steps of two.
    ramp = np.linspace(0, 1, 64)[:, None]
    colors = (1 - ramp) * (30, 60, 220) + ramp * (240, 140, 40)
    pixels = np.broadcast_to(np.rint(colors), (48, 64, 3)).astype(np.uint8)
    converter = Converter()
    frame = converter.to_frame(pixels, (64, 48), "yuv420p")
    image, _ = Converter().to_arrays(frame, (64, 48))
    repeated = frame.reformat(format="rgb24").to_ndarray()

    def roughness(image):
        return np.abs(np.diff(image[20:28, 4:60].astype(float), n=2, axis=1)).mean()

    assert roughness(image) < 0.6 * roughness(repeated)
    assert np.abs(image[:, 4:60].astype(int) - pixels[:, 4:60]).max() <= 4


@pytest.mark.parametrize("kind", ["alpha", "foreground", "composite", "rgba"])
@pytest.mark.parametrize("name", ["out.mkv", "out.mov", "frames"])
def test_kinds_of_results(tmp_path, kind, name):
    write_video(tmp_path / "in.mp4", count=2)
    target = tmp_path / name
    options = {"foreground": "none", "smooth": False, "kind": kind}
    if (kind, name) == ("rgba", "out.mkv"):
        with pytest.raises(VideoError, match="cannot hold transparency"):
            matte_video(tmp_path / "in.mp4", target, tiny_predictor(), **options)
        return
    matte_video(tmp_path / "in.mp4", target, tiny_predictor(), **options)
    with VideoReader(tmp_path / "in.mp4") as reader:
        (matted, *_) = matte_stream(reader, tiny_predictor(), foreground="none", smooth=False)
    wanted = matted.result(kind)
    if name == "frames":
        shown = read_image(target / "000001.png")
        wanted = wanted if wanted.ndim == 3 else np.dstack([wanted] * 3)
        if kind == "rgba":
            np.testing.assert_array_equal(shown.alpha, wanted[..., 3])
        else:
            np.testing.assert_array_equal(shown.pixels, wanted)
    else:
        shown = decoded(target)[0][2].astype(int)
        if kind == "rgba":
            assert np.abs(shown[..., 3] - wanted[..., 3]).max() < 6
        else:
            wanted = wanted if wanted.ndim == 3 else np.dstack([wanted] * 3)
            assert np.abs(shown[..., :3] - wanted).mean() < 4 and shown[..., 3].min() == 255


def test_a_background_belongs_to_composites(tmp_path):
    write_video(tmp_path / "in.mp4", count=1)
    for kind in ("alpha", "rgba", "foreground"):
        with pytest.raises(PortraitmattingError, match="leave the background out"):
            matte_video(
                tmp_path / "in.mp4", tmp_path / "o.mov", tiny_predictor(), "blur", kind=kind
            )


@pytest.mark.parametrize("pattern", ["", "img_%d.png", "img_%04d.png"])
def test_numbered_images_are_a_video(tmp_path, pattern):
    images = tmp_path / "images"
    images.mkdir()
    for number in (8, 9, 10, 11):
        width = 4 if "%04" in pattern else 1
        write_image(images / f"img_{number:0{width}}.png", drawn_frame(number))
    (images / f"img_{10:0{width}}.png").write_bytes(b"damaged")
    write_image(images / "cover.png", drawn_frame(0))
    source = images / pattern if pattern else images
    done = matte_video(source, tmp_path / "out.mp4", tiny_predictor(), frame_rate=10)
    assert (done.frames, done.damaged) == (3, 1)
    times = [float(pts * base) for pts, base, _ in decoded(tmp_path / "out.mp4")]
    np.testing.assert_allclose(times, [0, 0.1, 0.3], atol=1e-3)
    with open_video(source) as frames:
        values = [int(frame.image[-1, -1, 0]) for frame in frames]
    assert values == [88, 94, 106]


def test_transparent_images_bound_the_result_and_others_are_fitted(tmp_path):
    pixels = np.dstack([drawn_frame(0), np.zeros((48, 64), np.uint8)])
    write_image(tmp_path / "1.png", pixels)
    write_image(tmp_path / "2.png", drawn_frame(1, 96, 128))
    with open_video(tmp_path) as frames:
        first, second = frames
    assert first.alpha.max() == 0 and first.image.min() == 255
    assert second.image.shape == (48, 64, 3) and second.alpha is None


def test_a_folder_of_videos_gets_a_folder_of_results(tmp_path, monkeypatch, capsys):
    folder, target = tmp_path / "in", tmp_path / "out"
    (folder / "b").mkdir(parents=True)
    for name in ("a.mov", "a.mp4", "b/c.mkv"):
        write_video(folder / name, count=2)
    (folder / "b" / "bad.mp4").write_text("no video")
    (folder / "b" / "cover.jpg").write_text("not looked at")
    monkeypatch.setattr(webcam, "load_predictor", lambda *_: tiny_predictor())
    code = webcam.main([str(folder), "-o", str(target), "--format", "mkv", "--kind", "alpha"])
    results = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert code == 1 and results == ["a.mov.mkv", "a.mp4.mkv", "b/c.mkv"]
    assert "bad.mp4: cannot be read as a video" in capsys.readouterr().err
    # Results inside of the folder are no inputs of the next run.
    inside = folder / "results"
    inside.mkdir()
    write_video(inside / "a.mp4", count=1)
    assert all("results" not in str(source) for source, _ in plan_videos(folder, inside))
    with pytest.raises(VideoError, match="needs a folder"):
        plan_videos(folder, tmp_path / "out.mp4")


def with_subtitles(path, codec):
    texts = [(200, 300, "One <b>&</b> two"), (600, 300, "Drei\nVier ä")]
    write_video(path.with_name("plain.mp4"), count=25)
    with (
        av.open(str(path.with_name("plain.mp4"))) as plain,
        av.open(str(path), "w") as out,
    ):
        video = out.add_stream_from_template(plain.streams.video[0])
        stream = out.add_mux_stream(codec)
        stream.time_base = Fraction(1, 1000)
        stream.metadata["language"] = "deu"
        chapters = [
            {"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {}},
            {
                "id": 2,
                "start": 500,
                "end": 1000,
                "time_base": Fraction(1, 1000),
                "metadata": {"title": "Second"},
            },
        ]
        out.set_chapters(chapters)
        for packet in plain.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
        for start, length, text in texts:
            data = text.encode()
            if codec == "mov_text":
                data = struct.pack(">H", len(data)) + data
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = start
            packet.duration = length
            out.mux(packet)


@pytest.mark.parametrize("codec,suffix", [("subrip", ".mkv"), ("mov_text", ".mp4")])
def test_subtitles_and_chapters_go_along(tmp_path, codec, suffix):
    source = tmp_path / f"in{suffix}"
    with_subtitles(source, codec)
    for out in (".mp4", ".mov", ".mkv", ".webm"):
        target = tmp_path / f"out{out}"
        done = matte_video(source, target, tiny_predictor(), "blur", foreground="none")
        assert done.tracks_left_out == 0 and done.damaged == 0
        with av.open(str(target)) as container:
            assert [c["metadata"].get("title") for c in container.chapters()][1] == "Second"
            (stream,) = container.streams.subtitles
            if out == suffix:
                assert stream.metadata["language"] == "deu"
            shown = [
                (round(float(packet.pts * packet.time_base), 2), subtitle.dialogue.decode())
                for packet in container.demux(stream)
                if packet.size
                for subtitle in packet.decode()
            ]
        assert [time for time, _ in shown] == [0.2, 0.6], out
        assert shown[1][1].replace("\\N", "\n").split() == ["Drei", "Vier", "ä"]


@pytest.mark.parametrize(
    "rate,codec,suffix",
    [
        (96000, "pcm_s16le", ".mov"),
        (192000, "flac", ".mkv"),
        (11025, "libmp3lame", ".mkv"),
        (22050, "pcm_s16le", ".mov"),
    ],
)
def test_sound_of_any_rate_goes_along(tmp_path, rate, codec, suffix):
    source = tmp_path / f"in{suffix}"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream(codec, rate=rate, layout="mono")
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(drawn_frame(index), "rgb24")
            frame.pts, frame.time_base = index * STEP, TIME_BASE
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        wave = (9000 * np.sin(np.arange(rate) / 20)).astype(np.int16)
        chunk = av.AudioFrame.from_ndarray(wave[None], "s16", "mono")
        chunk.sample_rate, chunk.pts, chunk.time_base = rate, 0, Fraction(1, rate)
        out.mux(sound.encode(chunk))
        out.mux(sound.encode())
    for out in (".mp4", ".mkv", ".webm", ".mov"):
        target = tmp_path / f"out{out}"
        matte_video(source, target, tiny_predictor(), "blur", foreground="none")
        with av.open(str(target)) as container:
            length = sum(f.samples / f.sample_rate for f in container.decode(audio=0))
        assert abs(length - 1) < 0.15, out
