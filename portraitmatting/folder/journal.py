"""What earlier runs have done, so that a later one does only what is missing or changed."""

import errno
import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from portraitmatting.atomic import make_folders
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.names import folded, folds_names
from portraitmatting.images.files import JOURNAL as NAME

_NETWORK = "network"


class Entry(NamedTuple):
    """What the journal says of a result."""

    state: str
    """Of the source file and the settings, `state_of` and more."""
    source: str
    """The real path of the image."""
    digest: str
    """Of the image file's content."""
    size: int
    """Of the result in bytes."""


class Journal:
    """One line per finished result in OUTPUT/.portraitmatting.jsonl, appended once it is written.

    A result is done while its file is there, not shorter than it was, and was made of this image in
    this state. A line that a killed run left half-written counts as not there. A context manager;
    several runs may append to one journal.
    """

    def __init__(self, output: Path) -> None:
        """Read the journal in `output`, making the folder; raises `PortraitmattingError`."""
        self._output = output
        self._entries: dict[str, Entry] = {}
        self._networks: dict[str, str] = {}
        try:
            make_folders(output)
            # Unbuffered: a line is one write, and writes that append do not mix.
            self._file = (output / NAME).open("ab", buffering=0)
            self._read((output / NAME).read_bytes())
        except OSError as error:
            raise PortraitmattingError(
                f"{one_line(str(output))}: cannot write there ({error.strerror}): choose another "
                "output"
            ) from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            except (ValueError, TypeError):  # torn or of an older version; the result is made again
                continue
        if lines and not lines.endswith(b"\n"):  # what follows must not be glued to it
            self._append(b"\n")

    def is_done(self, result: Path, state: str, source: Path) -> bool:
        """Whether the file `result` is there, whole, and was made from `source` in `state`."""
        entry = self._entries.get(self._key(result))
        if entry is None or entry.state != state or not 0 < _size(result) >= entry.size:
            return False
        return _is_same_image(entry, source)

    def owner(self, result: Path, source: Path) -> str | None:
        """The other image that `result` was made from, if it is there and not made from `source`.

        A copy of that image, or the image under another path, is no other one.
        """
        entry = self._entries.get(self._key(result))
        if entry is None or _size(result) <= 0 or _is_same_image(entry, source):
            return None
        return entry.source

    def results(self) -> list[str]:
        """The results that it knows, as paths relative to the output."""
        return list(self._entries)

    def add(self, result: Path, state: str, source: Path, digest: str) -> None:
        """Note that `result` is written; raises `OSError` as a full disk does."""
        entry = Entry(state, os.path.realpath(source), digest, _size(result))
        self._append(_line(self._key(result), *entry))

    def network(self, call: str) -> str | None:
        """`Predictor.settings` of the earlier run that asked for the network by `call`."""
        return self._networks.get(call)

    def add_network(self, call: str, settings: str) -> None:
        """Note which settings a call for a network led to, for a later run without PyTorch."""
        if self._networks.get(call) != settings:
            self._append(_line(_NETWORK, call, settings))

    def _append(self, line: bytes) -> None:
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _key(self, result: Path) -> str:
        """The result's path relative to the output, as an earlier run may have spelled it."""
        key = os.fspath(result.relative_to(self._output))
        other = self._spellings.get(folded(key), key)
        return other if other != key and key not in self._entries and self._folds else key

    @cached_property
    def _spellings(self) -> dict[str, str]:
        return {folded(key): key for key in self._entries}

    @cached_property
    def _folds(self) -> bool:
        return folds_names(self._output)


def state_of(source: Path) -> str:
    """What tells a file from a changed one: its length and time of change."""
    try:
        seen = source.stat()
    except OSError:
        return "gone"
    return f"{seen.st_size} {seen.st_mtime_ns}"


def digest_of(source: Path) -> str:
    """What tells a file's content from another's; empty if it cannot be read."""
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
    """-1 where there is no ordinary file."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def _line(*values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"
