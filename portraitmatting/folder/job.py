"""Run a folder job, once or for all images that arrive: results, journal and summary."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from portraitmatting.atomic import make_folders
from portraitmatting.device import limit_threads
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.journal import Journal, Summary, Task, digest_of, list_tasks, settings
from portraitmatting.folder.pipeline import Pipeline, Stop, count_pixels, failure
from portraitmatting.folder.plan import Plan, check_writable
from portraitmatting.folder.results import ResultOptions, state_of
from portraitmatting.images.decode import DecodedImage
from portraitmatting.images.files import read_image, write_image
from portraitmatting.matte import Matte
from portraitmatting.predictor import Predictor


def matte_folder(
    plan: Plan,
    predictor: Predictor,
    results: ResultOptions | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | Callable[[Summary, int], None] = False,
    call: str | None = None,
) -> Summary:
    """Write the results of a plan that no earlier run has written.

    An image that cannot be read or written is reported, and the job goes on. Ctrl-C and a full or
    read-only disk end the job early, which the summary reports.

    Args:
        plan: what to read and write, of `plan_folder`.
        predictor: runs the network.
        results: the look of results.
        batch_size: images of one working size that go through the network together; by default 8 on
            a GPU, 1 on the CPU.
        workers: threads, each with one image; by default as many as there are cores. Results do not
            depend on it.
        overwrite: write results anew that an earlier run has written, also those of other images.
        progress: True shows a bar if stderr is a terminal; a function is called after every image
            with the summary so far and the number of images to do, by one thread at a time.
        call: `network_call` of the predictor, for the journal: see `finished`.

    Raises `PortraitmattingError` if it cannot begin.
    """
    results = results or ResultOptions()
    cores = available_cores()
    if batch_size is None:
        batch_size = 1 if predictor.device.type == "cpu" else 8
    if workers is None:
        workers = cores
    if batch_size < 1 or workers < 1:
        raise PortraitmattingError(
            f"batch size {batch_size} and {workers} workers: expected 1 or more of each"
        )
    check_writable(plan)
    by_kind = settings(plan, results, predictor.settings)
    with Journal(plan.output) as journal:
        if call is not None:
            journal.add_network(call, predictor.settings)
        tasks = list_tasks(plan, by_kind, None if overwrite else journal)
        summary = Summary(skipped=len(plan.sources) - len(tasks), unread=plan.unread)
        if not tasks:
            return summary
        results.prepare(plan.kinds)  # before the bar: it may print a line
        hidden = None if progress is True else True
        with (
            tqdm(total=len(tasks), unit=" images", disable=hidden) as bar,
            limit_threads(max(1, cores // len(tasks))),  # each core has images of its own
        ):
            report = progress if callable(progress) else None
            job = _Job(plan, predictor, results, by_kind, journal, summary, bar, report)
            job.run(tasks, batch_size, workers)
    return summary


def available_cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


@dataclass(frozen=True)
class _Job:
    plan: Plan
    predictor: Predictor
    results: ResultOptions
    settings: dict[str, str]
    journal: Journal
    summary: Summary
    bar: "tqdm[None]"
    report: Callable[[Summary, int], None] | None
    lock: Any = field(default_factory=threading.Lock)
    """For the summary and the bar, which threads share."""

    def run(self, tasks: list[Task], batch_size: int, workers: int) -> None:
        pipeline = Pipeline(self.predictor, self._pixels, self._read, self._write, self._fail)
        try:
            pipeline.run(tasks, batch_size, workers)
        except KeyboardInterrupt:
            self.summary.stopped, self.summary.interrupted = "interrupted", True
        except Stop as stop:
            self.summary.stopped = str(stop)

    def _pixels(self, task: Task) -> int:
        return count_pixels(self.plan.root / task.source)

    def _read(self, task: Task) -> DecodedImage:
        return read_image(self.plan.root / task.source)

    def _write(self, task: Task, matte: Matte, image: DecodedImage) -> None:
        source = self.plan.root / task.source
        digest = digest_of(source)
        metadata = None if self.results.strip_metadata else image.metadata
        for kind, pixels in self.results.results(matte, task.kinds, self.plan.bits):
            target = self.plan.target(task.source, kind)
            make_folders(target.parent)
            write_image(target, pixels, image.icc_profile, metadata)
            self.journal.add(target, f"{task.state} {self.settings[kind]}", source, digest)
        with self.lock:
            self.summary.done += 1
            if matte.is_empty:
                self.summary.empty.append(task.source)
            self._advance()

    def _fail(self, task: Task, error: Exception) -> None:
        message = failure(str(self.plan.root / task.source), error)
        with self.lock:
            self.summary.failed[task.source] = message
            self._advance()

    def _advance(self) -> None:
        self.bar.update()
        if self.report:
            self.report(self.summary, self.bar.total)


_SETTLING = 1.0
"""Seconds without a change after which a file counts as complete."""


def watch(folders: list[Path], plan: Callable[[], Plan], run: Callable[[Plan], Summary]) -> Summary:
    """Do the images in `folders`, and those that arrive, until Ctrl-C or until the disk is full.

    An image that failed is tried again once its file has changed. Needs the extra "watch".

    Args:
        folders: where images arrive.
        plan: called for the images that are there at the moment.
        run: does those of a plan's images that no earlier run has done.

    Returns the summary of all runs.
    """
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    output = os.path.join(os.path.realpath(plan().output), "")
    changed = threading.Event()

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if not os.path.realpath(os.fsdecode(event.src_path)).startswith(output):
                changed.set()

    observer = Observer()
    try:
        for folder in folders:
            observer.schedule(Handler(), str(folder), recursive=True)
        observer.start()
    except OSError as error:  # mostly the system's limit on the number of watched folders
        raise PortraitmattingError(
            f"{one_line(str(folders[0]))}: cannot be watched ({error.strerror}): watch a smaller "
            "folder, or run again from time to time"
        ) from error
    total = Summary()
    since: dict[Path, tuple[str, float]] = {}  # each file's state, and the time it was first seen
    failed: dict[Path, str] = {}  # the states of files that failed
    try:
        while not total.stopped:
            changed.clear()
            current = plan()
            states = {source: state_of(current.root / source) for source in current.sources}
            now = time.monotonic()
            since = {
                source: since[source] if since.get(source, ("", now))[0] == state else (state, now)
                for source, state in states.items()
            }
            complete = [s for s in since if _is_complete(current.root / s, now - since[s][1])]
            todo = [source for source in complete if failed.get(source) != states[source]]
            summary = run(replace(current, sources=todo))
            failed |= {source: states[source] for source in summary.failed}
            total.failed = {s: reason for s, reason in total.failed.items() if s not in todo}
            total.add(summary)
            changed.wait(_SETTLING if len(complete) < len(states) else None)
    except KeyboardInterrupt:
        total.stopped, total.interrupted = "interrupted", True
    finally:
        observer.stop()
        with suppress(RuntimeError):  # it was not started
            observer.join()
    return total


def _is_complete(path: Path, unchanged: float) -> bool:
    """Whether the file has not changed for a while, by our clock or by its time of change."""
    with suppress(OSError):
        return unchanged > _SETTLING or time.time() - path.stat().st_mtime > _SETTLING
    return True  # removed, which reading it will report
