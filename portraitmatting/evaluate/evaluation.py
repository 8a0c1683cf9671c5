"""An evaluation: methods of matting, each scored on every image of a benchmark."""

import heapq
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from portraitmatting.checkpoint.load import load_model
from portraitmatting.checkpoint.registry import locate, sha256
from portraitmatting.choices import REGIONS
from portraitmatting.errors import ImageError, PortraitmattingError
from portraitmatting.evaluate.benchmark import Benchmark, Sample, find_benchmark, index_by_name
from portraitmatting.evaluate.contact_sheet import Case, make_case
from portraitmatting.evaluate.report import RESAMPLES, Failure, Report, Row
from portraitmatting.images.files import read_alpha, read_image
from portraitmatting.metrics import METRICS, dtssd_step, mad
from portraitmatting.predictor import Predictor
from portraitmatting.trimap import draw_trimap, unknown_region

WHOLE = "whole"

Alpha = NDArray[np.floating]
Masks = dict[str, NDArray[np.bool_] | None]
_SCALES = (
    "SAD, Grad and Conn in thousands; MSE, MAD and dtSSD plain; Boundary in pixels; "
    "IoU at 0.5, larger is better; all at the images' own sizes"
)


@dataclass(frozen=True)
class MattingMethod:
    """`matte` takes a sample and its HxWx3 RGB pixels (uint8 | uint16) and returns HxW float32 in
    [0, 1]; it may raise PortraitmattingError. `facts` go into the protocol."""

    name: str
    matte: Callable[[Sample, NDArray[np.generic]], NDArray[np.float32]]
    facts: dict[str, str]


def from_checkpoint(
    source: str | None = None,
    name: str | None = None,
    short_side: int | None = None,
    precision: str | None = None,
    device: str = "auto",
) -> MattingMethod:
    """Our network with given weights. Mattes are rounded to 8 bits, like the files of other tools.

    Args:
        source: as in `load_model`; may be an ONNX file.
        name: in the report, by default the file's.
        short_side, precision: as in `Predictor`.
        device: as in `choose_device`.
    """
    path, _ = locate(source)
    predictor = Predictor(load_model(source, device), short_side, precision)
    facts = {
        "checkpoint": path.name,
        "sha256": sha256(path),
        "short side": str(predictor.short_side),
        "device": predictor.runs_on,
        "precision": str(predictor.dtype).removeprefix("torch."),
    }
    return from_predictor(predictor, name or path.stem, facts)


def from_predictor(
    predictor: Predictor, name: str = "ours", facts: dict[str, str] | None = None
) -> MattingMethod:
    """A given predictor, for instance of a network in training; mattes are rounded to 8 bits."""

    def matte(_: Sample, image: NDArray[np.generic]) -> NDArray[np.float32]:
        alpha = predictor.predict(image).alpha
        return np.rint(alpha * 255).astype(np.float32) / np.float32(255)

    return MattingMethod(name, matte, facts or {"short side": str(predictor.short_side)})


