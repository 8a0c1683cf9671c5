"""What earlier runs have done, so that a later one does only what is missing or changed."""

import json
import os
from pathlib import Path

from portraitmatting.errors import PortraitmattingError

NAME = ".portraitmatting.jsonl"


class Journal:
    """One line per finished result in OUTPUT/.portraitmatting.jsonl, appended once it is written.

    A result is done while its file exists and the state it was made from (`state_of`) is still the
    same. A line that a killed run left half-written counts as not there.
    """

    def __init__(self, output: Path) -> None:
        """Read the journal in `output`, making the folder; raises `PortraitmattingError`."""
        self._output = output
        self._done: dict[str, str] = {}
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._file = (output / NAME).open("a+", encoding="utf-8", errors="surrogateescape")
            self._read()
        except OSError as error:
            raise PortraitmattingError(
                f"{output}: cannot write there ({error.strerror}): choose another output"
            ) from None

    def _read(self) -> None:
        self._file.seek(0)
        line = "\n"
        for line in self._file:
            try:
                result, state = json.loads(line)
                self._done[result] = state
            except ValueError:  # torn; the result is made again
                continue
        if not line.endswith("\n"):  # what follows must not be glued to it
            self._file.write("\n")

    def is_done(self, result: Path, state: str) -> bool:
        """Whether the file `result` is there and was made from `state`."""
        return self._done.get(self._key(result)) == state and result.is_file()

    def add(self, result: Path, state: str) -> None:
        """Note that `result` is written, from a source that was in `state` before it was read."""
        self._file.write(json.dumps([self._key(result), state]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines follow."""
        self._file.close()

    def _key(self, result: Path) -> str:
        return os.fspath(result.relative_to(self._output))


def state_of(source: Path, settings: str) -> str:
    """A source file as it is now, together with the settings under which results are made."""
    try:
        seen = source.stat()
    except OSError:
        return "gone"
    return f"{seen.st_size} {seen.st_mtime_ns} {settings}"
