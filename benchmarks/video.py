"""What video costs and how steady it is: the tables of docs/video.md.

    python -m benchmarks.video [speed] [stability] [foreground] [memory] [outputs] [carried]
        [live]

Without a name, all of them. Everything is drawn (scenes.py), so that all truths are known.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.live import carried, live
from benchmarks.scenes import BACKGROUNDS, draw_background, draw_person
from portraitmatting import Predictor, load_model, read_image
from portraitmatting.choices import PRESETS, preset_short_side
from portraitmatting.foreground import estimate_foreground
from portraitmatting.metrics import dtssd, mad
from portraitmatting.video import VideoReader, VideoWriter, matte_stream
from portraitmatting.video.stream import Smoother

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples/astronaut.jpg"
HEIGHT, WIDTH = 480, 640
NOISE = 3.0
"""Grey levels of sensor noise in moving images, standard deviation."""
WARM_UP = 2

Clip = Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]


def clip(height: int, width: int, count: int, speed: float = 2, predictor: Any = None) -> Clip:
    """Frames HxWx3 uint8 with true alphas HxW: a person who sways sideways by `speed` pixels per
    frame at most, before a background that stands still, with fresh noise in each frame.

    The person is drawn or, for a network that should know one, cut out of a photo by `predictor`:
    pasted elsewhere, that cut-out's matte is the truth by construction.
    """
    rng = np.random.default_rng(0)
    if predictor is None:
        person, alpha = draw_person(height, width, rng)
    else:
        photo = cv2.resize(read_image(PHOTO).pixels, (height, height))
        cut_out = predictor.predict(photo).alpha
        colours = estimate_foreground(photo, cut_out, "fast")
        spare = width - height
        sides = (0, 0), (spare // 2, spare - spare // 2)
        alpha = np.pad(cut_out, sides)
        person = np.pad(colours, (*sides, (0, 0))) * alpha[..., None]
    behind = draw_background(height, width, rng, "blurred")
    layers = np.dstack([person.astype(np.float32), alpha])
    for index in range(count):
        shift = speed * 8 * np.sin(index / 8)
        moved = cv2.warpAffine(layers, np.float32([[1, 0, shift], [0, 1, 0]]), (width, height))
        truth = moved[..., 3].clip(0, 1)
        scene = moved[..., :3] + (1 - truth)[..., None] * behind
        scene += rng.standard_normal(scene.shape, np.float32) * np.float32(NOISE)
        yield np.rint(scene.clip(0, 255)).astype(np.uint8), truth


def speed(predictor: Predictor, folder: Path) -> None:
    """Frames per second of each preset, and where the time goes; presets take turns."""
    rounds = 12
    source = folder / "speed.mp4"
    with VideoWriter(source, 25) as writer:
        for image, _ in clip(HEIGHT, WIDTH, rounds):
            writer.write(image)
    sizes = {name: preset_short_side(predictor.short_side, name) for name in PRESETS}
    parts: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in sizes}
    with VideoWriter(folder / "out.mp4", 25) as writer, VideoReader(source) as reader:
        frames = iter(reader)
        for index in range(rounds):
            before = time.perf_counter()
            frame = next(frames)
            reading = time.perf_counter() - before
            for name, size in sizes.items():
                at_size, smoother = predictor.at_short_side(size), Smoother()
                smoother(frame.image, np.zeros(frame.image.shape[:2], np.float32))
                (matted,) = matte_stream([frame], at_size, "blur", smooth=False)
                times = {"reading": reading, "network": matted.network_seconds}
                times["smoothing"] = _time(lambda s=smoother, m=matted: s(m.image, m.alpha))
                times["foreground"] = _time(lambda m=matted: m.foreground)
                times["background"] = _time(matted.composite)
                pixels = matted.composite()
                times["encoding"] = _time(lambda p=pixels: writer.write(p))
                if index >= WARM_UP:
                    for part, seconds in times.items():
                        parts[name][part].append(1000 * seconds)
    print(f"\n{WIDTH}x{HEIGHT}, {predictor}, milliseconds per frame (median of the rounds)\n")
    names = list(parts["fast"])
    _row("preset", "short side", *names, "live fps", "file fps")
    _row(*["---"] * (len(names) + 4))
    for name, size in sizes.items():
        medians = {part: statistics.median(values) for part, values in parts[name].items()}
        live = sum(medians.values()) - medians["reading"] - medians["encoding"]
        shown = [f"{value:.0f}" for value in medians.values()]
        _row(name, size, *shown, f"{1000 / live:.1f}", f"{1000 / sum(medians.values()):.1f}")
    print("\nfps are one over the sum of the parts; live reads and draws in other threads.")


def stability(predictor: Predictor, folder: Path) -> None:
    """dtSSD, temporal variance and error of the network's mattes, as they come and smoothed."""
    count = 24
    small = predictor.at_preset("fast")
    print(f"\n{count} frames of 480x360, the person of {PHOTO.name}, noise {NOISE:g},")
    print(f"network at short side {small.short_side}\n")
    _row("person", "mattes", "dtSSD x100", "variance x1e4", "edge variance x1e4", "MAD x1e3")
    _row(*["---"] * 6)
    for name, pixels in {"still": 0.0, "sways, 2 px/frame": 2.0, "sways, 8 px/frame": 8.0}.items():
        images, truths = (
            list(part) for part in zip(*clip(360, 480, count, pixels, predictor), strict=True)
        )
        plain = [small.predict(image).alpha for image in images]
        smoother = Smoother()
        steady = [smoother(i, a) for i, a in zip(images, plain, strict=True)]
        for kind, alphas in {"as they come": plain, "smoothed": steady}.items():
            errors = [mad(a, t) for a, t in zip(alphas, truths, strict=True)]
            # Of what the matte gets wrong: a person who moves must change it.
            wrong = np.stack([a - t for a, t in zip(alphas, truths, strict=True)])
            edge = np.stack([(t > 0) & (t < 1) for t in truths]).any(axis=0)
            variance = wrong.var(axis=0)
            _row(
                name,
                kind,
                f"{100 * dtssd(alphas, truths):.2f}",
                f"{1e4 * variance.mean():.2f}",
                f"{1e4 * variance[edge].mean():.2f}",
                f"{1000 * statistics.fmean(errors):.2f}",
            )


