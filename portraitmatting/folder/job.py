"""Run a plan: reading, the network, and foreground estimation with writing overlap.

Pictures are pulled through a chain of generators by the one thread that runs the network, and does
nothing else: readers before it bring pictures to their working size, writers behind it bring mattes
to the pictures' size. Both are threads (their work leaves Python's lock) that may run only so far
ahead, so that memory is bounded whatever the folder's size.
"""

import errno
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from portraitmatting.cli import one_line
from portraitmatting.errors import PortraitmattingError
from portraitmatting.folder.journal import Journal, state_of
from portraitmatting.folder.overlap import overlap
from portraitmatting.folder.plan import Plan
from portraitmatting.folder.style import Style
from portraitmatting.images import read_image, write_image
from portraitmatting.predictor import Predictor
from portraitmatting.steps import Estimate, Prepared

_NO_POINT_IN_GOING_ON = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass
class Summary:
    """What became of the pictures of a job. As text: for people, several lines."""

    done: int = 0
    skipped: int = 0
    """There from an earlier run, and unchanged."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Picture, relative to the input folder, to the reason in one line."""
    stopped: str = ""
    """Why not every picture was tried, in one line: Ctrl-C, or an output disk that is full."""
    interrupted: bool = False
    """Ctrl-C it was."""

    def __str__(self) -> str:
        lines = [f"{self.done} done, {self.skipped} skipped, {len(self.failed)} failed"]
        lines += [f"failed: {reason}" for reason in self.failed.values()]
        if self.stopped:
            lines.append(f"stopped: {self.stopped}; what is done is kept, run again to go on")
        return "\n".join(lines)


def matte_folder(
    plan: Plan,
    predictor: Predictor,
    style: Style | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Do what `plan_folder` settled and no earlier run has done yet (`overwrite`: all of it).

    `batch_size` pictures of one working size go through the network together (default: 8 on a GPU,
    1 on the CPU); `workers` threads read and shrink, as many estimate foregrounds and write.
    `progress` shows a bar if stderr is a terminal. A picture that cannot be read or written is
    reported and the others go on; Ctrl-C and a full or read-only disk end the job early, which the
    summary says. Raises `PortraitmattingError` if it cannot begin.
    """
    style = style or Style()
    if batch_size is None:
        batch_size = 1 if predictor.device.type == "cpu" else 8
    if batch_size < 1 or workers < 1:
        raise PortraitmattingError(
            f"batch size {batch_size} and {workers} workers: expected 1 or more of each"
        )
    settings = {
        kind: f"{plan.bits} {predictor.settings} {style.settings(kind)}" for kind in plan.kinds
    }
    with Journal(plan.output) as journal:
        tasks = _to_do(plan, settings, None if overwrite else journal)
        summary = Summary(skipped=len(plan.sources) - len(tasks))
        if tasks:
            style.prepare(plan.kinds)  # before the bar, through which it would talk
        hidden = None if progress else True
        with tqdm(total=len(tasks), unit=" pictures", disable=hidden) as bar:
            job = _Job(plan, predictor, style, settings, journal, summary, bar)
            job.run(tasks, batch_size, workers)
    return summary


@dataclass(frozen=True)
class _Task:
    """A picture, and the kinds of results still to make of it."""

    source: Path
    state: str
    """Of its file before it was read."""
    kinds: list[str]


@dataclass(frozen=True)
class _Read:
    """A picture that the network can take."""

    task: _Task
    prepared: Prepared
    icc_profile: bytes | None


@dataclass(frozen=True)
class _Estimated:
    """A picture whose results can be made and written."""

    task: _Task
    estimate: Estimate
    icc_profile: bytes | None


class _Stop(Exception):
    """No further picture can be written."""


def _to_do(plan: Plan, settings: dict[str, str], journal: Journal | None) -> list[_Task]:
    """What is missing or changed by the journal; everything without one."""
    tasks = []
    for source in plan.sources:
        state = state_of(plan.root / source)
        kinds = [
            kind
            for kind in plan.kinds
            if journal is None
            or not journal.is_done(plan.target(source, kind), f"{state} {settings[kind]}")
        ]
        if kinds:
            tasks.append(_Task(source, state, kinds))
    return tasks


@dataclass(frozen=True)
class _Job:
    plan: Plan
    predictor: Predictor
    style: Style
    settings: dict[str, str]
    journal: Journal
    summary: Summary
    bar: "tqdm[None]"
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Over the summary and the bar, which the writers share."""

    def run(self, tasks: list[_Task], batch_size: int, workers: int) -> None:
        readers = ThreadPoolExecutor(workers, "reader")
        writers = ThreadPoolExecutor(workers, "writer")
        try:
            read = overlap(readers, self._read, tasks, workers + batch_size)
            estimated = self._estimates(self._batches(read, batch_size))
            for _, written in overlap(writers, self._write, estimated, workers + batch_size):
                written.result()
        except KeyboardInterrupt:
            self.summary.stopped, self.summary.interrupted = "interrupted", True
        except _Stop as stop:
            self.summary.stopped = str(stop)
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(cancel_futures=True)

    def _read(self, task: _Task) -> _Read:
        picture = read_image(self.plan.root / task.source)
        return _Read(task, self.predictor.prepare(picture.pixels), picture.icc_profile)

    def _batches(
        self, read: Iterable[tuple[_Task, "Future[_Read]"]], batch_size: int
    ) -> Iterator[list[_Read]]:
        """Pictures of one working size together, once there are enough, or too many in all."""
        waiting: dict[tuple[int, ...], list[_Read]] = {}
        for task, future in read:
            try:
                item = future.result()
            except PortraitmattingError as error:
                self._fail(task, error)
                continue
            size = tuple(item.prepared.tensor.shape)
            waiting.setdefault(size, []).append(item)
            if len(waiting[size]) == batch_size:
                yield waiting.pop(size)
            elif sum(map(len, waiting.values())) > 2 * batch_size:
                yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
        yield from waiting.values()

    def _estimates(self, batches: Iterable[list[_Read]]) -> Iterator[_Estimated]:
        for batch in batches:
            try:
                estimates = self.predictor.estimate([item.prepared for item in batch])
            except PortraitmattingError as error:  # too large for the GPU, even one by one
                for item in batch:
                    self._fail(item.task, error)
                continue
            for item, estimate in zip(batch, estimates, strict=True):
                yield _Estimated(item.task, estimate, item.icc_profile)

    def _write(self, item: _Estimated) -> None:
        task = item.task
        try:
            matte = self.predictor.finish(item.estimate)
            for kind, pixels in self.style.results(matte, task.kinds, self.plan.bits):
                target = self.plan.target(task.source, kind)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_image(target, pixels, item.icc_profile)
                self.journal.add(target, f"{task.state} {self.settings[kind]}")
        # ValueErrors are ours, or pymatting's when the colours of a picture defeat its solver.
        except (OSError, ValueError, MemoryError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_POINT_IN_GOING_ON:
                raise _Stop(_reason(error)) from error
            self._fail(task, error)
        else:
            with self.lock:
                self.summary.done += 1
                self.bar.update()

    def _fail(self, task: _Task, error: Exception) -> None:
        name, reason = one_line(str(self.plan.root / task.source)), _reason(error)
        with self.lock:
            self.summary.failed[task.source] = reason if name in reason else f"{name}: {reason}"
            self.bar.update()


def _reason(error: Exception) -> str:
    """In one line; the system's own errors without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(": ".join(filter(None, [error.filename, error.strerror])))
    if isinstance(error, MemoryError):
        return "not enough memory to estimate its foreground: use another method for that"
    return one_line(str(error))
