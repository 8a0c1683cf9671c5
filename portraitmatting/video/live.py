"""The live job: a camera, a window, and where the results go meanwhile."""

import contextlib
import os
import time
from collections import defaultdict
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
_RECORDING_RATE = 30
"""What a recording's file declares; each frame has its own time."""
_TARGET_RATES = 0.1, 1000.0
_NOTE_SECONDS = 4.0
_PAUSE_POLL = 30  # milliseconds
_NEWEST = 0.1
"""Weight of the newest frame in the times that the overlay shows."""


class Recorder:
    """Writes composites to new video files in `folder`, the first to `target` if that is given."""

    def __init__(self, folder: Path, target: Path | None = None) -> None:
        self._folder, self._target = folder, target
        self._open = contextlib.ExitStack()
        self._writer: VideoWriter | None = None
        self._began, self._last = 0.0, -1

    @property
    def running(self) -> bool:
        """Whether a file is open for frames."""
        return self._writer is not None

    def start(self) -> Path:
        """Begin a new file and return its name."""
        name = self._target or self._folder / f"recording-{_stamp()}.mp4"
        self._target = None
        self._writer = self._open.enter_context(VideoWriter(name, _RECORDING_RATE, _MILLISECOND))
        self._last = -1
        return name

    def write(self, matted: MattedFrame) -> None:
        """Add a frame at its own time. An error ends the recording, which leaves no file."""
        assert self._writer is not None
        if self._last < 0:
            self._began = matted.frame.seconds
        milliseconds = round(1000 * (matted.frame.seconds - self._began))
        self._last = max(self._last + 1, milliseconds)
        try:
            self._writer.write(matted.composite(), self._last)
        except PortraitmattingError as error:
            self._writer = None
            # A full disk may refuse the file's end as well; the first error is the one to report.
            with contextlib.suppress(PortraitmattingError):
                self._open.__exit__(type(error), error, error.__traceback__)
            raise

    def stop(self) -> None:
        """Finish the file, which only now takes its name."""
        self._writer = None
        self._open.close()


