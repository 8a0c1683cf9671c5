"""Run a plan: reading, the network, and foreground estimation with writing overlap.

Pictures are pulled through a chain of generators by the one thread that runs the network; readers
before it and writers behind it are threads (their work leaves Python's lock) that may run only so
far ahead, so that memory is bounded whatever the folder's size.
"""

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from portraitmatting.cli import one_line
from portraitmatting.decode import Picture
from portraitmatting.errors import ImageError, PortraitmattingError
from portraitmatting.folder.journal import Journal, state_of
from portraitmatting.folder.plan import Plan
from portraitmatting.folder.results import Results, Style
from portraitmatting.images import read_image, write_image
from portraitmatting.predictor import Matte, Predictor

_NO_POINT_IN_GOING_ON = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass
class Summary:
    """What became of the pictures of a job."""

    done: int = 0
    skipped: int = 0
    """There from an earlier run, and unchanged."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Picture, relative to the input folder, to the reason in one line."""
    interrupted: bool = False
    """Ctrl-C came; what was done until then is kept."""

    def __str__(self) -> str:
        counts = f"{self.done} done, {self.skipped} skipped, {len(self.failed)} failed"
        return "\n".join([counts, *(f"  failed: {reason}" for reason in self.failed.values())])


def matte_folder(
    plan: Plan,
    predictor: Predictor,
    style: Style | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Do what `plan_folder` has settled and an earlier run has not done yet (`overwrite`: all of it).

    `batch_size` pictures of one working size go through the network together (default: 8 on a GPU,
    1 on the CPU); `workers` threads read, as many estimate foregrounds and write. A picture that
    cannot be read or written is reported and the others go on; an output disk that is full or
    read-only raises `PortraitmattingError`.
    """
    if batch_size is None:
        batch_size = 1 if predictor.device.type == "cpu" else 8
    if batch_size < 1 or workers < 1:
        raise PortraitmattingError("batch size and workers: expected 1 or more")
    with tqdm(total=len(plan.sources), unit="img", disable=None if progress else True) as bar:
        job = _Job(plan, predictor, style or Style(), batch_size, workers, overwrite, bar)
        return job.run()


@dataclass(frozen=True)
class _Task:
    """One picture, and the kinds of results still to make of it with the state each is made from."""

    source: Path
    states: dict[str, str]


@dataclass(frozen=True)
class _Written:
    """A picture whose results are ready to be made and written."""

    task: _Task
    matte: Matte
    icc_profile: bytes | None


class _Job:
    def __init__(
        self,
        plan: Plan,
        predictor: Predictor,
        style: Style,
        batch_size: int,
        workers: int,
        overwrite: bool,
        bar: tqdm,
    ) -> None:
        self.plan, self.predictor, self.bar = plan, predictor, bar
        self.batch_size, self.workers, self.overwrite = batch_size, workers, overwrite
        self.settings = {
            kind: f"{predictor.settings} {style.settings(kind)}" for kind in plan.kinds
        }
        self.results = Results(style)
        self.summary = Summary()
        self.lock = threading.Lock()

    def run(self) -> Summary:
        readers = ThreadPoolExecutor(self.workers, "reader")
        writers = ThreadPoolExecutor(self.workers, "writer")
        self.journal = Journal(self.plan.output)
        try:
            read = _overlap(readers, self._read, self._tasks(), self.workers + self.batch_size)
            ready = self._mattes(self._batches(read))
            for _, written in _overlap(writers, self._write, ready, self.workers):
                written.result()
        except KeyboardInterrupt:
            self.summary.interrupted = True
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(cancel_futures=True)
            self.journal.close()
        return self.summary

    def _tasks(self) -> Iterator[_Task]:
        """What is missing or changed."""
        for source in self.plan.sources:
            states = {
                kind: state_of(self.plan.root / source, settings)
                for kind, settings in self.settings.items()
            }
            if not self.overwrite:
                states = {
                    kind: state
                    for kind, state in states.items()
                    if not self.journal.is_done(self.plan.target(source, kind), state)
                }
            if states:
                yield _Task(source, states)
            else:
                self.summary.skipped += 1
                self.bar.update()

    def _read(self, task: _Task) -> Picture:
        return read_image(self.plan.root / task.source)

    def _batches(
        self, read: Iterable[tuple[_Task, "Future[Picture]"]]
    ) -> Iterator[list[tuple[_Task, Picture]]]:
        """Pictures of one working size together, as soon as there are enough, or too many in all."""
        waiting: dict[tuple[int, int], list[tuple[_Task, Picture]]] = {}
        for task, future in read:
            try:
                picture = future.result()
            except PortraitmattingError as error:
                self._fail(task, error)
                continue
            size = self.predictor.network_size(picture.pixels)
            waiting.setdefault(size, []).append((task, picture))
            if len(waiting[size]) == self.batch_size:
                yield waiting.pop(size)
            elif sum(map(len, waiting.values())) > 2 * self.batch_size:
                yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
        yield from waiting.values()

    def _mattes(self, batches: Iterable[list[tuple[_Task, Picture]]]) -> Iterator[_Written]:
        for batch in batches:
            try:
                mattes = self.predictor.predict_batch([picture.pixels for _, picture in batch])
            except PortraitmattingError as error:  # too large for the GPU, even one by one
                for task, _ in batch:
                    self._fail(task, error)
                continue
            for (task, picture), matte in zip(batch, mattes, strict=True):
                yield _Written(task, matte, picture.icc_profile)

    def _write(self, item: _Written) -> None:
        task = item.task
        try:
            for kind, pixels in self.results.make(item.matte, list(task.states)):
                target = self.plan.target(task.source, kind)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_image(target, pixels, item.icc_profile)
                with self.lock:
                    self.journal.add(target, task.states[kind])
        except (ImageError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_POINT_IN_GOING_ON:
                raise PortraitmattingError(
                    f"{error}; stopped after {self.summary.done} pictures, run again to go on"
                ) from error
            self._fail(task, error)
        else:
            with self.lock:
                self.summary.done += 1
                self.bar.update()

    def _fail(self, task: _Task, error: Exception) -> None:
        name = one_line(str(self.plan.root / task.source))
        reason = one_line(str(error))
        with self.lock:
            self.summary.failed[task.source] = reason if name in reason else f"{name}: {reason}"
            self.bar.update()


def _overlap(
    pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, "Future[Made]"]]:
    """Each item with its work, in order; `pool` has at most `ahead` more of them in hand."""
    pending: deque[tuple[Item, Future[Made]]] = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) > ahead:
            yield pending.popleft()
    yield from pending
