"""What is cut off, joined or damaged in a video is named; what is there comes out, at its time."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is an extra")

from portraitmatting.errors import PortraitmattingError  # noqa: E402
from portraitmatting.video import VideoReader, matte_video  # noqa: E402
from portraitmatting.video.ffmpeg import VideoError  # noqa: E402
from video_samples import seconds, tiny_predictor, write_video  # noqa: E402

CODECS = {
    ".mkv": ("libx264", "aac"),
    ".webm": ("libvpx", "libopus"),
    ".mp4": ("libx264", "aac"),
    ".mov": ("libx264", "aac"),
    ".avi": ("mpeg4", "libmp3lame"),
    ".flv": ("flv", "libmp3lame"),
    ".ts": ("libx264", "aac"),
    ".mpg": ("mpeg2video", "mp2"),
}


def record(path, count=40):
    """25 frames a second, with sound."""
    video, sound = CODECS[path.suffix]
    write_video(path, count=count, codec=video, audio=sound)


def matte(source, target):
    return matte_video(source, target, tiny_predictor(), foreground="none", smooth=False)


def sound_seconds(path):
    with av.open(str(path)) as file:
        return sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".avi", ".flv", ".ts"])
def test_half_a_recording_is_written_and_reported(tmp_path, suffix):
    whole, half = tmp_path / f"whole{suffix}", tmp_path / f"half{suffix}"
    record(whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    done = matte(half, tmp_path / "half.mp4")
    assert 5 < done.frames < 35 and "cut off" in done.missing
    with VideoReader(whole) as reader:
        assert len(list(reader)) == 40 and not reader.missing and not reader.damaged


@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov"])
def test_every_cut_of_an_mp4_is_refused_or_reported(tmp_path, movflags):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    record(tmp_path / "plain.mp4")
    with (
        av.open(str(tmp_path / "plain.mp4")) as a,
        av.open(str(whole), "w", options={"movflags": movflags}) as b,
    ):
        streams = {s.index: b.add_stream_from_template(s) for s in a.streams}
        for packet in a.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                b.mux(packet)
    data = whole.read_bytes()
    refused = reported = 0
    for length in range(1, len(data), len(data) // 25):
        cut.write_bytes(data[:length])
        try:
            with VideoReader(cut) as reader:
                list(reader)
                assert reader.missing or reader.damaged, length
            reported += 1
        except VideoError as error:
            assert "cannot be read" in str(error) or "no frame" in str(error)
            refused += 1
    assert refused and reported > 10
    with VideoReader(whole) as reader:
        assert len(list(reader)) == 40 and not reader.missing and not reader.damaged


def test_an_mp4_without_its_index_says_so(tmp_path):
    record(tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match="cut off, and its index is missing"):
        VideoReader(tmp_path / "cut.mp4")


def test_a_live_recording_without_lengths_is_whole_until_it_is_cut(tmp_path):
    record(tmp_path / "whole.webm")
    data = bytearray((tmp_path / "whole.webm").read_bytes())
    # As browsers record: neither the segment's length, nor a duration, nor an index.
    at = data.index(b"\x18\x53\x80\x67")
    data[at + 4 : at + 12] = b"\x01" + b"\xff" * 7
    at = data.index(b"\x44\x89\x88")  # the duration becomes an unknown element
    data[at : at + 2] = b"\x44\x88"
    for length, lines in ((len(data), False), (len(data) // 2, True)):
        (tmp_path / "live.webm").write_bytes(data[:length])
        with VideoReader(tmp_path / "live.webm") as reader:
            assert len(list(reader)) > 5
            assert ("cut off" in reader.missing) == lines


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mpg"])
def test_joined_recordings_go_on(tmp_path, suffix):
    record(tmp_path / f"a{suffix}", 25)
    record(tmp_path / f"b{suffix}", 15)
    parts = [(tmp_path / f"{name}{suffix}").read_bytes() for name in "ab"]
    (tmp_path / f"ab{suffix}").write_bytes(b"".join(parts))
    done = matte(tmp_path / f"ab{suffix}", tmp_path / "out.mp4")
    steps = np.diff(seconds(tmp_path / "out.mp4"))
    assert done.frames == 40 and (done.damaged, done.missing) == (0, "")
    assert steps.min() > 0.02 and steps.max() < 0.3
    assert abs(sound_seconds(tmp_path / "out.mp4") - 1.6) < 0.2


@pytest.mark.parametrize("suffix,count", [(".mp4", 2), (".mkv", 3)])
def test_joined_recordings_of_which_some_are_not_read_are_reported(tmp_path, suffix, count):
    record(tmp_path / f"a{suffix}", 10)
    (tmp_path / f"all{suffix}").write_bytes((tmp_path / f"a{suffix}").read_bytes() * count)
    done = matte(tmp_path / f"all{suffix}", tmp_path / "out.mp4")
    assert done.frames == 10 * count or f"of {count} joined recordings" in done.missing


def test_sound_that_is_damaged_after_the_last_frame_counts(tmp_path):
    # Half a second of images, three of sound, whose end is damaged.
    write_video(tmp_path / "short.mp4", count=12)
    write_video(tmp_path / "long.mp4", count=75, audio="aac")
    with (
        av.open(str(tmp_path / "short.mp4")) as images,
        av.open(str(tmp_path / "long.mp4")) as sound,
        av.open(str(tmp_path / "in.mkv"), "w") as out,
    ):
        first = out.add_stream_from_template(images.streams.video[0])
        second = out.add_stream_from_template(sound.streams.audio[0])
        for packet in images.demux(video=0):
            if packet.dts is not None:
                packet.stream = first
                out.mux(packet)
        for packet in sound.demux(audio=0):
            if packet.dts is not None:
                packet.stream = second
                if packet.pts * packet.time_base > 2:
                    packet.update(b"\xff" * packet.size)
                out.mux(packet)
    done = matte(tmp_path / "in.mkv", tmp_path / "out.webm")
    assert done.frames == 12 and done.damaged > 10


def run(*arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, "-m", "portraitmatting", "webcam", *map(str, arguments)],
        cwd=cwd,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


def test_a_missing_file_is_named_before_anything_about_screens(tmp_path):
    for arguments in (["mistyped.mp4", "-o", "out.mp4"], ["mistyped.mp4"], ["frame_%04d.png"]):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and f"{arguments[0]!r}: no such file" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="no such names")
def test_names_with_a_colon_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "in.mp4", 3)
    (tmp_path / "in.mp4").rename("12:30:00.mp4")
    os.mkdir("tcp:1")
    for target in ("12:31.mp4", "file:x.webm", "tcp:1/out.mkv", "frames:1"):
        assert matte("12:30:00.mp4", target).frames == 3 and (tmp_path / target).exists()


class TestOutputs:
    """Refused before the first frame, or written where it was asked for."""

    @pytest.fixture
    def predictor(self, monkeypatch):
        self.calls = 0
        predictor = tiny_predictor()
        predict = type(predictor).predict_batch

        def counted(*arguments, **options):
            self.calls += 1
            return predict(*arguments, **options)

        monkeypatch.setattr(type(predictor), "predict_batch", counted)
        return predictor

    def test_links_are_followed(self, tmp_path, predictor):
        write_video(tmp_path / "in.mp4", count=2)
        (tmp_path / "file.mp4").write_text("older")
        (tmp_path / "frames").mkdir()
        for link, target in (("l.mp4", "file.mp4"), ("new.mp4", "n.mp4"), ("l", "frames")):
            (tmp_path / link).symlink_to(target)
            matte_video(tmp_path / "in.mp4", tmp_path / link, predictor)
            assert (tmp_path / link).is_symlink() and (tmp_path / target).exists()
        assert len(list((tmp_path / "frames").iterdir())) == 2 and len(seconds(tmp_path / "n.mp4"))

    @pytest.mark.parametrize(
        "name", ["folder.mp4", "full", "fifo.mp4", "n" * 300 + ".mp4", ".", ""]
    )
    def test_what_cannot_be_replaced_is_refused(self, tmp_path, predictor, name, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_video(tmp_path / "in.mp4", count=2)
        for folder in ("folder.mp4", "full"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "mine.txt").touch()
        if hasattr(os, "mkfifo"):
            os.mkfifo(tmp_path / "fifo.mp4")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(VideoError) as caught:
            matte_video("in.mp4", name, predictor)
        assert self.calls == 0 and "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_mount_point_is_refused(self, tmp_path, predictor, monkeypatch):
        write_video(tmp_path / "in.mp4", count=2)
        (tmp_path / "mount").mkdir()
        (tmp_path / "bound.mp4").touch()

        def busy(self, target):
            raise OSError(16, "Device or resource busy")

        monkeypatch.setattr("pathlib.Path.rename", busy)
        monkeypatch.setattr("portraitmatting.atomic._is_mount_point", lambda path: True)
        for name in ("mount", "bound.mp4"):
            with pytest.raises(VideoError, match="cannot be written"):
                matte_video(tmp_path / "in.mp4", tmp_path / name, predictor)
        assert self.calls == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path):
    record(tmp_path / "in.mp4", 12)
    target = tmp_path / "out.mkv"
    matte(tmp_path / "in.mp4", target)
    begin = time.perf_counter()
    matte(tmp_path / "in.mp4", target)
    whole = time.perf_counter() - begin
    before = target.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for moment in np.linspace(0.02, 0.95, 20) * whole:
            try:
                signal.setitimer(signal.ITIMER_REAL, moment)
                matte(tmp_path / "in.mp4", target)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mkv"]
            assert len(target.read_bytes()) == len(before)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert interrupted > 5
    assert not [t for t in threading.enumerate() if "prefetch" in t.name]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm", "out.mov", "frames"])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, name):
    import resource

    record(tmp_path / "in.mp4", 6)
    target = tmp_path / name
    matte(tmp_path / "in.mp4", target)
    size = max(p.stat().st_size for p in (target, *target.glob("*")) if p.is_file())
    if target.is_dir():
        shutil.rmtree(target)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for part in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(part * size), old[1]))
        try:
            with pytest.raises(PortraitmattingError, match=r"cannot be written|be written"):
                matte(tmp_path / "in.mp4", target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before, part
