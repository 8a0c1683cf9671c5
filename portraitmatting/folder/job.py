"""Run a plan: every image through the chain, into files, the journal and a summary."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from portraitmatting.errors import PortraitmattingError
from portraitmatting.folder.journal import Journal, state_of
from portraitmatting.folder.pipeline import Pipeline, Stop, failure
from portraitmatting.folder.plan import Plan
from portraitmatting.folder.results import ResultOptions
from portraitmatting.images.decode import DecodedImage
from portraitmatting.images.files import read_image, write_image
from portraitmatting.matte import Matte
from portraitmatting.predictor import Predictor


@dataclass
class Summary:
    """What became of the images of a job. As text: for people, several lines."""

    done: int = 0
    skipped: int = 0
    """There from an earlier run, and unchanged."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Image, relative to the input folder, to the reason in one line."""
    stopped: str = ""
    """Why not every image was tried, in one line: Ctrl-C, or an output disk that is full."""
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
    style: ResultOptions | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Do what `plan_folder` settled and no earlier run has done yet (`overwrite`: all of it).

    `batch_size` images of one working size go through the network together (default: 8 on a GPU,
    1 on the CPU); `workers` threads read, as many estimate foregrounds and write. `progress` shows
    a bar if stderr is a terminal. An image that cannot be read or written is reported and the
    others go on; Ctrl-C and a full or read-only disk end the job early, which the summary says.
    Raises `PortraitmattingError` if it cannot begin.
    """
    style = style or ResultOptions()
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
        with tqdm(total=len(tasks), unit=" images", disable=hidden) as bar:
            job = _Job(plan, predictor, style, settings, journal, summary, bar)
            job.run(tasks, batch_size, workers)
    return summary


@dataclass(frozen=True)
class _Task:
    """An image, and the kinds of results still to make of it."""

    source: Path
    state: str
    """Of its file before it was read."""
    kinds: list[str]


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
    style: ResultOptions
    settings: dict[str, str]
    journal: Journal
    summary: Summary
    bar: "tqdm[None]"
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Over the summary and the bar, which the writers share."""

    def run(self, tasks: list[_Task], batch_size: int, workers: int) -> None:
        chain = Pipeline(self.predictor, self._read, self._write, self._fail)
        try:
            chain.run(tasks, batch_size, workers)
        except KeyboardInterrupt:
            self.summary.stopped, self.summary.interrupted = "interrupted", True
        except Stop as stop:
            self.summary.stopped = str(stop)

    def _read(self, task: _Task) -> DecodedImage:
        return read_image(self.plan.root / task.source)

    def _write(self, task: _Task, matte: Matte, icc_profile: bytes | None) -> None:
        for kind, pixels in self.style.results(matte, task.kinds, self.plan.bits):
            target = self.plan.target(task.source, kind)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(target, pixels, icc_profile)
            self.journal.add(target, f"{task.state} {self.settings[kind]}")
        with self.lock:
            self.summary.done += 1
            self.bar.update()

    def _fail(self, task: _Task, error: Exception) -> None:
        why = failure(str(self.plan.root / task.source), error)
        with self.lock:
            self.summary.failed[task.source] = why
            self.bar.update()
