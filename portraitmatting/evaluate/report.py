"""The result of an evaluation: scores per image, means with intervals, comparisons, protocol."""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.atomic import atomic_path
from portraitmatting.errors import PortraitmattingError
from portraitmatting.evaluate.contact_sheet import Case


@dataclass(frozen=True)
class Row:
    """One image's scores: metric name to value, NaN where it is not defined."""

    method: str
    region: str
    image: str
    pixels: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """Why a method has no scores for an image in a region; "all" stands for every one."""

    method: str
    region: str
    image: str
    reason: str


@dataclass(frozen=True)
class Mean:
    """A mean over `count` images and its 95 % interval."""

    method: str
    region: str
    metric: str
    count: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Mean of `second` minus `first` over the images that both have, its 95 % interval, and the
    two-sided p value of the paired sign-flip test."""

    first: str
    second: str
    region: str
    metric: str
    count: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass
class Report:
    """The whole result; `protocol` is what the numbers must be quoted with."""

    protocol: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    worst: list[Case] = field(default_factory=list)
    seed: int = 0

    def means(self) -> list[Mean]:
        """One for each method, region and metric, in the order of scoring."""
        results = []
        for method, region, metric, scores in self._columns():
            values = np.array(list(scores.values()))
            low, high = bootstrap_interval(values, self.seed)
            mean = float(values.mean())
            results.append(Mean(method, region, metric, len(values), mean, low, high))
        return results

    def comparisons(self) -> list[Comparison]:
        """Every further method against the first; p values not corrected for their number."""
        columns = {(c, r, m): scores for c, r, m, scores in self._columns()}
        first = next(iter(columns), ("", "", ""))[0]
        results = []
        for (second, region, metric), scores in columns.items():
            base = columns.get((first, region, metric), {})
            common = [name for name in scores if name in base]
            if second == first or not common:
                continue
            gaps: Scores = np.array([scores[name] - base[name] for name in common])
            interval = bootstrap_interval(gaps, self.seed)
            p_value = paired_p_value(gaps, self.seed)
            results.append(
                Comparison(
                    first, second, region, metric, len(gaps), float(gaps.mean()), *interval, p_value
                )
            )
        return results

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """One line per method, region and image; written atomically."""
        text = io.StringIO(newline="")
        metrics = self._metrics()
        writer = csv.writer(text)
        writer.writerow(["method", "region", "image", "pixels", *metrics])
        for row in self.rows:
            scores = [row.scores.get(metric, math.nan) for metric in metrics]
            known = ["" if math.isnan(score) else repr(score) for score in scores]
            writer.writerow([row.method, row.region, row.image, row.pixels, *known])
        _write(Path(path), text.getvalue())

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Protocol, means, comparisons, images, failures; NaN becomes null; written atomically."""
        content = {
            "protocol": self.protocol,
            "means": [asdict(mean) for mean in self.means()],
            "comparisons": [asdict(comparison) for comparison in self.comparisons()],
            "images": [asdict(row) for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
        }
        text = json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False)
        _write(Path(path), text + "\n")

    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for row in self.rows for metric in row.scores))

    def _columns(self) -> list[tuple[str, str, str, dict[str, float]]]:
        """(method, region, metric, image name -> score), where there is any score."""
        columns: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in self.rows:
            for metric, score in row.scores.items():
                if not math.isnan(score):
                    columns.setdefault((row.method, row.region, metric), {})[row.image] = score
        return [(*key, scores) for key, scores in columns.items()]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write(path: Path, text: str) -> None:
    try:
        with atomic_path(path) as temporary:
            # Names of files need not be UTF-8; JSON reads what takes the place of such bytes.
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise PortraitmattingError(
            f"{path}: cannot be written ({error.strerror}): choose another place"
        ) from error


RESAMPLES = 10_000
_EXACT_UP_TO = 12  # 2**12 sign patterns are fewer than RESAMPLES
_CHUNK = 500  # rows drawn at a time, which bounds memory on large benchmarks

Scores = NDArray[np.float64]


def bootstrap_interval(scores: Scores, seed: int = 0) -> tuple[float, float]:
    """1-d scores, one an image -> 95 % interval (low, high) of their mean; NaNs below 2 scores.

    The percentile bootstrap with 10,000 resamples (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13), too narrow for a handful of images. The same seed draws the
    same images for every metric.
    """
    if len(scores) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(scores), size=(rows, len(scores))) for rows in _chunks())
    means = np.concatenate([scores[draw].mean(axis=1) for draw in draws])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_p_value(differences: Scores, seed: int = 0) -> float:
    """1-d differences, one an image -> two-sided p value of their mean being zero; NaN if empty.

    The sign-flip permutation test (Fisher, "The Design of Experiments", 1935): if neither method
    were better, each difference could as well have had the other sign. All sign patterns for up to
    12 images, else 10,000 random ones, of which the smallest p value is 1/10,001 (Phipson and
    Smyth, "Permutation P-values Should Never Be Zero", 2010).
    """
    count = len(differences)
    if count == 0:
        return float("nan")
    # Ties with the observed pattern must count, whatever the order of summation rounds to.
    observed = abs(differences.sum()) * (1 - 1e-12)
    if count <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        return float(np.mean(np.abs(signs @ differences) >= observed))
    rng = np.random.default_rng(seed)
    patterns = (rng.choice((-1.0, 1.0), size=(rows, count)) for rows in _chunks())
    as_far = sum(int((np.abs(p @ differences) >= observed).sum()) for p in patterns)
    return (as_far + 1) / (RESAMPLES + 1)


def _chunks() -> Iterator[int]:
    return itertools.repeat(_CHUNK, RESAMPLES // _CHUNK)