def from_folder(name: str, folder: str | Path) -> MattingMethod:
    """Mattes or cut-outs of any origin, named as the images are, in the same tree or a flat one.

    Raises PortraitmattingError for a folder without images.
    """
    root = Path(folder)
    mattes = index_by_name(root) if root.is_dir() else {}
    if not mattes:
        raise PortraitmattingError(f"{root}: no mattes found for {name}: expected a folder of them")

    def matte(sample: Sample, _: NDArray[np.generic]) -> NDArray[np.float32]:
        path = mattes.get(sample.name) or mattes.get(Path(sample.name).name)
        if path is None:
            raise PortraitmattingError(f"no matte {root / sample.name}.png")
        return read_alpha(path)

    return MattingMethod(name, matte, {"mattes": str(root)})


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

    Args:
        benchmark: a `Benchmark` or its folder.
        methods: what is scored; the first one decides which cases are the worst.
        regions: "whole", "unknown" or both. The unknown region is that of the benchmark's trimaps;
            where it has none, it is drawn from the ground truth.
        band: distance that a drawn unknown region reaches from hard edges and from pixels that are
            neither opaque nor empty, as a part of the short side.
        video: take the images of each folder as the frames of a clip, in natural order, and add
            dtSSD (none for a first frame).
        worst: number of cases in the report, by the first method's MAD over the first region.
        seed: of the bootstrap intervals and the permutation tests.
        progress: show a bar on stderr.

    Images that cannot be scored become failures in the report; wrong arguments and folders raise
    PortraitmattingError.
    """
    _check_arguments(methods, regions, band)
    if not isinstance(benchmark, Benchmark):
        benchmark = find_benchmark(benchmark)
    scoring = _Scoring(methods, regions, band, video, worst)
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
    return (
        f"within {band:g} short sides of soft or edge pixels of the ground truth (no trimaps found)"
    )


class _Scoring:
    """What `evaluate` collects: `score` adds one sample to `rows`, `failures`, `worst` and `sizes`.

    Arguments as in `evaluate`.
    """

    def __init__(
        self,
        methods: Sequence[MattingMethod],
        regions: Sequence[str],
        band: float,
        video: bool,
        worst: int,
    ) -> None:
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.sizes: set[tuple[int, int]] = set()
        self._methods = methods
        self._regions = regions
        self._band = band
        self._video = video
        self._cases_kept = worst
        self._heap: list[tuple[float, int, Case]] = []
        self._previous: dict[str, tuple[str, tuple[Alpha, Alpha]]] = {}

    def worst(self) -> list[Case]:
        """The worst cases, the worst first."""
        return [case for *_, case in sorted(self._heap, key=lambda item: item[:2], reverse=True)]

    def score(self, sample: Sample) -> None:
        """Score one image by every method; an error becomes a failure of this image."""
        before, self._previous = self._previous, {}
        try:
            image = read_image(sample.image).pixels
            ground_truth = read_alpha(sample.ground_truth)
            _check_size(str(sample.ground_truth), ground_truth, image)
            masks: Masks = {
                region: self._mask(region, sample, ground_truth) for region in self._regions
            }
        except PortraitmattingError as error:
            self.failures.append(Failure("all", "all", sample.name, str(error)))
            return
        height, width = ground_truth.shape
        self.sizes.add((height, width))
        mattes: list[tuple[str, Alpha | None]] = []
        for method in self._methods:
            name = method.name
            try:
                alpha = method.matte(sample, image)
                _check_size(f"the matte by {name}", alpha, image)
            except PortraitmattingError as error:
                self.failures.append(Failure(name, "all", sample.name, str(error)))
                mattes.append((name, None))
                continue
            mattes.append((name, alpha))
            clip, previous = before.get(name, ("", None))
            if clip != _clip(sample):
                previous = None
            self._measure(name, sample, alpha, ground_truth, masks, previous)
            if self._video:
                self._previous[name] = _clip(sample), (alpha, ground_truth)
        self._keep_if_among_worst(sample, image, ground_truth, mattes, masks[self._regions[0]])

    def _mask(self, region: str, sample: Sample, ground_truth: Alpha) -> NDArray[np.bool_] | None:
        if region == WHOLE:
            return None
        if sample.trimap is None:
            return unknown_region(draw_trimap(ground_truth, self._band * min(ground_truth.shape)))
        trimap = np.rint(read_alpha(sample.trimap) * 255).astype(np.uint8)
        _check_size(str(sample.trimap), trimap, ground_truth)
        return unknown_region(trimap)

    def _measure(
        self,
        method: str,
        sample: Sample,
        alpha: Alpha,
        ground_truth: Alpha,
        masks: Masks,
        previous: tuple[Alpha, Alpha] | None,
    ) -> None:
        for region, mask in masks.items():
            try:
                scores = {
                    name: metric(alpha, ground_truth, mask) for name, metric in METRICS.items()
                }
                if self._video:
                    step = previous and dtssd_step(previous, (alpha, ground_truth), mask)
                    scores["dtSSD"] = math.nan if step is None else step
            except ImageError as error:
                self.failures.append(Failure(method, region, sample.name, str(error)))
                continue
            pixels = ground_truth.size if mask is None else int(np.count_nonzero(mask))
            self.rows.append(Row(method, region, sample.name, pixels, scores))

    def _keep_if_among_worst(
        self,
        sample: Sample,
        image: NDArray[np.generic],
        ground_truth: Alpha,
        mattes: Sequence[tuple[str, Alpha | None]],
        mask: NDArray[np.bool_] | None,
    ) -> None:
        alpha = mattes[0][1]
        if self._cases_kept < 1 or alpha is None or (mask is not None and not mask.any()):
            return
        error = mad(alpha, ground_truth, mask)
        if len(self._heap) == self._cases_kept and error <= self._heap[0][0]:
            return
        title = f"{sample.name}   MAD {error:.4f}, {self._regions[0]}"
        case = make_case(title, image, ground_truth, mattes)
        # The number decides between equal errors, so that cases themselves are never compared.
        heapq.heappush(self._heap, (error, -len(self.rows), case))
        if len(self._heap) > self._cases_kept:
            heapq.heappop(self._heap)


def _check_size(name: str, array: NDArray[np.generic], image: NDArray[np.generic]) -> None:
    if array.shape[:2] != image.shape[:2]:
        size, expected = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, image))
        raise ImageError(f"{name} is {size}, its image {expected}: make them one size")


def _clip(sample: Sample) -> str:
    return str(PurePosixPath(sample.name).parent)
