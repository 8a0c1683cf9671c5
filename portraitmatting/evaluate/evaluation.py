"""The evaluation: arguments checked, every image scored, the protocol written down."""

import os
from collections.abc import Sequence
from typing import Any

import cv2
import torch
from tqdm import tqdm

from portraitmatting.errors import PortraitmattingError
from portraitmatting.evaluate.benchmark import Benchmark, find_benchmark
from portraitmatting.evaluate.bootstrap import RESAMPLES
from portraitmatting.evaluate.methods import MattingMethod
from portraitmatting.evaluate.report import Report
from portraitmatting.evaluate.scoring import UNKNOWN, WHOLE, Scoring

REGIONS = (WHOLE, UNKNOWN)
_SCALES = (
    "SAD, Grad and Conn in thousands; MSE, MAD and dtSSD plain; Boundary in pixels; "
    "IoU at 0.5, larger is better; all at the images' own sizes"
)


def evaluate(
    benchmark: Benchmark | str | os.PathLike[str],
    methods: Sequence[MattingMethod],
    regions: Sequence[str] = (WHOLE,),
    band: float = 0.0125,
    video: bool = False,
    worst: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Score each method on every image of a benchmark, at the images' own sizes.

    `regions`: "whole", "unknown" or both. The unknown region is that of the benchmark's trimaps;
    where it has none, it is drawn from the truth: whatever lies within `band` short sides of a
    pixel that is neither opaque nor empty, or of a hard edge. `video` takes the images of each
    folder for the frames of a clip, in natural order, and adds dtSSD (none for a first frame). The
    report keeps the `worst` cases by the first method's MAD over the first region. `seed` is
    that of the intervals and tests. `progress` shows a bar on stderr.

    Images that cannot be scored become failures in the report; wrong arguments and folders raise
    PortraitmattingError.
    """
    _check_arguments(methods, regions, band)
    if not isinstance(benchmark, Benchmark):
        benchmark = find_benchmark(benchmark)
    scoring = Scoring(methods, regions, band, video, worst)
    for sample in tqdm(benchmark.samples, "scored", unit="image", disable=not progress):
        scoring.score(sample)
    scored = len({row.image for row in scoring.rows})
    protocol = {
        "benchmark": str(benchmark.folder),
        "layout": benchmark.layout,
        "images": f"{len(benchmark.samples)} found, {scored} scored",
        "sizes": _size_range(scoring.sizes),
        "regions": {region: _region(region, benchmark, band) for region in regions},
        "scales": _SCALES,
        "intervals": f"95 %, percentile bootstrap over images, {RESAMPLES} draws, seed {seed}",
        "p values": f"paired sign-flip permutation test, two-sided, uncorrected, seed {seed}",
        "methods": {method.name: method.facts for method in methods},
        "versions": f"torch {torch.__version__}, opencv {cv2.__version__}",
    }
    return Report(protocol, scoring.rows, scoring.failures, scoring.worst(), seed)


def _check_arguments(methods: Sequence[MattingMethod], regions: Sequence[str], band: float) -> None:
    names = [method.name for method in methods]
    if not names:
        raise PortraitmattingError("nothing to score: give a checkpoint or a folder of mattes")
    if twice := [name for name in names if names.count(name) > 1]:
        raise PortraitmattingError(f"two methods are called {twice[0]}: name one with NAME=...")
    if not regions or set(regions) - set(REGIONS):
        raise PortraitmattingError(f"regions {list(regions)}: expected some of {list(REGIONS)}")
    if not 0 <= band < 1:
        raise PortraitmattingError(
            f"band {band}: expected a fraction of the short side, from 0 to 1"
        )


def _size_range(sizes: set[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    small, large = (f"{width}x{height}" for height, width in (by_area[0], by_area[-1]))
    return small if len(sizes) == 1 else f"{small} to {large}"


def _region(region: str, benchmark: Benchmark, band: float) -> Any:
    if region == WHOLE:
        return "every pixel"
    if benchmark.samples[0].trimap is not None:
        return "the unknown pixels of the benchmark's trimaps"
    return f"within {band:g} short sides of soft or edge pixels of the truth (no trimaps found)"
