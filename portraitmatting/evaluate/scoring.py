"""The state of an evaluation from one image to the next: read, ask, measure, note failures."""

import heapq
import math
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import ImageError, PortraitmattingError
from portraitmatting.evaluate.benchmark import Sample
from portraitmatting.evaluate.contact_sheet import Case, make_case
from portraitmatting.evaluate.methods import MattingMethod
from portraitmatting.evaluate.report import Failure, Row
from portraitmatting.images.alpha import read_alpha
from portraitmatting.images.files import read_image
from portraitmatting.metrics import METRICS, dtssd_step, mad
from portraitmatting.trimap import draw_trimap, unknown_region

WHOLE, UNKNOWN = "whole", "unknown"

Alpha = NDArray[np.floating]
Masks = dict[str, NDArray[np.bool_] | None]


class Scoring:
    """Call `score` for one sample after the other; `rows`, `failures`, `worst` and `sizes` grow.

    Arguments as in `portraitmatting.evaluate.evaluate`.
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
        self._keep = worst
        self._heap: list[tuple[float, int, Case]] = []
        self._previous: dict[str, tuple[str, tuple[Alpha, Alpha]]] = {}

    def worst(self) -> list[Case]:
        """The kept cases, worst first."""
        return [case for *_, case in sorted(self._heap, key=lambda item: item[:2], reverse=True)]

    def score(self, sample: Sample) -> None:
        """One image by every method; whatever is wrong with it becomes a failure."""
        before, self._previous = self._previous, {}
        try:
            image = read_image(sample.image).pixels
            truth = read_alpha(sample.truth)
            _check_size(str(sample.truth), truth, image)
            masks: Masks = {region: self._mask(region, sample, truth) for region in self._regions}
        except PortraitmattingError as error:
            self.failures.append(Failure("all", "all", sample.name, str(error)))
            return
        height, width = truth.shape
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
            self._measure(
                name, sample, alpha, truth, masks, previous if clip == _clip(sample) else None
            )
            if self._video:
                self._previous[name] = _clip(sample), (alpha, truth)
        self._keep_if_bad(sample, image, truth, mattes, masks[self._regions[0]])

    def _mask(self, region: str, sample: Sample, truth: Alpha) -> NDArray[np.bool_] | None:
        if region == WHOLE:
            return None
        if sample.trimap is None:
            return unknown_region(draw_trimap(truth, self._band * min(truth.shape)))
        trimap = np.rint(read_alpha(sample.trimap) * 255).astype(np.uint8)
        _check_size(str(sample.trimap), trimap, truth)
        return unknown_region(trimap)

    def _measure(
        self,
        method: str,
        sample: Sample,
        alpha: Alpha,
        truth: Alpha,
        masks: Masks,
        previous: tuple[Alpha, Alpha] | None,
    ) -> None:
        for region, mask in masks.items():
            try:
                scores = {name: metric(alpha, truth, mask) for name, metric in METRICS.items()}
                if self._video:
                    step = previous and dtssd_step(previous, (alpha, truth), mask)
                    scores["dtSSD"] = math.nan if step is None else step
            except ImageError as error:
                self.failures.append(Failure(method, region, sample.name, str(error)))
                continue
            pixels = truth.size if mask is None else int(np.count_nonzero(mask))
            self.rows.append(Row(method, region, sample.name, pixels, scores))

    def _keep_if_bad(
        self,
        sample: Sample,
        image: NDArray[np.generic],
        truth: Alpha,
        mattes: Sequence[tuple[str, Alpha | None]],
        mask: NDArray[np.bool_] | None,
    ) -> None:
        alpha = mattes[0][1]
        if self._keep < 1 or alpha is None or (mask is not None and not mask.any()):
            return
        badness = mad(alpha, truth, mask)
        if len(self._heap) == self._keep and badness <= self._heap[0][0]:
            return
        title = f"{sample.name}   MAD {badness:.4f}, {self._regions[0]}"
        case = make_case(title, image, truth, mattes)
        # The number decides between equals, so that cases themselves are never compared.
        heapq.heappush(self._heap, (badness, -len(self.rows), case))
        if len(self._heap) > self._keep:
            heapq.heappop(self._heap)


def _check_size(name: str, array: NDArray[np.generic], image: NDArray[np.generic]) -> None:
    if array.shape[:2] != image.shape[:2]:
        ours, theirs = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, image))
        raise ImageError(f"{name} is {ours}, its image {theirs}: make them one size")


def _clip(sample: Sample) -> str:
    return str(PurePosixPath(sample.name).parent)
