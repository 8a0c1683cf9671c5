"""The result of an evaluation: scores, means, comparisons and protocol, as text, CSV or JSON."""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from portraitmatting.atomic import atomic_path
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.evaluate.contact_sheet import Case

Item = TypeVar("Item")


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
    """Why a method has no scores for an image in a region; "all" is every method or region."""

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
    """The whole result; `protocol` belongs to the scores wherever they are quoted."""

    protocol: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    worst: list[Case] = field(default_factory=list)
    seed: int = 0

    def means(self) -> list[Mean]:
        """One for each method, region and metric, in the order of scoring."""
        results = []
        for (method, region, metric), scores in self._columns().items():
            values = np.array(list(scores.values()))
            low, high = bootstrap_interval(values, self.seed)
            mean = float(values.mean())
            results.append(Mean(method, region, metric, len(values), mean, low, high))
        return results

    def comparisons(self) -> list[Comparison]:
        """Every further method against the first; p values not corrected for their number."""
        columns = self._columns()
        first = next(iter(columns), ("", "", ""))[0]
        results = []
        for (second, region, metric), scores in columns.items():
            base = columns.get((first, region, metric), {})
            common = [name for name in scores if name in base]
            if second == first or not common:
                continue
            differences: Scores = np.array([scores[name] - base[name] for name in common])
            mean = float(differences.mean())
            low, high = bootstrap_interval(differences, self.seed)
            p_value = paired_p_value(differences, self.seed)
            results.append(
                Comparison(first, second, region, metric, len(common), mean, low, high, p_value)
            )
        return results

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """One line per method, region and image; written atomically."""
        text = io.StringIO(newline="")
        metrics = _unique(metric for row in self.rows for metric in row.scores)
        writer = csv.writer(text)
        writer.writerow(["method", "region", "image", "pixels", *metrics])
        for row in self.rows:
            scores = [row.scores.get(metric, math.nan) for metric in metrics]
            cells = ["" if math.isnan(score) else repr(score) for score in scores]
            writer.writerow([row.method, row.region, row.image, row.pixels, *cells])
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

    def _columns(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """(method, region, metric) to the scores that there are, by the images' names."""
        columns: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in self.rows:
            for metric, score in row.scores.items():
                if not math.isnan(score):
                    columns.setdefault((row.method, row.region, metric), {})[row.image] = score
        return columns


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write(path: Path, text: str) -> None:
    try:
        with atomic_path(path) as temporary:
            # File names need not be UTF-8; such bytes become escapes that JSON reads, too.
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
    """1-d scores, one per image -> 95 % interval (low, high) of their mean; NaNs below 2 scores.

    The percentile bootstrap with 10,000 resamples (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13), too narrow for a handful of images. One seed draws the same
    images for every metric.
    """
    if len(scores) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(scores), size=(rows, len(scores))) for rows in _chunks())
    means = np.concatenate([scores[draw].mean(axis=1) for draw in draws])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_p_value(differences: Scores, seed: int = 0) -> float:
    """1-d differences, one per image -> two-sided p value of their mean being zero; NaN if empty.

    The sign-flip permutation test (Fisher, "The Design of Experiments", 1935): if neither method
    were better, each difference could as well have had the other sign. Takes all sign patterns for
    up to 12 images, else 10,000 random ones, of which the smallest p value is 1/10,001 (Phipson and
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


def format_report(report: Report) -> str:
    """Scores per image, means with intervals side by side, comparisons, failures, protocol."""
    by_method = _grouped(report.rows, lambda row: (row.method, row.region))
    by_region = _grouped(report.means(), lambda mean: mean.region)
    by_pair = _grouped(report.comparisons(), lambda c: (c.second, c.region))
    blocks = [*map(_images, by_method), *map(_means, by_region), *map(_comparison, by_pair)]
    if report.failures:
        lines = [f"  {f.image}, {f.method}, {f.region}: {f.reason}" for f in report.failures]
        blocks.append("\n".join([f"not scored: {len(lines)}", *map(one_line, lines)]))
    blocks.append("\n".join(["protocol", *_protocol(report.protocol, "  ")]))
    return "\n\n".join(blocks)


def _images(rows: Sequence[Row]) -> str:
    metrics = _unique(metric for row in rows for metric in row.scores)
    lines = [["image", *metrics]]
    for row in rows:
        scores = (row.scores.get(metric, math.nan) for metric in metrics)
        lines.append([one_line(row.image), *map(_number, scores)])
    return f"{rows[0].method}, {rows[0].region}\n{_aligned(lines)}"


def _means(means: Sequence[Mean]) -> str:
    cells = {(m.method, m.metric): m for m in means}
    methods = _unique(m.method for m in means)
    lines = [["", *methods]]
    for metric in _unique(m.metric for m in means):
        row = [cells.get((method, metric)) for method in methods]
        lines.append([metric, *(_mean(mean) if mean else "-" for mean in row)])
    counts = (max(m.count for m in means if m.method == c) for c in methods)
    lines.append(["images", *map(str, counts)])
    return f"mean and 95 % interval, {means[0].region}\n{_aligned(lines)}"


def _comparison(comparisons: Sequence[Comparison]) -> str:
    lines = [["", "difference", "95 % interval", "p", "images"]]
    for c in comparisons:
        interval = _interval(c.low, c.high, "+")
        cells = [c.metric, _number(c.difference, "+"), interval, _number(c.p_value), str(c.count)]
        lines.append(cells)
    first = comparisons[0]
    return f"{first.second} minus {first.first}, {first.region}\n{_aligned(lines)}"


def _grouped(items: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _mean(mean: Mean) -> str:
    return f"{_number(mean.mean)} ({_interval(mean.low, mean.high)})"


def _protocol(facts: object, indent: str) -> list[str]:
    if not isinstance(facts, dict):
        return [f"{indent}{one_line(str(facts))}"]
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_protocol(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {one_line(str(value))}")
    return lines


def _number(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.4g}"


def _interval(low: float, high: float, sign: str = "") -> str:
    return "-" if math.isnan(low) else f"{_number(low, sign)} to {_number(high, sign)}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  "
        + line[0].ljust(widths[0])
        + "".join("  " + cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
