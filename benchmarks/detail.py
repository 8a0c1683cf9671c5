"""How much fine detail comes back from the working size, how fast, and in how much memory.

    python -m benchmarks.detail [FOLDER] [--short-side 192 96 32] [--network]

Without FOLDER: portraits of 24 megapixels with known mattes, drawn by `scenes.py`. With it: the
images of a folder that `portraitmatting evaluate` takes. The true mattes are shrunk to
the working size, as a network without error would give them, and brought back plainly and guided
by the image. `--network` takes the default checkpoint's own mattes instead. Errors are over a
band around edges, 1.25 % of the short side and 12 pixels at most; times are processor seconds
of one thread, memory is what the process needed beside the image and the coarse matte.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.scenes import BACKGROUNDS, draw_portrait
from portraitmatting.checkpoint.load import load_model
from portraitmatting.evaluate.benchmark import find_benchmark
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.images.files import read_alpha, read_image
from portraitmatting.metrics import grad, mad
from portraitmatting.modeling.heads import fuse
from portraitmatting.transforms import network_size, resize, to_source_size, to_tensor
from portraitmatting.trimap import draw_trimap, unknown_region

HEIGHT, WIDTH = 6000, 4000
BAND, WIDEST = 0.0125, 12

Scenes = Iterator[tuple[NDArray[Any], NDArray[np.float32]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    parser.add_argument("--count", type=int, help="images of FOLDER (default: all)")
    parser.add_argument("--short-side", type=int, nargs="+", help="default: the checkpoint's")
    parser.add_argument("--network", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = load_model(None, "cpu")
    assert model.checkpoint is not None
    print("| scenes | MAD plain | guided | factor | Grad plain | guided | factor | seconds | MB |")
    print("|" + 9 * "---|")
    for side in options.short_side or [model.checkpoint.working_short_side]:
        for name in [options.folder] if options.folder else BACKGROUNDS:
            scenes = read(name, options.count) if options.folder else draw(name)
            outputs = []
            for image, truth in scenes:
                size = network_size(*truth.shape, side)
                coarse = resize(truth, size).clip(0, 1)
                if options.network:
                    with torch.inference_mode():
                        coarse = fuse(*model(to_tensor(image, size)[None]))[0, 0].numpy()
                outputs.append(measure(image, truth, coarse))
            print(f"| {Path(name).name} at {side} | {row(np.mean(outputs, axis=0))} |", flush=True)


def draw(background: str) -> Scenes:
    yield draw_portrait(HEIGHT, WIDTH, 0, background)


def read(folder: str, count: int | None) -> Scenes:
    for sample in find_benchmark(folder).samples[:count]:
        yield read_image(sample.image).pixels, read_alpha(sample.truth)


def measure(
    image: NDArray[Any], truth: NDArray[np.float32], coarse: NDArray[np.float32]
) -> list[float]:
    """MAD and Grad of either way back, seconds and megabytes of the guided one."""
    band = unknown_region(draw_trimap(truth, min(BAND * min(truth.shape), WIDEST)))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; Linux only
    before, began = peak(), time.process_time()
    guided = guided_upsample(image, coarse)
    seconds, memory = time.process_time() - began, peak() - before
    plain = to_source_size(coarse, truth.shape)
    errors = [metric(alpha, truth, band) for metric in (mad, grad) for alpha in (plain, guided)]
    return [*errors, seconds, memory]


def peak() -> float:
    """The most memory that this process has held, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def row(means: NDArray[np.float64]) -> str:
    plain, guided, rough, smooth, seconds, memory = means
    fields = [f"{plain:.4f}", f"{guided:.4f}", f"{plain / guided:.1f}"]
    fields += [f"{rough:.4g}", f"{smooth:.3g}", f"{rough / smooth:.1f}"]
    return " | ".join([*fields, f"{seconds:.2f}", f"{memory:.0f}"])


if __name__ == "__main__":
    main()
