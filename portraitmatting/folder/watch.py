"""A folder job that stays: what arrives is done once it is wholly written."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.journal import state_of
from portraitmatting.folder.plan import Plan
from portraitmatting.folder.tasks import Summary

_SETTLING = 1.0
"""Seconds for which a file must not change before it counts as written."""


class _Changes(FileSystemEventHandler):
    def __init__(self, output: Path) -> None:
        self.seen = threading.Event()
        self._output = os.path.join(os.path.realpath(output), "")

    def on_any_event(self, event: FileSystemEvent) -> None:
        if not os.path.realpath(os.fsdecode(event.src_path)).startswith(self._output):
            self.seen.set()


def watch(folders: list[Path], plan: Callable[[], Plan], run: Callable[[Plan], Summary]) -> Summary:
    """Do what is there and what arrives in `folders`, until Ctrl-C or a disk that is full.

    `plan` looks through the folders anew; `run` does the images of a plan that are not done yet. An
    image that failed is tried again once its file has changed. Returns the summary of all.
    """
    changes = _Changes(plan().output)
    observer = Observer()
    total, failed, seen = Summary(), dict[Path, str](), dict[Path, tuple[str, float]]()
    try:
        for folder in folders:
            observer.schedule(changes, str(folder), recursive=True)
        observer.start()
    except OSError as error:  # no more watches to be had, above all
        raise PortraitmattingError(
            f"{one_line(str(folders[0]))}: cannot be watched ({error.strerror}): watch a smaller "
            "folder, or run again from time to time"
        ) from error
    try:
        while not total.stopped:
            changes.seen.clear()
            current = plan()
            states = {source: state_of(current.root / source) for source in current.sources}
            now = time.monotonic()
            seen = {
                source: seen[source] if seen.get(source, ("", now))[0] == state else (state, now)
                for source, state in states.items()
            }
            settled = [s for s in seen if _is_settled(current.root / s, now - seen[s][1])]
            todo = [source for source in settled if failed.get(source) != states[source]]
            summary = run(replace(current, sources=todo))
            failed |= {source: states[source] for source in summary.failed}
            total.failed = {s: why for s, why in total.failed.items() if s not in todo}
            _add(total, summary)
            changes.seen.wait(_SETTLING if len(settled) < len(states) else None)
    except KeyboardInterrupt:
        total.stopped, total.interrupted = "interrupted", True
    finally:
        observer.stop()
        with suppress(RuntimeError):
            observer.join()
    return total


def _is_settled(path: Path, unchanged: float) -> bool:
    """Whether it has not changed for a while, by our own clock or by the file's."""
    with suppress(OSError):
        return unchanged > _SETTLING or time.time() - path.stat().st_mtime > _SETTLING
    return True  # gone, which reading it will tell


def _add(total: Summary, summary: Summary) -> None:
    total.done += summary.done
    total.failed |= summary.failed
    total.empty += summary.empty
    total.unread = summary.unread
    total.stopped, total.interrupted = summary.stopped, summary.interrupted
