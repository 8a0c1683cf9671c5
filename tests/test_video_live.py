"""The live job without a camera or a screen, and the real window where a virtual screen is."""

import os
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from portraitmatting.commands import webcam as command_line
from portraitmatting.compositing import color
from portraitmatting.errors import PortraitmattingError
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.matte import Matte
from portraitmatting.predictor import Estimate
from portraitmatting.video import camera as camera_module
from portraitmatting.video.backgrounds import live_backgrounds
from portraitmatting.video.camera import Camera
from portraitmatting.video.ffmpeg import VideoError
from portraitmatting.video.live import Recorder, run_live
from portraitmatting.video.live_stream import LiveStream, MatteCarrier
from portraitmatting.video.preview import Controls, Window, with_text
from portraitmatting.video.reader import Frame
from portraitmatting.video.stream import matte_stream
from test_video_stream import make_avi
from video_samples import drawn_frame, tiny_predictor

ROOT = Path(__file__).parent.parent


class FakeCapture:
    """A camera at 200 frames per second that goes away after `count`."""

    def __init__(self, count, fails=()):
        self.left, self.fails, self.index, self.released = count, set(fails), 0, False

    def isOpened(self):
        return True

    def set(self, *_):
        return True

    def read(self):
        time.sleep(0.005)
        self.index += 1
        if self.index > self.left or self.index in self.fails:
            return False, None
        return True, drawn_frame(self.index % 30)[..., ::-1].copy()

    def release(self):
        self.released = True


@pytest.fixture
def fake_camera(monkeypatch):
    def make(count, fails=()):
        capture = FakeCapture(count, fails)
        monkeypatch.setattr(camera_module, "_open", lambda source: capture)
        monkeypatch.setattr(camera_module, "_LOST_SECONDS", 0.2)
        monkeypatch.setattr(camera_module, "_FIRST_FRAME_SECONDS", 0.5)
        return capture

    return make


def test_only_the_newest_frame_counts_live(fake_camera):
    capture = fake_camera(10_000, fails=(3, 4))
    with Camera("0") as camera:
        frames = iter(camera)
        first = next(frames)
        while capture.index < 25:
            time.sleep(0.01)
        second = next(frames)
        assert camera.age(second) >= 0
    # Twenty-four images were read since then, less the bad ones and the two that were taken.
    assert camera.dropped >= 15
    assert second.seconds > first.seconds
    assert capture.released
    assert tuple(first.image[2, 2]) == (200, 30, 30)  # RGB, though cameras give BGR


def test_a_camera_that_goes_away_ends_cleanly(fake_camera):
    fake_camera(5)
    with Camera("0") as camera:
        assert 1 <= len(list(camera)) <= 5
    assert camera.lost


def test_a_camera_that_gives_no_frame_says_which_do(fake_camera, monkeypatch):
    fake_camera(0)
    monkeypatch.setattr(camera_module, "working_cameras", lambda skip="": [2, 3])
    with Camera("0") as camera, pytest.raises(VideoError, match=r"gives no frame.*2, 3"):
        next(iter(camera))


def test_what_cannot_be_opened_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(camera_module, "working_cameras", lambda skip="": [1])
    with pytest.raises(VideoError, match=r"camera 77 cannot be opened.*work: 1") as caught:
        Camera("77")
    assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match=r"no-such\.mp4: no such file"):
        Camera("no-such.mp4")
    with pytest.raises(VideoError, match=r"x: no stream that OpenCV can open"):
        Camera("http://127.0.0.1:1/x")
    (tmp_path / "text.txt").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.txt: no video that OpenCV can play"):
        Camera(str(tmp_path / "text.txt"))


def test_a_camera_error_reaches_the_consumer(fake_camera):
    capture = fake_camera(3)

    def broken():
        raise RuntimeError("driver")

    capture.read = broken
    with Camera("0") as camera, pytest.raises(RuntimeError, match="driver"):
        next(iter(camera))


def test_a_url_with_an_end_loses_no_frame(fake_camera):
    capture = fake_camera(7)
    capture.get = {cv2.CAP_PROP_FRAME_COUNT: 7, cv2.CAP_PROP_FPS: 500}.get
    with Camera("http://example.org/v.mp4") as camera:
        assert len(list(camera)) == 7 and not camera.lost
    capture.get = {cv2.CAP_PROP_FRAME_COUNT: -1}.get
    assert not Camera("rtsp://example.org/live").is_file


