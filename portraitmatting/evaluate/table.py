"""An evaluation's result as text for people."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from portraitmatting.errors import one_line
from portraitmatting.evaluate.report import Comparison, Mean, Report, Row

Item = TypeVar("Item")


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
