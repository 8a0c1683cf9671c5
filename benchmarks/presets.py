"""Time and error of the presets on folders of images with ground truth: a table and a plot.

    python -m benchmarks.presets FOLDER ... [--plot docs/presets.svg]

FOLDER is anything that `portraitmatting evaluate` takes. Times are processor seconds of
one thread, the presets taken in turn for every image; errors are over the unknown region (the
folder's trimaps, or a band around edges as in `evaluate`).
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.timing import table
from portraitmatting import PRESETS, Predictor, load_model
from portraitmatting.evaluate.benchmark import Benchmark, find_benchmark
from portraitmatting.guided_filter import guided_upsample
from portraitmatting.images.files import read_alpha, read_image
from portraitmatting.metrics import grad, mad
from portraitmatting.modeling.heads import fuse
from portraitmatting.transforms import to_source_size, to_tensor
from portraitmatting.trimap import draw_trimap, unknown_region

WAYS = {
    "guided": guided_upsample,
    "plain": lambda image, coarse: to_source_size(coarse, image.shape[:2]),
}
"""Back to the image's size: by the guided filter, as the package does it, and by interpolation."""
BAND = 0.0125
TITLES = ("preset", "way back", "MAD", "Grad", "seconds", "of quality")

Scores = dict[tuple[str, str], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--count", type=int, help="images of each folder, evenly picked")
    parser.add_argument("--checkpoint")
    parser.add_argument("--plot", type=Path, help="write the plot here: .svg, .png or .pdf")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = load_model(options.checkpoint, "cpu")
    outputs = {}
    for folder in options.folders:
        scores = measure(find_benchmark(folder), model, options.count)
        outputs[Path(folder).name] = scores
        print(f"\n{folder}, {len(scores['quality', 'guided'])} images\n")
        print(table(TITLES, rows_of(scores)))
    if options.plot:
        draw(outputs, options.plot)


@torch.inference_mode()
def measure(benchmark: Benchmark, model, count: int | None) -> Scores:
    """(preset, way) -> a row for each image: MAD, Grad, processor seconds."""
    rows: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    step = max(1, len(benchmark.samples) // (count or len(benchmark.samples)))
    predictors = {preset: Predictor(model, preset=preset) for preset in PRESETS}
    for sample in tqdm(benchmark.samples[::step][:count]):
        image, ground_truth = read_image(sample.image).pixels, read_alpha(sample.ground_truth)
        trimap = draw_trimap(ground_truth, BAND * min(ground_truth.shape))
        if sample.trimap:
            trimap = np.rint(read_alpha(sample.trimap) * 255).astype(np.uint8)
        band = unknown_region(trimap)
        for preset, predictor in predictors.items():
            began = time.process_time()
            batch = to_tensor(image, predictor.network_size(image))[None]
            coarse = fuse(*model(batch))[0, 0].numpy()
            network = time.process_time() - began
            for way, back in WAYS.items():
                began = time.process_time()
                alpha = back(image, coarse)
                seconds = network + time.process_time() - began
                scores = mad(alpha, ground_truth, band), grad(alpha, ground_truth, band)
                rows.setdefault((preset, way), []).append((*scores, seconds))
    return {key: np.array(values) for key, values in rows.items()}


def rows_of(scores: Scores) -> list[list[str]]:
    """Means of the errors, medians of the times and of their ratios to those of `quality`."""
    whole = scores["quality", "guided"][:, 2]
    rows = []
    for (preset, way), values in scores.items():
        error, gradient, _ = values.mean(axis=0)
        seconds, part = np.median(values[:, 2]), np.median(values[:, 2] / whole)
        rows.append(
            [preset, way, f"{error:.4f}", f"{gradient:.3f}", f"{seconds:.2f}", f"{part:.2f}"]
        )
    return rows


def draw(outputs: dict[str, Scores], path: Path) -> None:
    """One panel a folder: time against error, a line for each way back."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "presets"  # the same numbers make the same file
    figure, panels = plt.subplots(1, len(outputs), figsize=(4.6 * len(outputs), 3.4), squeeze=False)
    for axes, (name, scores) in zip(panels[0], outputs.items(), strict=True):
        whole = scores["quality", "guided"][:, 2]
        for way, style in (("plain", "o--"), ("guided", "o-")):
            rows = [scores[preset, way] for preset in PRESETS]
            parts = [float(np.median(row[:, 2] / whole)) for row in rows]
            errors = [1000 * row[:, 0].mean() for row in rows]
            axes.plot(parts, errors, style, label=f"{way} upsampling")
        for preset, part, error in zip(PRESETS, parts, errors, strict=True):
            axes.annotate(preset, (part, error), (0, -13), textcoords="offset points", ha="center")
        axes.set(title=name, xlabel="time, as a part of quality's", xlim=(0.1, 1.15))
        axes.set_ylabel("MAD x 1000, unknown region")
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
