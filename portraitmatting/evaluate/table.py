"""An evaluation's result as text for people."""

import math
from collections.abc import Iterable, Sequence

from portraitmatting.cli import one_line
from portraitmatting.evaluate.report import Comparison, Mean, Report, Row


def format_report(report: Report) -> str:
    """Scores per picture, means with their intervals, comparisons, failures and the protocol."""
    blocks = [_pictures(*key, rows) for key, rows in _grouped(report.rows)]
    blocks += [_means(*key, means) for key, means in _grouped(report.means())]
    blocks += [_comparisons(found) for found in _by_pair(report.comparisons())]
    if report.failures:
        lines = [f"  {f.image}, {f.contestant}, {f.region}: {f.reason}" for f in report.failures]
        blocks.append("\n".join([f"not scored: {len(lines)}", *map(one_line, lines)]))
    blocks.append("\n".join(["protocol", *_protocol(report.protocol, "  ")]))
    return "\n\n".join(blocks)


def _pictures(contestant: str, region: str, rows: Sequence[Row]) -> str:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    lines = [["image", *metrics]]
    for row in rows:
        scores = (row.scores.get(metric, math.nan) for metric in metrics)
        lines.append([one_line(row.image), *map(_number, scores)])
    return f"{contestant}, {region}\n{_aligned(lines)}"


def _means(contestant: str, region: str, means: Sequence[Mean]) -> str:
    lines = [["", "mean", "95 % interval", "N"]]
    for m in means:
        lines.append([m.metric, _number(m.mean), _interval(m.low, m.high), str(m.count)])
    return f"{contestant}, {region}: mean\n{_aligned(lines)}"


def _comparisons(found: Sequence[Comparison]) -> str:
    head = found[0]
    lines = [["", "difference", "95 % interval", "p", "N"]]
    for c in found:
        interval = _interval(c.low, c.high, "+")
        cells = [c.metric, _number(c.difference, "+"), interval, _number(c.p_value), str(c.count)]
        lines.append(cells)
    return f"{head.second} minus {head.first}, {head.region}\n{_aligned(lines)}"


def _grouped(items: Iterable[Row] | Iterable[Mean]) -> list[tuple[tuple[str, str], list]]:  # type: ignore[type-arg]
    groups: dict[tuple[str, str], list] = {}  # type: ignore[type-arg]
    for item in items:
        groups.setdefault((item.contestant, item.region), []).append(item)
    return list(groups.items())


def _by_pair(comparisons: Iterable[Comparison]) -> list[list[Comparison]]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.second, comparison.region), []).append(comparison)
    return list(groups.values())


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