def test_a_silent_stream_gets_no_advice_about_cameras(fake_camera):
    capture = fake_camera(0)
    capture.get = lambda setting: 0
    with Camera("rtsp://example.org/live") as camera, pytest.raises(VideoError) as caught:
        next(iter(camera))
    assert "gives no frame: check that something sends there" in str(caught.value)


def test_a_file_loses_no_frame_live(tmp_path):
    make_avi(tmp_path / "v.avi", range(10, 130, 10), rate=100)
    with Camera(str(tmp_path / "v.avi")) as camera:
        timing = run_live(
            camera, tiny_predictor(), live_backgrounds(), preset="fast", window=False, overlay=False
        )
    assert (timing.frames, timing.lost) == (12, False)
    assert timing.elapsed >= sum(timing.parts.values()) * 0.9
    assert "12 frames" in str(timing)


def matted_frame(index=0):
    frame = Frame(drawn_frame(index), index, Fraction(1, 10))
    (matted,) = matte_stream([frame], tiny_predictor(), "black")
    return matted


def test_keys_change_what_is_shown():
    controls = Controls([("red", color("red")), ("blur", color("black"))])
    matted = matted_frame()
    assert controls.press(-1) is None and controls.background_name == "red"
    assert controls.press(ord("n")) is None and controls.background_name == "blur 0.030"
    controls.press(ord("]"))
    assert controls.background_name == "blur 0.042"
    controls.press(ord("n"))
    assert (controls.at(0)(matted.image, matted.alpha) == (255, 0, 0)).all()
    controls.press(ord("a"))
    grey = controls.render(matted)
    assert np.abs(grey[..., 0] / 255 - matted.alpha).max() < 0.003
    controls.press(ord("s"))
    assert controls.render(matted).shape == (48, 128, 3)
    assert [controls.press(ord(k)) for k in "qprQ"] == ["quit", "snapshot", "record", "quit"]
    assert controls.press(27) == "quit"
    controls.press(ord(" "))
    assert controls.paused


def test_text_is_drawn_on_a_copy():
    image = drawn_frame(20, 240, 320)
    before = image.copy()
    written = with_text(image, ["12.3 fps", "h: help"])
    np.testing.assert_array_equal(image, before)
    assert (written != image).any()
    np.testing.assert_array_equal(written[120:], image[120:])
    assert with_text(image, []) is image


def test_recordings_keep_time(tmp_path):
    pytest.importorskip("av")
    from video_samples import seconds

    recorder = Recorder(tmp_path)
    path = recorder.start()
    for index in (3, 4, 4, 9):
        recorder.write(matted_frame(index))
    assert not path.exists() and recorder.running
    recorder.stop()
    assert path.parent == tmp_path and not recorder.running
    np.testing.assert_allclose(seconds(path), [0, 0.1, 0.101, 0.6], atol=1e-3)


def test_a_recording_to_a_given_file_begins_at_once(tmp_path, fake_camera):
    pytest.importorskip("av")
    fake_camera(8)
    with Camera("0") as camera:
        run_live(
            camera,
            tiny_predictor(),
            live_backgrounds(["red"]),
            window=False,
            record_to=tmp_path / "out.mp4",
        )
    assert (tmp_path / "out.mp4").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_a_recording_that_fails_ends_in_an_exit_code_but_not_the_show(
    tmp_path, fake_camera, monkeypatch, capsys
):
    pytest.importorskip("av")
    fake_camera(8)

    def full(self, *_):
        raise VideoError("disk full")

    monkeypatch.setattr("portraitmatting.video.writer.VideoWriter.write", full)
    monkeypatch.setattr(command_line, "load_predictor", lambda *_: tiny_predictor())
    arguments = ["0", "-o", str(tmp_path / "out.mp4"), "--no-window", "--background", "red"]
    assert command_line.main(arguments) == 1
    message = capsys.readouterr()
    assert "disk full\n" in message.out and "per second" in message.out  # the show went on
    assert "gives no more frames" in message.err
    assert not list(tmp_path.iterdir())


def test_the_command_names_the_working_size_of_the_preset(
    tmp_path, fake_camera, monkeypatch, capsys
):
    pytest.importorskip("av")
    fake_camera(2)
    monkeypatch.setattr(
        command_line, "load_predictor", lambda *_: tiny_predictor().at_short_side(64)
    )
    live, video = tmp_path / "live.mp4", tmp_path / "video.mp4"
    for call in (["0", "-o", str(live), "--no-window"], [str(live), "-o", str(video)]):
        command_line.main([*call, "--preset", "fast"])
        assert capsys.readouterr().err.split("\n")[0].endswith("short side 32")


