"""What earlier runs have done, so that a later one does only what is missing or changed."""

import errno
import json
import os
from pathlib import Path
from types import TracebackType

from portraitmatting.errors import PortraitmattingError

NAME = ".portraitmatting.jsonl"


class Journal:
    """One line per finished result in OUTPUT/.portraitmatting.jsonl, appended once it is written.

    A result is done while its file exists and the state it was made from (`state_of` the source,
    and the settings) is still the same. A line that a killed run left half-written counts as not
    there. A context manager; several runs may append to one journal.
    """

    def __init__(self, output: Path) -> None:
        """Read the journal in `output`, making the folder; raises `PortraitmattingError`."""
        self._output = output
        self._done: dict[str, str] = {}
        try:
            output.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is one write, and writes that append do not mix.
            self._file = (output / NAME).open("ab", buffering=0)
            self._read((output / NAME).read_bytes())
        except OSError as error:
            raise PortraitmattingError(
                f"{output}: cannot write there ({error.strerror}): choose another output"
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
                result, state = json.loads(line)
                self._done[result] = state
            except (ValueError, TypeError):  # torn; the result is made again
                continue
        if lines and not lines.endswith(b"\n"):  # what follows must not be glued to it
            self._append(b"\n")

    def is_done(self, result: Path, state: str) -> bool:
        """Whether the file `result` is there and was made from `state`."""
        return self._done.get(self._key(result)) == state and result.is_file()

    def add(self, result: Path, state: str) -> None:
        """Note that `result` is written, from `state`; raises `OSError` as a full disk does."""
        self._append(json.dumps([self._key(result), state]).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _key(self, result: Path) -> str:
        return os.fspath(result.relative_to(self._output))


def state_of(source: Path) -> str:
    """What tells a file from a changed one: its length and time of change."""
    try:
        seen = source.stat()
    except OSError:
        return "gone"
    return f"{seen.st_size} {seen.st_mtime_ns}"
