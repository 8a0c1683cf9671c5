"""The stream of mattes: order, smoothing, sizes that follow a target rate, moving backgrounds."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portraitmatting.choices import preset_short_side
from portraitmatting.errors import PortraitmattingError
from portraitmatting.metrics import dtssd
from portraitmatting.video import matte_stream
from portraitmatting.video.backgrounds import VideoBackground
from portraitmatting.video.camera import Newest
from portraitmatting.video.ffmpeg import VideoError
from portraitmatting.video.live_stream import AutoSize
from portraitmatting.video.stream import Smoother
from video_samples import drawn_frame, tiny_predictor


def test_stream_gives_every_frame_in_order_and_what_the_predictor_gives():
    frames = [drawn_frame(i) for i in range(5)]
    for batch_size in (1, 2, 7):
        outputs = list(
            matte_stream(iter(frames), tiny_predictor(), smooth=False, batch_size=batch_size)
        )
        assert len(outputs) == 5
        for image, matted in zip(frames, outputs, strict=True):
            np.testing.assert_array_equal(matted.image, image)
            wanted = tiny_predictor().predict(image).alpha
            np.testing.assert_allclose(matted.alpha, wanted, atol=1e-5)
            assert matted.rgba().shape == (48, 64, 4)


def test_stream_is_lazy_and_takes_any_background():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield drawn_frame(0)

    backdrop = np.full((10, 10, 3), 7, np.uint8)
    for background in ("#00ff00", backdrop, lambda image, alpha: np.zeros_like(image)):
        matted = next(matte_stream(endless(), tiny_predictor(), background))
        assert matted.composite().shape == (48, 64, 3)
    assert len(taken) == 3
    alpha = matted.alpha
    wanted = alpha[..., None] * matted.foreground
    np.testing.assert_allclose(matted.composite(), wanted, atol=0.51)


@pytest.mark.parametrize(
    "options",
    [{"foreground": "best"}, {"batch_size": 0}, {"background": "no-such"}],
)
def test_stream_names_mistakes_at_the_call(options):
    with pytest.raises(PortraitmattingError):
        matte_stream([], tiny_predictor(), **options)


def moving_scene(speed, count=20, noise=3.0, flicker=0.25):
    """A disc before a pattern, with its true mattes, and mattes that flicker at its edge."""
    rng = np.random.default_rng(5)
    pattern = cv2.resize(rng.integers(0, 200, (12, 16, 3), np.uint8), (160, 120))
    images, truths, mattes = [], [], []
    for index in range(count):
        truth = np.zeros((120, 160), np.float32)
        cv2.circle(truth, (50 + round(speed * index), 60), 30, 1.0, -1, cv2.LINE_AA)
        truth = cv2.GaussianBlur(truth, (0, 0), 2)
        scene = truth[..., None] * (230, 180, 150) + (1 - truth[..., None]) * pattern
        images.append(np.clip(scene + rng.normal(0, noise, scene.shape), 0, 255).astype(np.uint8))
        soft = 4 * truth * (1 - truth)
        wobble = cv2.GaussianBlur(rng.normal(0, 8, truth.shape).astype(np.float32), (0, 0), 3)
        mattes.append(np.clip(truth + flicker * soft * wobble, 0, 1).astype(np.float32))
        truths.append(np.clip(truth, 0, 1))
    return images, truths, mattes


def test_a_still_subject_does_not_flicker():
    images, truths, mattes = moving_scene(0)
    smoother = Smoother()
    steady = [smoother(i, a) for i, a in zip(images, mattes, strict=True)]
    assert dtssd(steady[5:], truths[5:]) < 0.4 * dtssd(mattes[5:], truths[5:])
    before = np.var(np.stack(mattes[5:]), axis=0).mean()
    assert np.var(np.stack(steady[5:]), axis=0).mean() < 0.3 * before


def test_a_moving_subject_does_not_lag():
    images, truths, mattes = moving_scene(4)
    smoother = Smoother()
    steady = [smoother(i, a) for i, a in zip(images, mattes, strict=True)]

    def error(alphas):
        return np.mean([np.abs(a - t).mean() for a, t in zip(alphas, truths, strict=True)])

    assert error(steady) < 1.05 * error(mattes)
    # What plain averaging of the same strength would do, to see that this test can fail.
    lagging, averaged = mattes[0], []
    for alpha in mattes:
        lagging = 0.2 * alpha + 0.8 * lagging
        averaged.append(lagging)
    assert error(averaged) > 2 * error(mattes)


def test_a_cut_and_a_new_size_start_afresh():
    smoother = Smoother()
    dark, light = np.zeros((60, 80, 3), np.uint8), np.full((60, 80, 3), 200, np.uint8)
    smoother(dark, np.zeros((60, 80), np.float32))
    ones = np.ones((60, 80), np.float32)
    np.testing.assert_array_equal(smoother(light, ones), ones)
    np.testing.assert_array_equal(smoother(light[:30], ones[:30]), ones[:30])


def test_presets_follow_the_checkpoints_size():
    predictor = tiny_predictor()
    large = predictor.at_short_side(320)
    assert [preset_short_side(large.short_side, p) for p in ("fast", "balanced", "quality")] == [
        192,
        256,
        320,
    ]
    assert preset_short_side(predictor.short_side, "fast") == 32
    assert predictor.short_side == 32 and large.model is predictor.model
    with pytest.raises(PortraitmattingError, match="preset 'best'"):
        preset_short_side(predictor.short_side, "best")


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.3), st.floats(1e-8, 1e-5), st.floats(5, 60))
def test_auto_size_settles_on_the_largest_size_that_fits(constant, per_area, target):
    auto = AutoSize(tiny_predictor().at_short_side(384), target)
    seen = []
    for _ in range(240):
        auto.network_took(constant + per_area * auto.short_side**2)
        seen.append(auto.short_side)
    assert len(set(seen[120:])) == 1  # no swinging

    def took(size):
        return constant + per_area * size**2

    # A network that is slow at any size gains nothing by a small one.
    room, size = max(3 / target, 1.1 * took(160)), seen[-1]
    assert took(size) <= 1.001 * room
    # The next larger one would, as far as is known, leave next to no time unused.
    assert size == 384 or took(size) * ((size + 32) / size) ** 2 > 0.849 * room


def test_newest_replaces_counts_and_hands_on_errors():
    slot = Newest()
    with pytest.raises(TimeoutError):
        slot.get(0.01)
    for item in (1, 2, 3):
        slot.put(item)
    assert (slot.get(1), slot.dropped) == (3, 2)
    slot.put(4)
    slot.close(RuntimeError("camera"))
    assert slot.get(1) == 4
    with pytest.raises(RuntimeError, match="camera"):
        slot.get(1)


def make_avi(path, values, rate=10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (40, 20))
    for value in values:
        writer.write(np.full((20, 40, 3), value, np.uint8))
    writer.release()


def test_a_video_background_runs_at_its_own_speed_and_loops(tmp_path):
    make_avi(tmp_path / "b.avi", [10, 60, 110, 160])
    background = VideoBackground(tmp_path / "b.avi")
    image, alpha = np.zeros((30, 30, 3), np.uint8), np.zeros((30, 30), np.float32)
    for moment, value in [
        (0, 10),
        (0.05, 10),
        (0.1, 60),
        (0.3, 160),
        (0.4, 10),
        (0.95, 60),
        (0, 10),
    ]:
        shown = background.at(moment)(image, alpha)
        assert shown.shape == image.shape and abs(int(shown.mean()) - value) <= 3, moment


def test_a_video_background_serves_several_threads(tmp_path):
    """Each gets the moment that it asked for; what is before the start is the first frame."""
    make_avi(tmp_path / "b.avi", range(0, 250, 10))
    background = VideoBackground(tmp_path / "b.avi")
    image, alpha = np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40), np.float32)
    moments = [step / 10 for step in range(-2, 25)] * 4
    with ThreadPoolExecutor(8) as pool:
        shown = [at(image, alpha).mean() for at in pool.map(background.at, moments)]
    np.testing.assert_allclose(shown, [max(0, 100 * moment) for moment in moments], atol=3)
    capture = background.at(-1) and background._capture
    background.at(-1)
    assert background._capture is capture


def test_a_video_background_leaps_over_the_time_it_was_not_shown(tmp_path):
    make_avi(tmp_path / "b.avi", [10, 60, 110, 160])
    background = VideoBackground(tmp_path / "b.avi")
    grabbed = []
    capture = background._capture

    class Counted:
        def __getattr__(self, name):
            return getattr(capture, name)

        def grab(self):
            grabbed.append(1)
            return capture.grab()

    background._capture = Counted()
    image, alpha = np.zeros((30, 30, 3), np.uint8), np.zeros((30, 30), np.float32)
    for moment, value in [(3600.2, 110), (3600.3, 160), (3600.4, 10)]:
        assert abs(int(background.at(moment)(image, alpha).mean()) - value) <= 3, moment
    assert not grabbed


def test_what_is_no_background_video_is_refused(tmp_path):
    (tmp_path / "x.mp4").write_text("text")
    with pytest.raises(VideoError, match="cannot be played"):
        VideoBackground(tmp_path / "x.mp4")
