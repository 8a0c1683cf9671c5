"""Video files in and out: every frame at its time, sound, rotation, transparency, no half files."""

import threading
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is an extra")

from portraitmatting.errors import PortraitmattingError  # noqa: E402
from portraitmatting.video import VideoReader, VideoWriter, matte_video  # noqa: E402
from portraitmatting.video.ffmpeg import VideoError  # noqa: E402
from video_samples import (  # noqa: E402
    STEP,
    decoded,
    drawn_frame,
    seconds,
    tiny_predictor,
    write_video,
)


def centre(image):
    height, width = image.shape[:2]
    return image[height * 3 // 4, width * 3 // 4, :3].astype(int)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".mov"])
def test_every_frame_keeps_its_time_and_the_sound_goes_along(tmp_path, suffix):
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    write_video(source, count=9, steps=(STEP, 3 * STEP, 2 * STEP), audio="aac")
    done = matte_video(source, target, tiny_predictor(), background="blur")
    assert (done.frames, done.damaged, done.transparent) == (9, 0, False)
    # Matroska starts at the sound's first sample, which AAC has before 0.
    shown, wanted = np.array(seconds(target)), np.array(seconds(source))
    np.testing.assert_allclose(shown - shown[0], wanted, atol=1.5e-3)
    with av.open(str(source)) as a, av.open(str(target)) as b:
        length = [sum(f.samples for f in c.decode(audio=0)) / 48000 for c in (a, b)]
    assert abs(length[0] - length[1]) < 0.05


def test_sound_that_the_container_can_hold_is_copied_bit_by_bit(tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(source, audio="aac")
    matte_video(source, target, tiny_predictor())

    def packets(path):
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    assert packets(target) == packets(source)


def test_sound_that_players_do_not_expect_in_mp4_is_encoded_anew(tmp_path):
    write_video(tmp_path / "in.mov", audio="pcm_s16le")
    for suffix, codec in ((".mp4", "aac"), (".mov", "pcm_s16le")):
        target = tmp_path / f"out{suffix}"
        matte_video(tmp_path / "in.mov", target, tiny_predictor(), "blur")
        with av.open(str(target)) as container:
            assert container.streams.audio[0].codec_context.name == codec


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_damaged_sound_costs_no_image(tmp_path, suffix):
    write_video(tmp_path / "in.mp4", count=25, audio="aac")
    data = bytearray((tmp_path / "in.mp4").read_bytes())
    with av.open(str(tmp_path / "in.mp4")) as container:
        packets = [p for p in container.demux(audio=0) if p.size]
    for packet in packets[10:20]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    (tmp_path / "damaged.mp4").write_bytes(data)
    done = matte_video(
        tmp_path / "damaged.mp4", tmp_path / f"out{suffix}", tiny_predictor(), "blur"
    )
    assert done.frames == 25
    # Copied packets are not looked into.
    assert (done.damaged >= 5) == (suffix == ".webm") and done.tracks_left_out == 0


def test_sound_from_before_a_cut_is_not_heard(tmp_path):
    # As phones and `ffmpeg -ss 0.5 -c copy` cut: all is in the file, an edit list hides a part.
    write_video(tmp_path / "whole.mp4", count=25, audio="aac")
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "cut.mp4"), "w") as cut,
    ):
        streams = {s.index: cut.add_stream_from_template(s) for s in whole.streams}
        for packet in whole.demux():
            if packet.dts is not None:
                packet.pts -= round(Fraction(1, 2) / packet.time_base)
                packet.dts -= round(Fraction(1, 2) / packet.time_base)
                packet.stream = streams[packet.stream.index]
                cut.mux(packet)
    matte_video(tmp_path / "cut.mp4", tmp_path / "out.mkv", tiny_predictor())
    with av.open(str(tmp_path / "out.mkv")) as container:
        heard = sum(f.samples for f in container.decode(audio=0)) / 48000
    assert 0.4 < heard < 0.7


