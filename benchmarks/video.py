"""How steady video is, how good its colours, and what its files need and hold.

    python -m benchmarks.video [stability] [foreground] [memory] [outputs] [carried] [live]

Without a name, all of them; `carried` and `live` are in live.py. The clips' mattes are known: see
scenes.py.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.live import carried, live
from benchmarks.scenes import (
    BACKGROUNDS,
    FRAME,
    Person,
    clip,
    draw_background,
    draw_person,
    drawn_person,
    place_person,
)
from benchmarks.timing import table
from portraitmatting import Predictor, load_model
from portraitmatting.foreground import estimate_foreground
from portraitmatting.images.pixels import to_dtype
from portraitmatting.metrics import dtssd, mad
from portraitmatting.torch_solvers import multi_level
from portraitmatting.video import VideoWriter
from portraitmatting.video.stream import Smoother

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples/astronaut.jpg"


def stability(predictor: Predictor, folder: Path) -> None:
    """dtSSD, temporal variance and error of the network's mattes, as they come and smoothed."""
    count = 24
    person, small = astronaut(predictor), predictor.at_preset("fast")
    rows = []
    for motion, speed in {"still": 0, "2 px/frame": 2, "8 px/frame": 8}.items():
        frames = list(clip(person, speed, count))
        ground_truths = [ground_truth for _, ground_truth in frames]
        plain = [small.predict(image).alpha for image, _ in frames]
        smoother = Smoother()
        smoothed = [smoother(image, a) for (image, _), a in zip(frames, plain, strict=True)]
        for name, alphas in {"as they come": plain, "smoothed": smoothed}.items():
            pairs = list(zip(alphas, ground_truths, strict=True))
            # Of the error, not of the matte, which has to change as the person moves.
            variance = np.var([alpha - ground_truth for alpha, ground_truth in pairs], axis=0)
            edge = np.any([(g > 0) & (g < 1) for g in ground_truths], axis=0)
            error = statistics.fmean(mad(*pair) for pair in pairs)
            cells = [f"{100 * dtssd(alphas, ground_truths):.2f}", f"{1e4 * variance.mean():.2f}"]
            cells += [f"{1e4 * variance[edge].mean():.2f}", f"{1000 * error:.2f}"]
            rows.append([motion, name, *cells])
    print(f"\n{count} frames, {PHOTO.name}'s cut-out, short side {small.short_side}\n")
    measures = "dtSSD x100", "variance x1e4", "edge variance x1e4", "MAD x1e3"
    print(table(("person", "mattes", *measures), rows))


def astronaut(predictor: Predictor) -> Person:
    """A person whom the network knows: cut out of a photo by itself and pasted elsewhere, so that
    the cut-out's matte is right by construction."""
    return place_person(predictor.predict(PHOTO).result("rgba")), drawn_person()[1]


def foreground(predictor: Predictor, folder: Path) -> None:
    """Blur fusion against the multi-level method, on composites whose colours are known."""
    estimates = {
        "none": partial(estimate_foreground, method="none"),
        "fast": partial(estimate_foreground, method="fast"),
        "ml": partial(estimate_foreground, method="ml"),
        "ml, as on CUDA": _multi_level,
    }
    methods = list(estimates)
    errors: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for seed in range(4):
        for kind in BACKGROUNDS:
            rng = np.random.default_rng(seed)
            person, alpha = draw_person(*FRAME, rng)
            weight = alpha[..., None]
            scene = person + (1 - weight) * draw_background(*FRAME, rng, kind)
            scene += rng.standard_normal(scene.shape, np.float32) * np.float32(1.5)
            image = np.rint(scene.clip(0, 255)).astype(np.uint8)
            edge, clear = (alpha > 0) & (alpha < 1), (alpha >= 0.1) & (alpha < 1)
            for method in methods:
                before = time.perf_counter()
                result = estimates[method](image, alpha)
                times[method].append(1000 * (time.perf_counter() - before))
                seen = np.abs(weight * result - person)
                colours = seen / np.maximum(weight, 0.1)
                errors[method].append((float(colours[clear].mean()), float(seen[edge].mean())))
    rows = []
    for method in methods:
        cells = [f"{error:.1f}" for error in np.mean(errors[method], axis=0)]
        rows.append([method, *cells, f"{statistics.median(times[method]):.0f}"])
    print(f"\n{len(times['ml'])} drawn portraits of {FRAME[1]}x{FRAME[0]}, grey levels\n")
    titles = "method", "error of the colours, alpha 0.1 to 1", "of a new composite's edges", "ms"
    print(table(titles, rows))


def _multi_level(image: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """ "ml" by PyTorch, on the CPU."""
    planes = torch.from_numpy(image).permute(2, 0, 1) / 255
    colours = multi_level(planes, torch.from_numpy(alpha))[:3].permute(1, 2, 0).numpy()
    return np.where(alpha[..., None] < 1, to_dtype(colours, np.uint8), image)


def memory(predictor: Predictor, folder: Path) -> None:
    """Peak memory of the file job, for a short and a long video."""
    rows = []
    frames = [image for image, _ in clip(drawn_person(), 2, 50)]
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
        rows.append([str(count), f"{usage.ru_maxrss / 1024:.0f}"])
    print("\nA whole job, network at short side 32 to save time\n")
    print(table(("frames of 640x480", "peak memory, MB"), rows))


def outputs(predictor: Predictor, folder: Path) -> None:
    """What ffprobe says of each kind of file, made from a turned source with sound."""
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
        stream.width, stream.height, stream.pix_fmt = FRAME[1], FRAME[0], "yuv420p"
        stream.set_display_rotation(90)
        sound = out.add_stream("aac", rate=48000, layout="stereo")
        for index, (image, _) in enumerate(clip(drawn_person(), 2, 50)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
            wave = np.sin(np.arange(1920 * index, 1920 * (index + 1)) / 17).astype(np.float32) / 4
            chunk = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
            chunk.sample_rate, chunk.pts, chunk.time_base = 48000, 1920 * index, Fraction(1, 48000)
            out.mux(sound.encode(chunk))
        out.mux(stream.encode())
        out.mux(sound.encode())


SECTIONS = {f.__name__: f for f in (stability, foreground, memory, outputs, carried, live)}


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
