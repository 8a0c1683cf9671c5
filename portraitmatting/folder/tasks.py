"""What is still to be done, by the plan and the journal. Imports no PyTorch."""

import json
import os
import platform
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portraitmatting.cli import own_version
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.journal import NAME, Journal, state_of
from portraitmatting.folder.plan import Plan, describe_unread
from portraitmatting.folder.results import ResultOptions

_SHOWN = 20


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
    """Whether it was Ctrl-C."""
    empty: list[Path] = field(default_factory=list, compare=False)
    """Images in whose matte nobody is."""
    unread: Counter[str] = field(default_factory=Counter)
    """Suffixes of files that seem to be images and cannot be read."""

    def __str__(self) -> str:
        lines = [f"{self.done} done, {self.skipped} skipped, {len(self.failed)} failed"]
        if self.unread:
            lines.append(describe_unread(self.unread))
        lines += [f"failed: {reason}" for reason in self.failed.values()]
        if self.empty:
            names = [one_line(str(path)) for path in sorted(self.empty)[:_SHOWN]]
            more = len(self.empty) - len(names)
            names += [f"{more} more"] if more else []
            lines.append(f"{len(self.empty)} with nobody in the matte: {', '.join(names)}")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}; what is done is kept, run again to go on")
        return "\n".join(lines)


@dataclass(frozen=True)
class Task:
    """An image, and the kinds of results still to make of it."""

    source: Path
    state: str
    """Of its file before it was read."""
    kinds: list[str]


def settings(plan: Plan, results: ResultOptions, network: str) -> dict[str, str]:
    """Each kind to the text that differs where results of it may differ; `network` is
    `Predictor.settings`."""
    return {kind: f"{plan.bits} {network} {results.settings(kind)}" for kind in plan.kinds}


def list_tasks(plan: Plan, settings: dict[str, str], journal: Journal | None) -> list[Task]:
    """What is missing or changed by the journal; everything without one.

    Raises `PortraitmattingError` where a result of another image would be overwritten.
    """
    tasks: list[Task] = []
    owned: list[tuple[Path, str]] = []
    for source in plan.sources:
        path = plan.root / source
        state, kinds = state_of(path), []
        for kind in plan.kinds:
            target = plan.target(source, kind)
            if journal is None or not journal.is_done(target, f"{state} {settings[kind]}", path):
                kinds.append(kind)
                if journal is not None and (owner := journal.owner(target, path)):
                    owned.append((target, owner))
        if kinds:
            tasks.append(Task(source, state, kinds))
    if owned:
        target, owner = owned[0]
        more = f" (and {len(owned) - 1} more like it)" if len(owned) > 1 else ""
        raise PortraitmattingError(
            f"{one_line(str(target))}: is the result of another image, {one_line(owner)}{more}: "
            "choose another output, or overwrite it with --overwrite"
        )
    return tasks


def network_call(checkpoint: Path, options: dict[str, Any]) -> str:
    """Text that is the same for calls that lead to the same network: file, options, machine."""
    file = [os.path.realpath(checkpoint), state_of(checkpoint)]
    return json.dumps([*file, sorted(options.items()), own_version(), platform.node()])


def finished(plan: Plan, results: ResultOptions, call: str) -> Summary | None:
    """The summary, if an earlier run has noted the network of this `network_call` and everything
    is done: known without loading the network."""
    if not (plan.output / NAME).is_file():
        return None
    with Journal(plan.output) as journal:
        network = journal.network(call)
        if network is None or list_tasks(plan, settings(plan, results, network), journal):
            return None
    return Summary(skipped=len(plan.sources), unread=plan.unread)
