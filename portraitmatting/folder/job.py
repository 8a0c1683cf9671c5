"""Run a plan: every image through the pipeline, into files, the journal and a summary."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from portraitmatting.atomic import make_folders
from portraitmatting.errors import PortraitmattingError
from portraitmatting.folder.journal import Journal, digest_of
from portraitmatting.folder.pipeline import Pipeline, Stop, count_pixels, failure
from portraitmatting.folder.plan import Plan, check_writable
from portraitmatting.folder.results import ResultOptions
from portraitmatting.folder.tasks import Summary, Task, list_tasks, settings
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
    """Do what `plan_folder` settled and no earlier run has done yet.

    An image that cannot be read or written is reported and the others go on; Ctrl-C and a full or
    read-only disk end the job early, which the summary says.

    Args:
        plan: what to read and write.
        predictor: runs the network.
        results: how results look.
        batch_size: images of one working size that go through the network together; by default 8 on
            a GPU, 1 on the CPU.
        workers: images in hand at a time, each in a thread of its own; by default as many as there
            are cores. Results do not depend on it.
        overwrite: do again what an earlier run has done, also with results of other images.
        progress: True shows a bar if stderr is a terminal; a function is called after every image
            with the summary so far and the number of images to do, by one thread at a time.
        call: `network_call` of the predictor, noted for later runs with nothing to do.

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
        results.prepare(plan.kinds)  # before the bar, through which it would talk
        hidden = None if progress is True else True
        with (
            tqdm(total=len(tasks), unit=" images", disable=hidden) as bar,
            _threads_of_the_network(max(1, cores // len(tasks))),
        ):
            report = progress if callable(progress) else _ignore
            job = _Job(plan, predictor, results, by_kind, journal, summary, bar, report)
            job.run(tasks, batch_size, workers)
    return summary


def available_cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


@contextmanager
def _threads_of_the_network(count: int) -> Iterator[None]:
    """One each where every core has an image of its own; more for images fewer than cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ignore(summary: Summary, total: int) -> None:
    pass


@dataclass(frozen=True)
class _Job:
    plan: Plan
    predictor: Predictor
    results: ResultOptions
    settings: dict[str, str]
    journal: Journal
    summary: Summary
    bar: "tqdm[None]"
    report: Callable[[Summary, int], None]
    lock: Any = field(default_factory=threading.Lock)
    """Over the summary and the bar, which threads share."""

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
        why = failure(str(self.plan.root / task.source), error)
        with self.lock:
            self.summary.failed[task.source] = why
            self._advance()

    def _advance(self) -> None:
        self.bar.update()
        self.report(self.summary, self.bar.total)