def test_an_unknown_sound_track_is_left_out_and_reported(tmp_path, monkeypatch):
    from portraitmatting.video import tracks

    write_video(tmp_path / "in.mp4", audio="aac")
    monkeypatch.setattr(tracks, "_codec", lambda stream: None)
    done = matte_video(tmp_path / "in.mp4", tmp_path / "out.mp4", tiny_predictor())
    assert done.tracks_left_out == 1 and "1 unknown sound or subtitle track" in str(done)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio


def test_wide_pixels_stay_wide(tmp_path):
    for suffix, size in ((".webm", (128, 48)), (".mp4", (64, 48)), (".mov", (64, 48))):
        with VideoWriter(tmp_path / f"w{suffix}", 25, pixel_aspect=2) as writer:
            writer.write(drawn_frame(0))
        with VideoReader(tmp_path / f"w{suffix}") as reader:
            assert (reader.width, reader.height) == size
            assert reader.width * reader.pixel_aspect == 128


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation):
    write_video(tmp_path / "plain.mp4", count=1)
    write_video(tmp_path / "turned.mp4", count=1, rotation=rotation)
    with (
        VideoReader(tmp_path / "plain.mp4") as plain,
        VideoReader(tmp_path / "turned.mp4") as turned,
    ):
        (stored,), (upright,) = [f.image for f in plain], [f.image for f in turned]
    # The display matrix counts counterclockwise turns, as numpy does.
    np.testing.assert_array_equal(upright, np.rot90(stored, rotation // 90))


@pytest.mark.parametrize("suffix,decoder", [(".webm", "libvpx-vp9"), (".mov", "")])
def test_transparency_survives(tmp_path, suffix, decoder):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[..., :3] = 180, 90, 40
    pixels[:, :32, 3], pixels[:, 32:48, 3] = 255, 128
    with VideoWriter(tmp_path / f"out{suffix}", 25, transparent=True) as writer:
        for _ in range(3):
            writer.write(pixels)
    frames = decoded(tmp_path / f"out{suffix}", decoder)
    assert len(frames) == 3
    for _, _, outputs in frames:
        assert np.abs(outputs[..., 3].astype(int) - pixels[..., 3])[:, 8:24].max() <= 2
        assert np.abs(outputs[..., 3].astype(int) - pixels[..., 3])[:, 36:44].max() <= 3
        assert outputs[:, 56:, 3].max() <= 2


def test_colours_come_back_as_they_went(tmp_path):
    for suffix in (".mp4", ".webm", ".mov"):
        with VideoWriter(tmp_path / f"c{suffix}", 25) as writer:
            for _ in range(2):
                writer.write(drawn_frame(10))
        with VideoReader(tmp_path / f"c{suffix}") as reader:
            outputs = [frame.image for frame in reader]
        assert len(outputs) == 2
        # A wrong matrix (BT.601 for BT.709) is off by 12 and more on this red.
        assert np.abs(outputs[0][4:20, 4:28].astype(int) - (200, 30, 30)).max() <= 5
        assert np.abs(outputs[0][30:44, 40:60].astype(int) - 100).max() <= 3


def test_odd_sizes_lose_no_pixel(tmp_path):
    write_video(tmp_path / "in.mov", size=(47, 63), codec="mpeg4", count=2)
    matte_video(tmp_path / "in.mov", tmp_path / "out.mp4", tiny_predictor())
    assert decoded(tmp_path / "out.mp4")[0][2].shape[:2] == (48, 64)
    matte_video(tmp_path / "in.mov", tmp_path / "out.webm", tiny_predictor())
    assert decoded(tmp_path / "out.webm")[0][2].shape[:2] == (47, 63)


def test_a_folder_gets_transparent_pngs(tmp_path):
    cv2 = pytest.importorskip("cv2")
    write_video(tmp_path / "in.mp4", count=3)
    matte_video(tmp_path / "in.mp4", tmp_path / "frames", tiny_predictor())
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert names == ["000001.png", "000002.png", "000003.png"]
    assert cv2.imread(str(tmp_path / "frames" / names[0]), cv2.IMREAD_UNCHANGED).shape == (
        48,
        64,
        4,
    )
    with pytest.raises(VideoError, match="there already"):
        matte_video(tmp_path / "in.mp4", tmp_path / "frames", tiny_predictor())


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "frames"])
def test_an_interrupted_run_leaves_nothing_and_keeps_what_was_there(tmp_path, name):
    write_video(tmp_path / "in.mp4", count=6)
    target = tmp_path / name
    if target.suffix:
        target.write_bytes(b"an older result")
    calls = 0

    def interrupting(image, alpha):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return image

    with pytest.raises(KeyboardInterrupt):
        if target.suffix:
            matte_video(tmp_path / "in.mp4", target, tiny_predictor(), background=interrupting)
        else:
            with VideoWriter(target, 25) as writer:
                writer.write(drawn_frame(0))
                raise KeyboardInterrupt
    left = {p.name for p in tmp_path.iterdir()} - {"in.mp4"}
    assert left == ({name} if target.suffix else set())
    if target.suffix:
        assert target.read_bytes() == b"an older result"
    assert not [t for t in threading.enumerate() if "prefetch" in t.name]


