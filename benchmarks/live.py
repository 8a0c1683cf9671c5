"""The live preview: the errors of carried mattes, and the rates that it reaches."""

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.scenes import clip, cut_out_people, drawn_person
from benchmarks.timing import machine, table
from portraitmatting import Predictor
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.metrics import boundary_error, dtssd, mad
from portraitmatting.video.backgrounds import live_backgrounds
from portraitmatting.video.live_stream import LiveStream, MatteCarrier
from portraitmatting.video.preview import Controls
from portraitmatting.video.reader import Frame

_COUNT = 48
_LATE = 6
"""Frames of a camera of 30 per second that pass while the network works on one."""
_SHOWN = 2
"""Every second frame of the camera is displayed."""
_SPEEDS = {"slow": 2, "fast": 8}
"""Pixels per frame at most."""
_SECONDS = 15

Image = NDArray[np.uint8]
Alpha = NDArray[np.float32]


def carried(predictor: Predictor, folder: Path) -> None:
    """Errors of carried mattes at the preset `live`."""
    print(f"\n{predictor.at_preset('live')}\n")
    error_table(predictor.at_preset("live"))


def live(predictor: Predictor, folder: Path) -> None:
    """The rates of the preview."""
    print(f"\n{machine()}; {predictor}\n")
    rate_table(predictor)


def error_table(predictor: Predictor) -> None:
    """Prints, clip by clip, MAD x1000, dtSSD x100 and boundary error in pixels of the mattes on the
    screen, against the ground truth of the frame that is displayed."""
    methods = ("network on every frame", "waiting for it", "its last matte", "carried")
    titles = ("person", "motion", "matte", "MAD x1000", "dtSSD x100", "boundary, pixels")
    print(table(titles, []), end="", flush=True)
    people = {**cut_out_people(), "drawn": drawn_person()}
    for name, person in people.items():
        for word, speed in _SPEEDS.items():
            frames = list(clip(person, speed, _COUNT))
            images, ground_truths = (list(part) for part in zip(*frames, strict=True))
            times = range(_LATE, _COUNT, _SHOWN)
            seen = {t: _coarse(predictor, images[t]) for t in {0, *times}}
            # The network takes a frame at each multiple of _LATE and is done _LATE later.
            known = {t: (t - _LATE) // _LATE * _LATE for t in times}
            by_flow = _carried(images, seen, known)
            shown = {
                methods[0]: [guided_upsample(images[t], seen[t]) for t in times],
                methods[1]: [guided_upsample(images[k], seen[k]) for k in known.values()],
                methods[2]: [guided_upsample(images[t], seen[known[t]]) for t in times],
                methods[3]: [guided_upsample(images[t], by_flow[t]) for t in times],
            }
            expected = [ground_truths[t] for t in times]
            for method in methods:
                row = (name, word, method, *_scores(shown[method], expected))
                print("| " + " | ".join(row) + " |", flush=True)


def _coarse(predictor: Predictor, image: Image) -> Alpha:
    (estimate,) = predictor.estimate([predictor.prepare(image)])
    return estimate.alpha[0].numpy()


def _carried(
    images: list[Image], seen: dict[int, Alpha], known: dict[int, int]
) -> dict[int, Alpha]:
    """The mattes that `LiveStream` would carry; where it would wait, the frame's own matte."""
    carrier, carried, asked = MatteCarrier(), {}, 0
    carrier.ask(carrier.see(images[0]))
    for moment, source in known.items():
        if source == asked:
            carrier.take_over(seen[source])
        sight = carrier.see(images[moment])
        if source == asked:
            carrier.ask(sight)
            asked = moment
        matte = carrier.carry()
        carried[moment] = seen[moment] if matte is None else matte
    return carried


def _scores(alphas: list[Alpha], ground_truths: list[Alpha]) -> tuple[str, str, str]:
    pairs = list(zip(alphas, ground_truths, strict=True))
    error = np.mean([mad(*pair) for pair in pairs])
    boundary = np.mean([boundary_error(*pair) for pair in pairs])
    return f"{1000 * error:.1f}", f"{100 * dtssd(alphas, ground_truths):.2f}", f"{boundary:.2f}"


class SimulatedCamera:
    """Plays images forwards and backwards, `rate` per second, and gives the newest."""

    lost = False

    def __init__(self, images: list[Image], rate: float, seconds: float) -> None:
        self._images = [*images, *images[-2:0:-1]]
        self._rate, self._seconds = rate, seconds
        self._began = time.monotonic()

    def age(self, frame: Frame) -> float:
        """Seconds since the frame arrived."""
        return time.monotonic() - self._began - frame.seconds

    def __iter__(self) -> Iterator[Frame]:
        last = -1
        while (now := time.monotonic() - self._began) < self._seconds:
            index = int(now * self._rate)
            if index == last:
                time.sleep((index + 1) / self._rate - now)
                continue
            last = index
            # As if decoded: a real camera gives a new array for each frame.
            image = self._images[index % len(self._images)].copy()
            yield Frame(image, index, Fraction(1) / Fraction(self._rate).limit_denominator(1000))


def rate_table(predictor: Predictor, seconds: float = _SECONDS) -> None:
    """Prints displayed frames, passes of the network and ages at 640x480, without a window, row by
    row. Latency is the time from a frame's arrival until it could be shown; the age of the
    network's matte is how much older the frame is that the network saw last."""
    images = [image for image, _ in clip(drawn_person(), 2, 60)]
    titles = ("preset", "threads", "displayed per second", "network per second")
    titles += ("latency, ms: median", "95 %", "age of the network's matte, ms: median", "95 %")
    titles += ("matte, ms", "smoothing", "colours, background")
    print(table(titles, []), end="", flush=True)
    before = torch.get_num_threads()
    for preset in ("live", "fast", "quality"):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            controls = Controls(live_backgrounds())
            camera = SimulatedCamera(images, 30, seconds)
            stream = LiveStream(camera, predictor.at_preset(preset), controls)
            ages, parts = [], []
            began = time.perf_counter()
            for matted in stream:
                rendering = time.perf_counter()
                controls.render(matted)
                drawn = time.perf_counter() - rendering
                ages.append((camera.age(matted.frame), matted.age))
                parts.append((matted.matting_seconds, matted.smoothing_seconds, drawn))
            elapsed = time.perf_counter() - began
            rates = [f"{count / elapsed:.1f}" for count in (len(ages), stream.passes)]
            late = [f"{1000 * age:.0f}" for age in np.percentile(ages, [50, 95], axis=0).T.flat]
            means = [f"{1000 * part:.0f}" for part in np.mean(parts, axis=0)]
            row = (preset, str(threads), *rates, *late, *means)
            print("| " + " | ".join(row) + " |", flush=True)
    torch.set_num_threads(before)