def test_an_unknown_preset_is_answered_with_the_known_ones(fake_camera):
    fake_camera(1)
    with (
        Camera("0") as camera,
        pytest.raises(
            PortraitmattingError, match="'best': use auto, live, fast, balanced, quality"
        ),
    ):
        run_live(camera, tiny_predictor(), live_backgrounds(), preset="best", window=False)


class FakeWindow:
    """Is paused at the second frame and goes on after `still` looks at the keyboard."""

    def __init__(self, still):
        self.keys = [-1, ord(" "), *[-1] * still, ord(" ")]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def show(self, image):
        self.shape = image.shape

    def key(self, milliseconds=1):
        time.sleep(milliseconds / 1000)
        return self.keys.pop(0) if self.keys else -1


def test_a_pause_is_no_slowness(tmp_path, monkeypatch):
    make_avi(tmp_path / "v.avi", range(10, 70, 10), rate=100)
    monkeypatch.setattr("portraitmatting.video.live.Window", lambda: FakeWindow(still=60))
    before = time.monotonic()
    with Camera(str(tmp_path / "v.avi")) as camera:
        timing = run_live(camera, tiny_predictor(), live_backgrounds())
    took = time.monotonic() - before
    assert took > 60 * 0.03 and timing.frames == 6
    assert timing.elapsed < took - 60 * 0.03


def test_a_window_without_a_window_toolkit_says_so(monkeypatch):
    def unimplemented(*_):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "namedWindow", unimplemented)
    with pytest.raises(VideoError, match="built without them"), Window():
        pass


def test_virtual_camera_gets_the_composite(tmp_path, monkeypatch):
    sent = []

    class FakeVirtual:
        def __init__(self, width, height, fps):
            self.size, self.device = (width, height), "fake"

        def send(self, frame):
            sent.append(frame)

        def close(self):
            sent.append("closed")

    module = type(sys)("pyvirtualcam")
    module.Camera = FakeVirtual
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    make_avi(tmp_path / "v.avi", [10, 20], rate=100)
    with Camera(str(tmp_path / "v.avi")) as camera:
        run_live(camera, tiny_predictor(), live_backgrounds(), window=False, virtual_camera=True)
    assert [getattr(s, "shape", s) for s in sent] == [(20, 40, 3), (20, 40, 3), "closed"]
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with (
        Camera(str(tmp_path / "v.avi")) as camera,
        pytest.raises(VideoError, match=r"pip install .*\[virtualcam\]"),
    ):
        run_live(camera, tiny_predictor(), live_backgrounds(), window=False, virtual_camera=True)


def run_script(*arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "eval_webcam.py"), *map(str, arguments)],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a screen")
def test_without_a_screen_one_line_says_so(tmp_path):
    make_avi(tmp_path / "v.avi", [10])
    process = run_script(tmp_path / "v.avi")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1 and err.startswith("error: no window"), err


def test_what_is_no_video_is_refused_before_the_network_loads(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("no video")
    process = run_script(tmp_path / "text.mp4", "-o", tmp_path / "out.mp4")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    # The line that names the device would come first.
    assert len(err.splitlines()) == 1 and "cannot be read as a video" in err, err


@pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Xvfb and xdotool"
)
def test_the_real_window_obeys_its_keys(tmp_path):
    from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint

    checkpoint = tmp_path / "tiny.safetensors"
    info = CheckpointInfo("a test", "none", working_short_side=32)
    save_checkpoint(checkpoint, tiny_predictor().model, info)
    make_avi(tmp_path / "v.avi", [value % 200 for value in range(3000)], rate=30)
    read_end, write_end = os.pipe()
    server = subprocess.Popen(
        # Without -noreset it starts afresh when its last client leaves, under the next one's feet.
        ["Xvfb", "-noreset", "-displayfd", str(write_end), "-screen", "0", "800x600x24"],
        pass_fds=[write_end],
        stderr=subprocess.DEVNULL,
    )
    os.close(write_end)
    with os.fdopen(read_end) as display_number:
        display = f":{display_number.readline().strip()}"
    process = run_script(
        tmp_path / "v.avi", "--checkpoint", checkpoint, "--folder", tmp_path, DISPLAY=display
    )
    try:
        # Not --sync, which fails if any window closes while it looks through all of them. A key
        # that comes before the window listens is lost: pressed again until it has been obeyed.
        xdotool = ["xdotool", "search", "--name", "^portraitmatting$", "key"]
        env = {**os.environ, "DISPLAY": display}

        def press_until(key, obeyed):
            end = time.monotonic() + 120
            while not obeyed():
                assert time.monotonic() < end
                subprocess.run([*xdotool, key], env=env, stderr=subprocess.DEVNULL)
                time.sleep(0.5)

        press_until("p", lambda: list(tmp_path.glob("snapshot-*.png")))
        subprocess.run([*xdotool, "space"], env=env, check=True)
        press_until("q", lambda: process.poll() is not None)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        server.terminate()
        server.wait()
    assert process.returncode == 0, err
    assert "frames," in out and "display" in out
    snapshot = next(tmp_path.glob("snapshot-*.png"))
    assert cv2.imread(str(snapshot), cv2.IMREAD_UNCHANGED).shape == (20, 40, 4)