def _stamp() -> str:
    """The local time as a part of file names, to the millisecond."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]


@dataclass
class Timing:
    """What the time of a live run was spent on, in seconds, summed over all frames."""

    frames: int = 0
    elapsed: float = 0.0
    """From the first frame's arrival to the last one's display."""
    parts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Step of the work to its seconds."""
    mattes: int = 0
    """Mattes that the network made; the other frames had one carried to them."""
    lost: bool = False
    """Whether the camera stopped giving frames."""
    failed: bool = False
    """Whether a snapshot or a recording could not be written."""

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

    Call it from the main thread. Raises PortraitmattingError if it cannot begin as asked; a
    snapshot or recording that fails later is reported in the window and in the result.
    """
    check_preset(preset, "auto")
    check_word("foreground method", foreground, METHODS)
    check_number("target rate", target_rate, *_TARGET_RATES)
    auto = AutoSize(predictor, target_rate) if preset == "auto" else None
    predictor = predictor.at_short_side(auto.short_side) if auto else predictor.at_preset(preset)
    controls = Controls(list(backgrounds), overlay=overlay)
    live = LiveStream(camera, predictor, controls, foreground, smooth, target_rate, auto)
    recorder = Recorder(Path(folder), None if record_to is None else Path(record_to))
    session = _Session(camera, live, controls, recorder, Path(folder))
    session.runs_on = f"{preset}, {predictor.runs_on}"
    with contextlib.ExitStack() as stack:
        if window:
            session.window = stack.enter_context(Window())
        if virtual_camera:
            session.virtual = stack.enter_context(VirtualCamera())
        if record_to is not None:
            recorder.start()
        # However the run ends, by Ctrl-C too, the recording is finished.
        stack.callback(recorder.stop)
        frames = stack.enter_context(contextlib.closing(iter(live)))
        for matted in frames:
            if not session.show(matted):
                break
    session.timing.lost = camera.lost
    return session.timing


class _Session:
    """One run of the live job: where each matted frame goes, and what the keys do."""

    def __init__(
        self, camera: Camera, live: LiveStream, controls: Controls, recorder: Recorder, folder: Path
    ) -> None:
        self.timing = Timing()
        self.window: Window | None = None
        self.virtual: VirtualCamera | None = None
        self.runs_on = ""
        """For the overlay."""
        self._camera, self._live, self._controls = camera, live, controls
        self._recorder, self._folder = recorder, folder
        self._note, self._note_until = "", 0.0
        self._began = self._shown = self._answered = 0.0
        self._interval = self._latency = self._network_interval = self._age = 0.0

    def show(self, matted: MattedFrame) -> bool:
        """Send a frame everywhere it should go and act on the keys; False to quit."""
        now = time.perf_counter()
        if not self.timing.frames:
            self._began = self._shown = now - matted.matting_seconds - matted.smoothing_seconds
            self._answered = self._began
        if self._live.passes > self.timing.mattes:
            self._network_interval = _running_mean(self._network_interval, now - self._answered)
            self.timing.mattes, self._answered = self._live.passes, now
        self.timing.parts["matte"] += matted.matting_seconds
        self.timing.parts["smoothing"] += matted.smoothing_seconds
        view = self._controls.render(matted)
        now = self._add_time("foreground and background", now)
        if self.virtual is not None:
            self.virtual.send(matted.composite())
            now = self._add_time("virtual camera", now)
        if self._recorder.running:
            self._record(matted)
            now = self._add_time("recording", now)
        goes_on = self._display(view, matted) if self.window is not None else True
        now = self._add_time("display", now)
        self.timing.frames += 1
        self.timing.elapsed = now - self._began
        self._interval = _running_mean(self._interval, now - self._shown)
        self._latency = _running_mean(self._latency, self._camera.age(matted.frame))
        self._age = _running_mean(self._age, matted.age)
        self._shown = now
        return goes_on and self._wait_while_paused(matted)

    def _add_time(self, part: str, since: float) -> float:
        now = time.perf_counter()
        self.timing.parts[part] += now - since
        return now

    def _display(self, view: NDArray[np.uint8], matted: MattedFrame) -> bool:
        assert self.window is not None
        self.window.show(with_text(view, self._lines(matted)))
        return self._handle_key(self.window.key(), matted)

    def _wait_while_paused(self, matted: MattedFrame) -> bool:
        while self._controls.paused and self.window is not None:
            # Drawn again, since the other keys still change what is shown.
            self.window.show(with_text(self._controls.render(matted), self._lines(matted)))
            if not self._handle_key(self.window.key(_PAUSE_POLL), matted):
                return False
            now = time.perf_counter()
            paused = now - self._shown
            self._began, self._answered = self._began + paused, self._answered + paused
            self._shown = now
        return True

    def _handle_key(self, key: int | None, matted: MattedFrame) -> bool:
        action = "quit" if key is None else self._controls.press(key)
        if action == "snapshot":
            self._snapshot(matted)
        elif action == "record":
            self._toggle_recording()
        return action != "quit"

    def _lines(self, matted: MattedFrame) -> list[str]:
        controls, lines = self._controls, []
        if controls.overlay:
            height, width = matted.image.shape[:2]
            shown, mattes = (_rate(i) for i in (self._interval, self._network_interval))
            lines += [
                f"{shown:.1f} fps   latency {1000 * self._latency:.0f} ms",
                f"network {mattes:.1f} per second, {1000 * self._age:.0f} ms behind",
                f"{width}x{height} at {matted.short_side} ({self.runs_on})",
                f"{controls.background_name}   h: help",
            ]
        if self._recorder.running:
            lines.append("recording")
        if controls.paused:
            lines.append("paused")
        if time.monotonic() < self._note_until:
            lines.append(self._note)
        return lines + (help_lines() if controls.help else [])

    def _notify(self, note: str) -> None:
        self._note, self._note_until = note, time.monotonic() + _NOTE_SECONDS
        print(note)

    def _report_failure(self, error: PortraitmattingError) -> None:
        self.timing.failed = True
        self._notify(str(error))

    def _snapshot(self, matted: MattedFrame) -> None:
        path = self._folder / f"snapshot-{_stamp()}.png"
        try:
            write_image(path, matted.rgba())
            self._notify(f"saved {path}")
        except PortraitmattingError as error:
            self._report_failure(error)

    def _toggle_recording(self) -> None:
        try:
            if self._recorder.running:
                self._recorder.stop()
                self._notify("recording saved")
            else:
                self._notify(f"recording {self._recorder.start()}")
        except PortraitmattingError as error:
            self._report_failure(error)

    def _record(self, matted: MattedFrame) -> None:
        try:
            self._recorder.write(matted)
        except PortraitmattingError as error:
            self._report_failure(error)


def _rate(interval: float) -> float:
    return 1 / interval if interval else 0.0


def _running_mean(average: float, newest: float) -> float:
    return average + _NEWEST * (newest - average) if average else newest
