"""Files that appear completely or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EACCES}
_MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A hidden temporary file beside `path` to write to; it takes the name of `path` at the end.

    Its content reaches the disk before its name does, so that not even a power cut leaves half a
    file. On any error, Ctrl-C included, the temporary file is removed and `path` stays as it was.
    It has the suffix of `path`, by which some writers choose the format. The caller handles
    `OSError`.
    """
    # Not tempfile.mkstemp, whose files only the owner may read: finding out the usual permissions
    # means changing the umask, which would affect other threads.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Windows cannot open folders
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:  # a full disk may be reported only by fsync
            raise
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Make `folder` and what is missing above it; without recursion, which limits `Path.mkdir` and
    `os.makedirs` to a thousand levels."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for level in reversed(missing):
        level.mkdir(exist_ok=True)


def check_replaceable(path: Path) -> None:
    """Raise `OSError` if `atomic_path(path)` would: there is no folder, no right to write, or
    something at `path` that a file cannot replace."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise OSError(errno.EINVAL, "is no ordinary file", str(path))
        if _is_mount_point(path):
            raise OSError(errno.EBUSY, "is a mount point, which cannot be replaced", str(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
    finally:
        temporary.unlink(missing_ok=True)


def _is_mount_point(path: Path) -> bool:
    # A file of the same file system can be mounted too (docker run -v), which ismount misses.
    if os.path.ismount(path):
        return True
    with contextlib.suppress(OSError):
        real = os.fsencode(os.path.realpath(path))
        lines = _MOUNTS.read_bytes().splitlines()
        return any(_unescape(line.split()[4]) == real for line in lines)
    return False


def _unescape(name: bytes) -> bytes:
    for code, character in ((b"040", b" "), (b"011", b"\t"), (b"012", b"\n"), (b"134", b"\\")):
        name = name.replace(b"\\" + code, character)
    return name
