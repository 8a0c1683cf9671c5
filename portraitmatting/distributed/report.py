"""The outcome of a job: two tables at the output, and a summary for people."""

import csv
import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from portraitmatting.distributed.storage import Storage, explained
from portraitmatting.distributed.worker import DONE, FAILED, STOPPED
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.journal import SHOWN, describe_empty
from portraitmatting.folder.pipeline import reason
from portraitmatting.folder.plan import describe_unread

REPORT, FAILURES = "report.csv", "failures.csv"

_COLUMNS = (
    "source", "outcome", "reason", "seconds", "cpu_seconds", "bytes_read", "bytes_written", "worker"
)  # fmt: skip


@dataclass
class Summary:
    """The outcome of a job; as text, several lines for people. For millions of images it holds
    counts, and the names of the first images alone."""

    skipped: int = 0
    """Done by an earlier run, and up to date."""
    done: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)
    """Of the first images that failed; each names its image."""
    empty: int = 0
    """Images with nobody in the matte."""
    empty_names: list[str] = field(default_factory=list)
    stopped: str = ""
    """Why not every image was tried, in one line."""
    interrupted: bool = False
    """By Ctrl-C."""
    worker_seconds: float = 0
    """Of all workers together, spent on `done` and `failed`."""
    cpu_seconds: float = 0
    """Computing time of all cores; with several cores per worker it may be more."""
    bytes_read: int = 0
    bytes_written: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    """Suffixes of files that seem to be images but are of kinds that are not read."""

    def __str__(self) -> str:
        lines = [f"{self.done} done, {self.skipped} skipped, {self.failed} failed"]
        if self.unread:
            lines.append(describe_unread(self.unread))
        lines += [f"failed: {reason}" for reason in self.reasons]
        if self.failed > len(self.reasons):
            lines.append(f"failed: {self.failed - len(self.reasons)} more, see {FAILURES}")
        if self.empty:
            lines.append(describe_empty(self.empty, self.empty_names))
        if self.done:
            tried = self.done + self.failed
            lines.append(
                f"per image: {self.worker_seconds / tried:.3f} worker seconds, "
                f"{self.cpu_seconds / tried:.3f} CPU seconds, "
                f"{self.bytes_read / tried / 1e6:.3f} MB read, "
                f"{self.bytes_written / tried / 1e6:.3f} MB written"
            )
        if self.stopped:
            lines.append(f"stopped: {self.stopped}; what is done is kept, run again to go on")
        return "\n".join(lines)


def check_reports(output: Storage) -> None:
    """Raise `PortraitmattingError` if another file has the name of a report."""
    header = ",".join(_COLUMNS).encode()
    with explained(output):
        for name in (REPORT, FAILURES):
            if not output.fs.exists(output.name(name)):
                continue
            with output.fs.open(output.name(name), "rb") as file:
                if file.read(len(header)) != header:
                    raise PortraitmattingError(
                        f"{output}: {name} is not a report of ours, and would be overwritten: move "
                        "it, or choose another output"
                    )


class Report:
    """The rows of workers, as OUTPUT/report.csv (every image that was tried), OUTPUT/failures.csv
    (those that failed) and a `Summary`.

    A context manager. On a disk both tables grow during the job; in an object store they appear at
    its end, also after Ctrl-C. They replace those of the run before.
    """

    def __init__(self, output: Storage, summary: Summary) -> None:
        """Raises `PortraitmattingError` if `output` cannot be written to."""
        self.summary = summary
        self._output = output
        with explained(output):
            self._all = _Table(output, REPORT)
            self._failures = _Table(output, FAILURES)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self._or_stop(self._all.close)
        self._or_stop(self._failures.close)

    def add(self, rows: pa.Table) -> None:
        """A block of a worker's `ROWS`."""
        summary = self.summary
        for row in rows.to_pylist():
            if row["outcome"] == STOPPED:
                summary.stopped = row["reason"]
                continue
            row["source"] = one_line(os.fsdecode(row["source"]))
            self._all.add(row)
            summary.worker_seconds += row["seconds"]
            summary.cpu_seconds += row["cpu_seconds"]
            summary.bytes_read += row["bytes_read"]
            summary.bytes_written += row["bytes_written"]
            if row["outcome"] == DONE:
                summary.done += 1
                if row["empty"]:
                    summary.empty += 1
                    if len(summary.empty_names) < SHOWN:
                        summary.empty_names.append(row["source"])
                continue
            assert row["outcome"] == FAILED
            summary.failed += 1
            self._failures.add(row)
            if len(summary.reasons) < SHOWN:
                summary.reasons.append(row["reason"])
        self._or_stop(self._all.flush)
        self._or_stop(self._failures.flush)

    def _or_stop(self, write: Callable[[], None]) -> None:
        """Write, or stop the job if the disk is full."""
        try:
            write()
        except OSError as error:
            self.summary.stopped = f"{self._output}: the report cannot be written: {reason(error)}"


class _Table:
    """A CSV file with a header, as in RFC 4180 except that lines end in "\\n"."""

    def __init__(self, output: Storage, name: str) -> None:
        self._file = output.fs.open(output.name(name), "wb")
        self._text = io.StringIO()
        self._rows = csv.DictWriter(
            self._text, _COLUMNS, extrasaction="ignore", lineterminator="\n"
        )
        self._rows.writeheader()
        self.flush()

    def add(self, row: dict[str, Any]) -> None:
        times = {key: f"{row[key]:.3f}" for key in ("seconds", "cpu_seconds")}
        self._rows.writerow({**row, **times})

    def flush(self) -> None:
        self._file.write(self._text.getvalue().encode(errors="backslashreplace"))
        self._file.flush()
        self._text.seek(0)
        self._text.truncate()

    def close(self) -> None:
        self._file.close()
