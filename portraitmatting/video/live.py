"""The live job: a camera, a window, and where the results go meanwhile."""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portraitmatting.choices import METHODS, check_number, check_preset, check_word
from portraitmatting.compositing import Background
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.files import write_image
from portraitmatting.predictor import Predictor
from portraitmatting.video.camera import Camera, VirtualCamera
from portraitmatting.video.live_stream import AutoSize, LiveStream
from portraitmatting.video.preview import Controls, Window, help_lines, with_text
from portraitmatting.video.stream import MattedFrame
from portraitmatting.video.writer import VideoWriter

_MILLISECOND = Fraction(1, 1000)
_USUAL_RATE = 30


class Recorder:
    """Writes composites to video files, started and stopped at will."""

    def __init__(self, folder: Path, target: Path | None = None) -> None:
        """Recordings go to new files in `folder`, the first one to `target`, if given."""
        self._folder, self._target = folder, target
        self._open = contextlib.ExitStack()
        self._writer: VideoWriter | None = None
        self._began, self._last = 0.0, -1

    @property
    def running(self) -> bool:
        """Whether frames are wanted."""
        return self._writer is not None

    def start(self) -> Path:
        """Begin a new file and return its name."""
        name = self._target or self._folder / f"recording-{stamp()}.mp4"
        self._target = None
        self._writer = self._open.enter_context(VideoWriter(name, _USUAL_RATE, _MILLISECOND))
        self._last = -1
        return name

    def write(self, matted: MattedFrame) -> None:
        """Add a frame at its own time. An error ends the recording, and its file is gone."""
        assert self._writer is not None
        if self._last < 0:
            self._began = matted.frame.seconds
        milliseconds = round(1000 * (matted.frame.seconds - self._began))
        self._last = max(self._last + 1, milliseconds)
        try:
            self._writer.write(matted.composite(), self._last)
        except PortraitmattingError as error:
            self._writer = None
            # A full disk may refuse the file's end as well, which is of no interest any more.
            with contextlib.suppress(PortraitmattingError):
                self._open.__exit__(type(error), error, error.__traceback__)
            raise

    def stop(self) -> None:
        """Finish the file; it is there from now on."""
        self._writer = None
        self._open.close()