@pytest.mark.parametrize("index", ["99999999999999999999", "9" * 5000])
def test_an_index_that_no_camera_has(index):
    with pytest.raises(VideoError, match="counted from 0"):
        Camera(index)


def test_a_camera_may_take_its_time_for_the_first_frame(fake_camera, monkeypatch):
    capture = fake_camera(10_000, fails=range(80))  # 0.4 s, longer than what later silence may last
    monkeypatch.setattr(camera_module, "_FIRST_FRAME_SECONDS", 5.0)
    with Camera("0") as camera:
        assert next(iter(camera)).image.any()
    assert capture.index >= 80


def test_of_a_camera_mjpg_and_a_rate_are_asked(fake_camera):
    asked = []
    fake_camera(5).set = lambda setting, value: asked.append((setting, value))
    Camera("0", width=640, height=480)
    # The format first: the sizes and rates are those that it offers.
    assert asked[0] == (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    assert asked[1:] == [
        (cv2.CAP_PROP_FRAME_WIDTH, 640),
        (cv2.CAP_PROP_FRAME_HEIGHT, 480),
        (cv2.CAP_PROP_FPS, 30),
    ]


class SlowPredictor:
    """Sees a bright disc at once, and says so after `seconds`."""

    device, short_side, runs_on = torch.device("cpu"), 32, "slow"

    def __init__(self, seconds):
        self.seconds = seconds

    def at_short_side(self, short_side):
        return self

    def prepare(self, image):
        return image

    def estimate(self, batch):
        time.sleep(self.seconds)
        coarse = cv2.resize(disc_matte(batch[0]), (96, 72), interpolation=cv2.INTER_AREA)
        return [Estimate(batch[0], torch.from_numpy(coarse)[None], torch.zeros(72, 96), None)]

    def finish(self, estimate):
        alpha = guided_upsample(estimate.image, estimate.alpha[0].numpy())
        return Matte(estimate.image, alpha, np.zeros(alpha.shape, np.uint8))


def disc_matte(image):
    return (image[..., 0] > 170).astype(np.float32)


def moving_disc(count, speed=4):
    pattern = np.random.default_rng(0).integers(0, 150, (24, 32, 3), np.uint8)
    texture = np.random.default_rng(1).integers(180, 255, (12, 16, 3), np.uint8)
    behind, skin = (
        cv2.resize(p, (320, 240), interpolation=cv2.INTER_CUBIC) for p in (pattern, texture)
    )
    behind = np.minimum(behind, 160)
    skin = np.maximum(skin, 180)
    for index in range(count):
        image, disc = behind.copy(), np.zeros((240, 320), np.uint8)
        cv2.circle(disc, (80 + speed * index, 120), 50, 255, -1)
        moved = np.roll(skin, speed * index, axis=1)
        image[disc > 0] = moved[disc > 0]
        yield image


def at_rate(images, rate=30):
    for index, image in enumerate(images):
        yield Frame(image, index, Fraction(1, rate))
        time.sleep(1 / rate)


class LatePredictor(SlowPredictor):
    """Answers once the camera has given six more frames."""

    given = 0

    def counted(self, frames):
        for frame in frames:
            self.given += 1
            yield frame

    def estimate(self, batch):
        begun = self.given
        answers = super().estimate(batch)
        deadline = time.monotonic() + 2
        while begun > 1 and self.given < begun + 6 and time.monotonic() < deadline:
            time.sleep(0.002)
        return answers


def test_every_frame_has_a_matte_of_its_own_though_the_network_is_slow():
    predictor = LatePredictor(0.05)
    frames = predictor.counted(at_rate(moving_disc(30)))
    live = LiveStream(frames, predictor, color("black"), smooth=False)
    shown = list(live)
    assert len(shown) == 30 and live.passes <= 8
    errors, old = [], []
    for index, matted in enumerate(shown):
        truth = disc_matte(matted.image)
        errors.append(np.abs(matted.alpha - truth).mean())
        seen = index - round(matted.age * 30)
        old.append(np.abs(disc_matte(shown[seen].image) - truth).mean())
    assert max(matted.age for matted in shown) > 0.15
    assert np.mean(errors) < 0.4 * np.mean(old)


def test_a_network_that_keeps_up_is_waited_for():
    images = list(moving_disc(6))
    live = LiveStream(
        at_rate(images), tiny_predictor(), color("black"), smooth=False, target_rate=0.1
    )
    shown = list(live)
    for image, matted in zip(images[2:], shown[2:], strict=True):  # once it has warmed up
        assert matted.age == 0
        np.testing.assert_allclose(matted.alpha, tiny_predictor().predict(image).alpha, atol=1e-5)


def test_after_a_cut_the_network_is_waited_for():
    one, other = next(moving_disc(1)), np.random.default_rng(2).integers(0, 255, (240, 320, 3))
    other = cv2.GaussianBlur(other.astype(np.uint8), (0, 0), 4)
    cv2.circle(other, (250, 100), 40, (200, 190, 180), -1)
    frames = at_rate([one, one, one, other], rate=10)
    shown = list(LiveStream(frames, SlowPredictor(0.15), color("black"), smooth=False))
    assert shown[3].age == 0
    assert np.abs(shown[3].alpha - disc_matte(other)).mean() < 0.02


def test_a_new_matte_takes_over_without_a_jump():
    image = next(moving_disc(1))
    carrier = MatteCarrier()
    sight = carrier.see(image)
    for level in (0.5, 1.0):
        carrier.ask(sight)
        carrier.take_over(np.full((24, 32), level, np.float32))
        levels = []
        for _ in range(8):
            sight = carrier.see(image)
            levels.append(float(carrier.carry().mean()))
    assert levels[0] < 0.85 and levels[-1] > 0.99
    assert levels == sorted(levels)


def test_frames_of_another_size_start_afresh():
    images = list(moving_disc(2))
    small = cv2.resize(images[1], (160, 120))
    frames = at_rate([images[0], images[1], small, small])
    shown = list(LiveStream(frames, SlowPredictor(0.1), color("black")))
    assert [matted.alpha.shape for matted in shown] == [(240, 320)] * 2 + [(120, 160)] * 2


def test_an_error_of_the_network_reaches_the_consumer(monkeypatch):
    predictor = SlowPredictor(0.05)

    def broken(batch):
        raise PortraitmattingError("out of memory")

    predictor.estimate = broken
    with pytest.raises(PortraitmattingError, match="out of memory"):
        list(LiveStream(at_rate(moving_disc(3)), predictor, color("black")))


def test_the_window_may_be_a_mirror_but_not_the_result():
    controls = Controls([("red", color("red"))])
    matted = matted_frame()
    plain = controls.render(matted)
    controls.press(ord("m"))
    np.testing.assert_array_equal(controls.render(matted), plain[:, ::-1])
    controls.press(ord("s"))
    np.testing.assert_array_equal(controls.render(matted)[:, :64], matted.image[:, ::-1])


def test_the_windows_height_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    sizes = []
    for name in ("namedWindow", "destroyWindow", "imshow", "waitKey"):
        monkeypatch.setattr(cv2, name, lambda *_: 0)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "getWindowImageRect", lambda *_: (0, 0, 10, 300))
    monkeypatch.setattr(cv2, "resizeWindow", lambda title, *size: sizes.append(size))
    image = np.zeros((48, 64, 3), np.uint8)
    for _ in range(2):
        with Window() as window:
            window.show(image)
            window.show(np.hstack([image, image]))
    assert sizes == [(64, 48), (800, 300), (400, 300), (800, 300)]
    (tmp_path / "portraitmatting/window-height").write_text("no number")
    assert Window()._height == 0
