"""How much fine detail comes back from the working size, how fast, and in how much memory.

    python -m benchmarks.detail [FOLDER] [--short-side 192 96 32]

Without FOLDER: portraits of 24 megapixels with known mattes, drawn by `scenes.py`. With it: the
images of a folder that `portraitmatting evaluate` takes. The true mattes are reduced to the working
size, as a network without error would give them, and brought back twice: by interpolation, and by
the guided filter. What is left of the network's own errors is measured by `benchmarks.presets`.
Errors are over a band around edges, 1.25 % of the short side and at most 12 pixels; times are
processor seconds of one thread; memory is what the process needed beside the image and the reduced
matte, with the matte that is returned.
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
from benchmarks.timing import table
from portraitmatting import load_model
from portraitmatting.evaluate.benchmark import find_benchmark
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.images.files import read_alpha, read_image
from portraitmatting.metrics import grad, mad
from portraitmatting.transforms import network_size, resize, to_source_size
from portraitmatting.trimap import draw_trimap, unknown_region

HEIGHT, WIDTH = 6000, 4000
BAND, WIDEST = 0.0125, 12
TITLES = ("images", "MAD plain", "guided", "factor", "Grad plain", "guided", "seconds", "MB")

Scenes = Iterator[tuple[NDArray[Any], NDArray[np.float32]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    parser.add_argument("--short-side", type=int, nargs="+", help="default: the checkpoint's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    checkpoint = load_model(None, "cpu").checkpoint
    assert checkpoint is not None
    rows = []
    for side in options.short_side or [checkpoint.working_short_side]:
        for name in [options.folder] if options.folder else BACKGROUNDS:
            scenes = read(name) if options.folder else draw(name)
            means = np.mean([measure(*scene, side) for scene in scenes], axis=0)
            plain, guided, plain_grad, guided_grad, seconds, memory = means
            cells = [f"{plain:.4f}", f"{guided:.4f}", f"{plain / guided:.1f}"]
            cells += [f"{plain_grad:.4g}", f"{guided_grad:.3g}", f"{seconds:.2f}", f"{memory:.0f}"]
            rows.append([f"{Path(name).name} at {side}", *cells])
    print(table(TITLES, rows))


def draw(background: str) -> Scenes:
    yield draw_portrait(HEIGHT, WIDTH, 0, background)


def read(folder: str) -> Scenes:
    for sample in find_benchmark(folder).samples:
        yield read_image(sample.image).pixels, read_alpha(sample.ground_truth)


def measure(image: NDArray[Any], ground_truth: NDArray[np.float32], side: int) -> list[float]:
    """MAD and Grad of both ways back, seconds and megabytes of the guided one."""
    size = ground_truth.shape
    coarse = resize(ground_truth, network_size(*size, side)).clip(0, 1)
    band = unknown_region(draw_trimap(ground_truth, min(BAND * min(size), WIDEST)))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; Linux only
    memory_before, began = peak(), time.process_time()
    guided = guided_upsample(image, coarse)
    seconds, memory = time.process_time() - began, peak() - memory_before
    mattes = to_source_size(coarse, size), guided
    errors = [metric(alpha, ground_truth, band) for metric in (mad, grad) for alpha in mattes]
    return [*errors, seconds, memory]


def peak() -> float:
    """The most memory that this process has held, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