def stamp() -> str:
    """The local time as a part of file names, to the millisecond."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]


_NOTE_SECONDS = 4.0
_RATES = 0.1, 1000.0
_PAUSE_POLL = 30  # milliseconds
_SMOOTHED = 0.1
"""Part of the newest frame in the times that the overlay shows."""


@dataclass
class Timing:
    """Where the time of the frames went, in seconds, summed over `frames`."""

    frames: int = 0
    elapsed: float = 0.0
    """From the first frame's arrival to the last one's display."""
    parts: dict[str, float] = field(default_factory=dict)
    mattes: int = 0
    """How many of the network's there were; all other frames had one carried to them."""
    lost: bool = False
    """The camera went away."""
    failed: bool = False
    """A snapshot or a recording could not be written."""

    def add(self, part: str, seconds: float) -> None:
        """Count `seconds` for a part."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds

    def __str__(self) -> str:
        if not self.frames:
            return "no frames"
        rate = self.frames / self.elapsed if self.elapsed else 0.0
        parts = ", ".join(f"{1000 * s / self.frames:.0f} {name}" for name, s in self.parts.items())
        mattes = self.mattes / self.elapsed if self.elapsed else 0.0
        return (
            f"{self.frames} frames, {rate:.1f} per second, and {mattes:.1f} of the network; "
            f"milliseconds per frame: {parts}"
        )


def run_live(
    camera: Camera,
    predictor: Predictor,
    backgrounds: Sequence[tuple[str, Background]],
    foreground: str = "fast",
    smooth: bool = True,
    preset: str = "auto",
    target_rate: float = 24,
    overlay: bool = True,
    window: bool = True,
    virtual_camera: bool = False,
    folder: str | os.PathLike[str] = ".",
    record_to: str | os.PathLike[str] | None = None,
) -> Timing:
    """Show the person before a background until `q`, the window's closing or the camera's end.

    Args:
        camera: where frames come from.
        predictor: makes the mattes.
        backgrounds: (name, background), between which a key switches.
        foreground: a method of `estimate_foreground`.
        smooth: steady the matte over time.
        preset: one of `PRESETS`, or "auto", which keeps `target_rate` where the machine can.
        target_rate: frames per second.
        overlay: show the rate and the keys in the window.
        window: without one it runs until the camera ends or Ctrl-C.
        virtual_camera: offer the result as a camera to other programs.
        folder: where snapshots and recordings go.
        record_to: start recording at once, into this file.

    Call it from the main thread. Raises PortraitmattingError for what was asked and cannot be done;
    a snapshot or recording that fails later says so in the window and is reported in the result.
    """
    check_preset(preset, "auto")
    check_word("foreground method", foreground, METHODS)
    check_number("target rate", target_rate, *_RATES)
    auto = AutoSize(predictor, target_rate) if preset == "auto" else None
    predictor = predictor.at_short_side(auto.short_side) if auto else predictor.at_preset(preset)
    controls = Controls(list(backgrounds), overlay=overlay)
    live = LiveStream(camera, predictor, controls, foreground, smooth, target_rate, auto)
    session = _Session(camera, live, controls, f"{preset}, {predictor.runs_on}", Path(folder))
    with contextlib.ExitStack() as stack:
        if window:
            session.window = stack.enter_context(Window())
        if virtual_camera:
            session.virtual = stack.enter_context(VirtualCamera())
        if record_to is not None:
            session.recorder = Recorder(Path(folder), Path(record_to))
            session.recorder.start()
        # Ctrl-C ends a recording like any other way to quit does.
        stack.callback(session.recorder.stop)
        frames = stack.enter_context(contextlib.closing(iter(live)))
        for matted in frames:
            if not session.take(matted):
                break
    session.timing.lost = camera.lost
    return session.timing


class _Session:
    """One run of the live job: what happens to a frame once it has its matte."""

    def __init__(
        self, camera: Camera, live: LiveStream, controls: Controls, runs_on: str, folder: Path
    ) -> None:
        self.controls = controls
        self.timing = Timing()
        self.window: Window | None = None
        self.virtual: VirtualCamera | None = None
        self.recorder = Recorder(folder)
        self._camera, self._live, self._runs_on, self._folder = camera, live, runs_on, folder
        self._note, self._note_until = "", 0.0
        self._began = self._shown = self._answered = 0.0
        self._interval = self._latency = self._network_interval = self._age = 0.0

    def take(self, matted: MattedFrame) -> bool:
        """Send a frame everywhere it should go and obey the keys; False to quit."""
        now = time.perf_counter()
        if not self.timing.frames:
            self._began = self._shown = now - matted.matting_seconds - matted.smoothing_seconds
            self._answered = self._began
        if self._live.passes > self.timing.mattes:
            self._network_interval = _follow(self._network_interval, now - self._answered)
            self.timing.mattes, self._answered = self._live.passes, now
        self.timing.add("matte", matted.matting_seconds)
        self.timing.add("smoothing", matted.smoothing_seconds)
        view = self.controls.render(matted)
        now = self._count("foreground and background", now)
        if self.virtual is not None:
            self.virtual.send(matted.composite())
            now = self._count("virtual camera", now)
        if self.recorder.running:
            self._record(matted)
            now = self._count("recording", now)
        going_on = self._show(view, matted) if self.window is not None else True
        now = self._count("display", now)
        self.timing.frames += 1
        self.timing.elapsed = now - self._began
        self._interval = _follow(self._interval, now - self._shown)
        self._latency = _follow(self._latency, self._camera.age(matted.frame))
        self._age = _follow(self._age, matted.age)
        self._shown = now
        return going_on and self._wait_while_paused(matted)

    def _count(self, part: str, since: float) -> float:
        now = time.perf_counter()
        self.timing.add(part, now - since)
        return now

    def _show(self, view: NDArray[np.uint8], matted: MattedFrame) -> bool:
        assert self.window is not None
        self.window.show(with_text(view, self._lines(matted)))
        return self._obey(self.window.key(), matted)

    def _wait_while_paused(self, matted: MattedFrame) -> bool:
        while self.controls.paused and self.window is not None:
            # Drawn again, so that the other keys show what they do to the still image.
            self.window.show(with_text(self.controls.render(matted), self._lines(matted)))
            if not self._obey(self.window.key(_PAUSE_POLL), matted):
                return False
            now = time.perf_counter()
            paused = now - self._shown
            self._began, self._answered = self._began + paused, self._answered + paused
            self._shown = now
        return True

    def _obey(self, key: int | None, matted: MattedFrame) -> bool:
        action = "quit" if key is None else self.controls.press(key)
        if action == "snapshot":
            self._snapshot(matted)
        elif action == "record":
            self._toggle_recording()
        return action != "quit"

    def _lines(self, matted: MattedFrame) -> list[str]:
        controls, lines = self.controls, []
        if controls.overlay:
            height, width = matted.image.shape[:2]
            shown, mattes = (_rate(i) for i in (self._interval, self._network_interval))
            lines += [
                f"{shown:.1f} fps   latency {1000 * self._latency:.0f} ms",
                f"network {mattes:.1f} per second, {1000 * self._age:.0f} ms behind",
                f"{width}x{height} at {matted.short_side} ({self._runs_on})",
                f"{controls.background_name}   h: help",
            ]
        if self.recorder.running:
            lines.append("recording")
        if controls.paused:
            lines.append("paused")
        if time.monotonic() < self._note_until:
            lines.append(self._note)
        return lines + (help_lines() if controls.help else [])

    def _say(self, note: str) -> None:
        self._note, self._note_until = note, time.monotonic() + _NOTE_SECONDS
        print(note)

    def _fail(self, error: PortraitmattingError) -> None:
        self.timing.failed = True
        self._say(str(error))

    def _snapshot(self, matted: MattedFrame) -> None:
        path = self._folder / f"snapshot-{stamp()}.png"
        try:
            write_image(path, matted.rgba())
            self._say(f"saved {path}")
        except PortraitmattingError as error:
            self._fail(error)

    def _toggle_recording(self) -> None:
        try:
            if self.recorder.running:
                self.recorder.stop()
                self._say("recording saved")
            else:
                self._say(f"recording {self.recorder.start()}")
        except PortraitmattingError as error:
            self._fail(error)

    def _record(self, matted: MattedFrame) -> None:
        try:
            self.recorder.write(matted)
        except PortraitmattingError as error:
            self._fail(error)


def _rate(interval: float) -> float:
    return 1 / interval if interval else 0.0


def _follow(average: float, newest: float) -> float:
    return average + _SMOOTHED * (newest - average) if average else newest
