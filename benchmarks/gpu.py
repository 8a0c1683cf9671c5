"""One page on a GPU's speed and memory, to be sent in an issue.

    python -m benchmarks.gpu [--device cuda] [--seconds 3]

For each preset: images per second of the network alone, in batches, and frames per second of the
whole way of a video frame, one by one, with the share of each stage. For each working size: memory
by batch. Numbers are medians after a warm-up. `--device cpu` tries the page out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.timing import machine, say, table
from portraitmatting import PRESETS, ModelConfig, PortraitMatting, Predictor, cli, load_model
from portraitmatting.compositing import composite
from portraitmatting.device import choose_device, describe_device
from portraitmatting.foreground import estimate_foreground

FRAME = 720, 1280
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
        "prepare (resize)": partial(predictor.prepare, frame),
        "network with copies": partial(network, predictor, [prepared]),
        "finish (guided filter)": partial(predictor.finish, estimate),
        "colours": lambda: estimate_foreground(frame, matte.alpha, "fast", predictor.device),
        "composite": lambda: composite(frame, matte.alpha, "#00ff00"),
    }
    return {name: median(stage, seconds / len(stages)) for name, stage in stages.items()}


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


def median(function: Callable[[], Any], seconds: float) -> float:
    """Of the function's seconds, measured for so long after two calls that do not count."""
    times: list[float] = []
    function(), function()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


if __name__ == "__main__":
    main()
