"""The journal of a folder job: what earlier runs have done, and what is still to be done.

Imports no PyTorch: a second run with nothing to do ends without loading it.
"""

import errno
import hashlib
import json
import os
import platform
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from portraitmatting.atomic import make_folders
from portraitmatting.cli import own_version
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.plan import Plan, describe_unread
from portraitmatting.folder.results import ResultOptions, folded, folds_names, state_of
from portraitmatting.images.listing import JOURNAL as NAME

_NETWORK = "network"


class Entry(NamedTuple):
    """One result in the journal."""

    state: str
    """`state_of` the image file, and the settings."""
    source: str
    """The image's real path."""
    digest: str
    """`digest_of` the image file."""
    size: int
    """The result's bytes."""


class Journal:
    """One line per finished result in OUTPUT/.portraitmatting.jsonl, appended once it is written.

    A result is done if its file exists, is not shorter than it was, and was made from this image in
    this state. A line that a killed run has left incomplete is ignored. A context manager; several
    runs may append to one journal.
    """

    def __init__(self, output: Path) -> None:
        """Read the journal in `output`, a folder that is made if necessary; raises
        `PortraitmattingError`."""
        self._output = output
        self._entries: dict[str, Entry] = {}
        self._networks: dict[str, str] = {}
        try:
            make_folders(output)
            # Unbuffered: each line is one write, so that lines of several runs do not mix.
            self._file = (output / NAME).open("ab", buffering=0)
            self._read((output / NAME).read_bytes())
        except OSError as error:
            raise PortraitmattingError(
                f"{one_line(str(output))}: cannot write there ({error.strerror}): choose another "
                "output"
            ) from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self, lines: bytes) -> None:
        for line in lines.splitlines():
            try:
                result, *rest = json.loads(line)
                if result == _NETWORK and len(rest) == 2:
                    self._networks[str(rest[0])] = str(rest[1])
                else:
                    entry = Entry(*rest)
                    self._entries[result] = entry._replace(size=int(entry.size))
            except (ValueError, TypeError):  # incomplete or of an older version: done again
                continue
        if lines and not lines.endswith(b"\n"):  # the next line must not continue this one
            self._append(b"\n")

    def is_done(self, result: Path, state: str, source: Path) -> bool:
        """Whether the file `result` exists, is complete, and was made from `source` in `state`."""
        entry = self._entries.get(self._key(result))
        if entry is None or entry.state != state or not 0 < _size(result) >= entry.size:
            return False
        return _is_same_image(entry, source)

    def owner(self, result: Path, source: Path) -> str | None:
        """The image that `result` was made from, if that is another than `source`.

        A copy of an image, or an image under another path, is not another one.
        """
        entry = self._entries.get(self._key(result))
        if entry is None or _size(result) <= 0 or _is_same_image(entry, source):
            return None
        return entry.source

    def add(self, result: Path, state: str, source: Path, digest: str) -> None:
        """Record a result that has been written; raises `OSError` if the disk is full.

        Args:
            result: the path of its file.
            state: as in `Entry`.
            source: the path of its image.
            digest: as in `Entry`.
        """
        entry = Entry(state, os.path.realpath(source), digest, _size(result))
        self._append(_line(self._key(result), *entry))

    def network(self, call: str) -> str | None:
        """`Predictor.settings` of an earlier run with this `network_call`."""
        return self._networks.get(call)

    def add_network(self, call: str, settings: str) -> None:
        """Record the `Predictor.settings` of a `network_call`."""
        if self._networks.get(call) != settings:
            self._append(_line(_NETWORK, call, settings))

    def _append(self, line: bytes) -> None:
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _key(self, result: Path) -> str:
        """The result's path relative to the output, in the spelling of an earlier run."""
        key = os.fspath(result.relative_to(self._output))
        other = self._spellings.get(folded(key), key)
        return other if other != key and key not in self._entries and self._folds else key

    @cached_property
    def _spellings(self) -> dict[str, str]:
        return {folded(key): key for key in self._entries}

    @cached_property
    def _folds(self) -> bool:
        return folds_names(self._output)


def digest_of(source: Path) -> str:
    """A hash of a file's content; empty if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _is_same_image(entry: Entry, source: Path) -> bool:
    return entry.source == os.path.realpath(source) or (
        entry.digest != "" and entry.digest == digest_of(source)
    )


def _size(path: Path) -> int:
    """A file's bytes; -1 if it is no ordinary file."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def _line(*values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


SHOWN = 20
"""Images that a summary names at most of a kind."""


@dataclass
class Summary:
    """The outcome of a job; as text, several lines for people."""

    done: int = 0
    skipped: int = 0
    """Done by an earlier run, and unchanged."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Image, relative to the input folder, to the reason in one line."""
    stopped: str = ""
    """Why not every image was tried, in one line: Ctrl-C, or a full disk."""
    interrupted: bool = False
    """By Ctrl-C."""
    empty: list[Path] = field(default_factory=list, compare=False)
    """Images with nobody in the matte."""
    unread: Counter[str] = field(default_factory=Counter)
    """Suffixes of files that seem to be images but are of kinds that are not read."""

    def __str__(self) -> str:
        lines = [f"{self.done} done, {self.skipped} skipped, {len(self.failed)} failed"]
        if self.unread:
            lines.append(describe_unread(self.unread))
        lines += [f"failed: {reason}" for reason in self.failed.values()]
        if self.empty:
            names = [one_line(str(path)) for path in sorted(self.empty)[:SHOWN]]
            lines.append(describe_empty(len(self.empty), names))
        if self.stopped:
            lines.append(f"stopped: {self.stopped}; what is done is kept, run again to go on")
        return "\n".join(lines)

    def add(self, later: "Summary") -> None:
        """Continue with the summary of a later run over the same images."""
        self.done += later.done
        self.failed |= later.failed
        self.empty += later.empty
        self.unread = later.unread
        self.stopped, self.interrupted = later.stopped, later.interrupted


def describe_empty(count: int, names: list[str]) -> str:
    """ "3 with nobody in the matte: a.jpg, b.jpg, 1 more"; `names` are the first of them."""
    more = [f"{count - len(names)} more"] if count > len(names) else []
    return f"{count} with nobody in the matte: {', '.join(names + more)}"


@dataclass(frozen=True)
class Task:
    """An image, and the kinds of results that are still to be made of it."""

    source: Path
    state: str
    """`state_of` its file, before it is read."""
    kinds: list[str]


def settings(plan: Plan, results: ResultOptions, network: str) -> dict[str, str]:
    """Of each kind of result all settings that change it, as one text; `network` is
    `Predictor.settings`."""
    return {kind: f"{plan.bits} {network} {results.settings(kind)}" for kind in plan.kinds}


def list_tasks(plan: Plan, settings: dict[str, str], journal: Journal | None) -> list[Task]:
    """What is missing or changed according to the journal; without one, everything.

    Raises `PortraitmattingError` if a result of another image would be overwritten.
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
    """A text that is the same for calls with the same network: file, options, version, machine."""
    file = [os.path.realpath(checkpoint), state_of(checkpoint)]
    return json.dumps([*file, sorted(options.items()), own_version(), platform.node()])


def finished(plan: Plan, results: ResultOptions, call: str) -> Summary | None:
    """The summary if everything is done already, which the journal tells without the network, if an
    earlier run had the same `network_call`; else None."""
    if not (plan.output / NAME).is_file():
        return None
    with Journal(plan.output) as journal:
        network = journal.network(call)
        if network is None or list_tasks(plan, settings(plan, results, network), journal):
            return None
    return Summary(skipped=len(plan.sources), unread=plan.unread)
