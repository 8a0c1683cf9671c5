"""One page on a GPU's speed and memory, to be sent in an issue.

    python -m benchmarks.gpu [--device cuda] [--seconds 3]

For each preset: images per second of the network alone, in batches, and frames per second of the
whole way of a video frame, one by one, with the share of each stage. Each stage of a photo of 12
megapixels, by the clock and in processor time. For each working size: memory by batch. Numbers are
medians after a warm-up. `--device cpu` gives the same page for a CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.scenes import draw_portrait
from benchmarks.timing import machine, say, table
from portraitmatting import (
    PRESETS,
    ModelConfig,
    PortraitMatting,
    Predictor,
    cli,
    load_model,
    read_image,
    write_image,
)
from portraitmatting.device import choose_device, describe_device
from portraitmatting.foreground import soft_region
from portraitmatting.images.pixels import to_dtype, to_unit

FRAME = 720, 1280
PHOTO = 3000, 4000
BATCHES = 1, 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=3, help="to measure each number for")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cli.run(lambda: report(options.device, options.seconds, options.tiny))


def report(device: str, seconds: float, tiny: bool = False) -> int:
    """Print the page; the exit code."""
    chosen = choose_device(device)
    model = PortraitMatting(ModelConfig.tiny()) if tiny else load_model(None, chosen)
    predictor = Predictor(model, 64 if tiny else None, device=chosen)
    print(f"{describe_device(chosen)}; {predictor}; {driver(chosen)}\n{machine()}\n", flush=True)
    print(speed_table(predictor, seconds), flush=True)
    print(photo_table(predictor, seconds, (300, 400) if tiny else PHOTO), flush=True)
    print(memory_table(predictor), flush=True)
    return 0


def driver(device: torch.device) -> str:
    """CUDA's versions, of the driver and of this PyTorch."""
    if device.type != "cuda":
        return "no CUDA"
    return f"CUDA {torch.version.cuda}, driver for {torch._C._cuda_getDriverVersion()}"


def speed_table(predictor: Predictor, seconds: float) -> str:
    """Images per second by batch, and frames per second with the share of each stage."""
    rows = []
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), np.uint8)
    for preset in PRESETS:
        at = predictor.at_preset(preset)
        say(f"{preset}, short side {at.short_side}")
        prepared = at.prepare(frame)
        rates = []
        for batch in BATCHES:
            took = median(partial(network, at, [prepared] * batch), seconds)
            rates.append(f"{batch / took:.1f}")
        stages = stage_seconds(at, frame, seconds)
        total = sum(stages.values())
        shares = ", ".join(f"{name} {took / total:.0%}" for name, took in stages.items())
        rows.append([f"{preset} ({at.short_side})", *rates, f"{1 / total:.1f}", shares])
    titles = [f"network, images/s, batch {batch}" for batch in BATCHES]
    return table(("preset", *titles, "frames/s, 1280x720", "stages of a frame"), rows)


def stage_seconds(predictor: Predictor, frame: Any, seconds: float) -> dict[str, float]:
    """Median seconds of each stage of one frame, the device waited for after each."""
    prepared = predictor.prepare(frame)
    (estimate,) = predictor.estimate([prepared])
    matte = predictor.finish(estimate)
    stages: dict[str, Callable[[], Any]] = {
        "prepare": partial(predictor.prepare, frame),
        "network": partial(network, predictor, [prepared]),
        "guided filter": partial(predictor.finish, estimate),
        "colours and composite": lambda: replace(matte).result("composite", "blur", "fast"),
    }
    return {name: median(stage, seconds / len(stages)) for name, stage in stages.items()}


def photo_table(predictor: Predictor, seconds: float, size: tuple[int, int]) -> str:
    """Of each stage from file to cut-out, one after another: milliseconds by the clock, and of all
    cores. The last two are parts that a GPU leaves to the processor."""
    say(f"a photo of {size[1]}x{size[0]}")
    pixels, _ = draw_portrait(*size)
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "photo.jpg"), Path(folder, "cut-out.png")
        write_image(source, pixels)
        image = read_image(source)
        prepared = predictor.prepare(image)
        (estimate,) = predictor.estimate([prepared])
        matte = predictor.finish(estimate)
        cut_out, level = matte.result("rgba"), to_dtype(matte.alpha, np.uint16)
        stages: dict[str, Callable[[], Any]] = {
            "read a JPEG file": lambda: read_image(source),
            "prepare (resize, or pin for CUDA)": lambda: predictor.prepare(image),
            "network, with copies": lambda: network(predictor, [prepared]),
            "guided filter": lambda: predictor.finish(estimate),
            "colours by ml, and cut-out": lambda: replace(matte).result("rgba"),
            "write a PNG file": lambda: write_image(target, cut_out),
            "(of the guided filter: matte to float)": lambda: to_unit(level),
            "(of the colours: where soft pixels are)": lambda: soft_region(matte.alpha),
        }
        rows = []
        for name, stage in stages.items():
            clock, cores = (
                median(stage, seconds / 2, timer)
                for timer in (time.perf_counter, time.process_time)
            )
            rows.append([name, f"{1000 * clock:.0f}", f"{1000 * cores:.0f}"])
    return table((f"stage, {size[1]}x{size[0]}", "ms by the clock", "ms of processor time"), rows)


def network(predictor: Predictor, batch: list[Any]) -> None:
    """The network's step, until its results have arrived."""
    for estimate in predictor.estimate(batch)[-1:]:
        if estimate.arrived is not None:
            estimate.arrived.synchronize()


def memory_table(predictor: Predictor) -> str:
    """The most that PyTorch has held on the GPU, by working size and batch, with the weights."""
    if predictor.device.type != "cuda":
        return "memory: on CUDA only\n"
    rows = []
    for side in (256, 384, 512, 768):
        at = predictor.at_short_side(side)
        prepared = at.prepare(np.zeros((3 * side, 4 * side, 3), np.uint8))
        cells = []
        for batch in BATCHES:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(at.device)
            try:
                network(at, [prepared] * batch)
                cells.append(f"{torch.cuda.max_memory_allocated(at.device) / 2**20:.0f} MiB")
            except RuntimeError:
                cells.append("too large")
        rows.append([f"{side}x{side * 4 // 3}", *cells])
    return table(("working size", *(f"batch {batch}" for batch in BATCHES)), rows)


def median(
    function: Callable[[], Any], seconds: float, timer: Callable[[], float] = time.perf_counter
) -> float:
    """Of the function's seconds, measured for so long after two calls that do not count."""
    times: list[float] = []
    function(), function()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        before = timer()
        function()
        times.append(timer() - before)
    return statistics.median(times)


if __name__ == "__main__":
    main()