def test_a_truncated_file_gives_what_can_be_read(tmp_path):
    write_video(tmp_path / "whole.mkv", count=60)
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    with VideoReader(tmp_path / "cut.mkv") as reader:
        frames = [frame.image for frame in reader]
    assert 0 < len(frames) < 60
    for index, image in enumerate(frames[:5]):
        assert np.abs(centre(image) - (40 + 6 * index)).max() <= 4


def test_time_stamps_always_rise(tmp_path):
    stamps = write_video(tmp_path / "in.mp4", steps=(STEP, 2 * STEP))
    with VideoReader(tmp_path / "in.mp4") as reader:
        frames = list(reader)
        assert [f.pts for f in frames] == stamps
        assert (reader.height, reader.width, reader.frame_count) == (48, 64, 6)
        assert frames[1].seconds == pytest.approx(0.04)


def test_batches_give_the_same_video(tmp_path):
    write_video(tmp_path / "in.mp4", count=5)
    for batch in (1, 3):
        matte_video(
            tmp_path / "in.mp4", tmp_path / f"{batch}.mov", tiny_predictor(), batch_size=batch
        )
    one, three = decoded(tmp_path / "1.mov"), decoded(tmp_path / "3.mov")
    assert len(one) == len(three) == 5
    for (_, _, a), (_, _, b) in zip(one, three, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2


@pytest.mark.parametrize(
    "target,background,message",
    [
        ("out.avi", None, "unknown kind of video '.avi': use .mp4"),
        ("in.mp4", None, "is the source itself"),
        ("nowhere/out.mp4", None, "no such folder"),
        ("out.mp4", "no-such-colour", "no-such-colour"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, target, background, message):
    write_video(tmp_path / "in.mp4", count=1)
    with pytest.raises(PortraitmattingError, match=message) as caught:
        matte_video(tmp_path / "in.mp4", tmp_path / target, tiny_predictor(), background)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"in.mp4"}


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="cannot be read as a video"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match="cannot be read as a video"):
        VideoReader(tmp_path / "missing.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        chunk = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        chunk.sample_rate, chunk.pts, chunk.time_base = 48000, 0, Fraction(1, 48000)
        out.mux(stream.encode(chunk))
        out.mux(stream.encode())
    with pytest.raises(VideoError, match="holds no video"):
        VideoReader(tmp_path / "sound.mp4")


def test_mp4_cannot_be_transparent(tmp_path):
    with pytest.raises(VideoError, match="cannot hold transparency"):
        VideoWriter(tmp_path / "out.mp4", 25, transparent=True)


def test_without_pyav_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(VideoError, match=r'pip install -e "\.\[video\]"'):
        VideoReader(tmp_path / "in.mp4")
