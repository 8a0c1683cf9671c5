"""Files appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A hidden temporary file beside `path` to write to; it takes the name of `path` at the end.

    On any error, Ctrl-C included, the temporary file is removed and `path` stays as it was. The
    suffix is kept, since some writers go by it. `OSError` is the caller's to explain.
    """
    # Not tempfile.mkstemp: its files are private, and to learn the permissions they should have had
    # one has to change the umask, under the feet of other threads.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