def foreground(predictor: Predictor, folder: Path) -> None:
    """Blur fusion against the multi-level method, on composites whose colours are known."""
    methods = ("none", "fast", "ml")
    errors: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for seed in range(4):
        for kind in BACKGROUNDS:
            rng = np.random.default_rng(seed)
            person, alpha = draw_person(HEIGHT, WIDTH, rng)
            weight = alpha[..., None]
            scene = person + (1 - weight) * draw_background(HEIGHT, WIDTH, rng, kind)
            scene += rng.standard_normal(scene.shape, np.float32) * np.float32(1.5)
            image = np.rint(scene.clip(0, 255)).astype(np.uint8)
            edge, clear = (alpha > 0) & (alpha < 1), (alpha >= 0.1) & (alpha < 1)
            for method in methods:
                before = time.perf_counter()
                result = estimate_foreground(image, alpha, method)
                times[method].append(1000 * (time.perf_counter() - before))
                seen = np.abs(weight * result - person)
                errors[method].append(
                    (
                        float(seen[edge].mean()),
                        float((seen / np.maximum(weight, 0.1))[clear].mean()),
                    )
                )
    print(f"\n{len(times['ml'])} drawn portraits of {WIDTH}x{HEIGHT}, true mattes, grey levels\n")
    _row("method", "error of the colours, alpha 0.1 to 1", "of a new composite's edges", "ms")
    _row(*["---"] * 4)
    for method in methods:
        seen_error, colour_error = np.mean(errors[method], axis=0)
        typical = statistics.median(times[method])
        _row(method, f"{colour_error:.1f}", f"{seen_error:.1f}", f"{typical:.0f}")


def memory(predictor: Predictor, folder: Path) -> None:
    """Peak memory of the file job, for a short and a long video."""
    print("\n320x240 to H.264, the whole process; network at short side 32 to save time\n")
    _row("frames", "peak memory, MB")
    _row("---", "---")
    frames = [image for image, _ in clip(240, 320, 50)]
    for count in (100, 1000):
        source = folder / f"{count}.mp4"
        with VideoWriter(source, 25) as writer:
            for index in range(count):
                writer.write(frames[index % len(frames)])
        command = [sys.executable, str(ROOT / "eval_webcam.py"), str(source)]
        command += ["-o", str(folder / f"{count}-out.mp4"), "--short-side", "32"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        _row(count, f"{usage.ru_maxrss / 1024:.0f}")


def outputs(predictor: Predictor, folder: Path) -> None:
    """What ffprobe says of each kind of file, made from a turned, uneven source with sound."""
    source = folder / "source.mp4"
    _source_with_sound(source)
    small = ["--short-side", "32"]
    for name in ("source.mp4", "o.mp4", "o.mkv", "o.webm", "o.mov"):
        target = folder / name
        if target != source:
            script = [sys.executable, str(ROOT / "eval_webcam.py"), str(source), "-o", str(target)]
            subprocess.run([*script, *small], check=True, capture_output=True)
        entries = "stream=codec_name,pix_fmt,width,height,nb_read_frames,avg_frame_rate,channels"
        entries += ":stream_tags=alpha_mode:stream_side_data=rotation:format=duration"
        command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", entries]
        command += ["-of", "compact=p=0", str(target)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"\n{name}\n{shown.strip()}")


def _source_with_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.set_display_rotation(90)
        sound = out.add_stream("aac", rate=48000, layout="stereo")
        for index, (image, _) in enumerate(clip(240, 320, 50)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
            wave = np.sin(np.arange(1920 * index, 1920 * (index + 1)) / 17).astype(np.float32) / 4
            chunk = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
            chunk.sample_rate, chunk.pts, chunk.time_base = 48000, 1920 * index, Fraction(1, 48000)
            out.mux(sound.encode(chunk))
        out.mux(stream.encode())
        out.mux(sound.encode())


def _time(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def _row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


SECTIONS = {f.__name__: f for f in (speed, stability, foreground, memory, outputs, carried, live)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    chosen = parser.parse_args().sections or list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}: use {', '.join(SECTIONS)}")
    if "outputs" in chosen and not shutil.which("ffprobe"):
        parser.error("outputs needs ffprobe, which comes with FFmpeg")
    predictor = Predictor(load_model(device="cpu"))
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    for name in chosen:
        before = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            SECTIONS[name](predictor, Path(folder))
        print(f"\n({name}: {time.perf_counter() - before:.0f} s)")


if __name__ == "__main__":
    main()
