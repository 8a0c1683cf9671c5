"""A folder of images or results, on a disk or in an object store."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from portraitmatting.atomic import atomic_path, make_folders
from portraitmatting.choices import KINDS
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.images.listing import JOURNAL, READABLE, RECORDS, unread_suffix, walk_images

# What file systems call the time of a file's last change, in their own listings.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class Storage:
    """A folder that every machine sees under the same name: a path, or a URL that fsspec knows.

    Paths below it are relative, with "/". Files appear whole or not at all: on disks by
    `atomic_path`, in object stores by nature.
    """

    url: str
    """As given by the user."""
    fs: Any
    root: str
    """The folder, as `fs` calls it."""

    def __str__(self) -> str:
        return one_line(self.url)

    @property
    def folder(self) -> Path | None:
        """The folder on a disk, or None in an object store."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def name(self, path: str) -> str:
        """The file at `path` as `fs` calls it."""
        return f"{self.root.rstrip('/')}/{path}"

    def exists(self) -> bool:
        """Whether the folder exists."""
        with explained(self):
            return bool(self.fs.isdir(self.root))

    def images(
        self, exclude: "Storage", unread: Counter[str] | None = None
    ) -> Iterator[tuple[Path, dict[str, float]]]:
        """Each folder with its images' names and the times of their last change, in seconds.

        One folder at a time, so that memory is that of the largest. Lists the images that
        `list_images` lists, without folders of results; `exclude` and `unread` are as there. An
        image that does not exist (a dangling link) has the time infinity: reading it reports it.
        """
        unread = Counter() if unread is None else unread
        if self.folder is None:
            yield from self._walk(exclude, unread)
            return
        for images in walk_images(self.folder, exclude.folder, unread, skip_results=True):
            changed = {}
            for path in images:
                try:
                    changed[path.name] = (self.folder / path).stat().st_mtime
                except OSError:
                    changed[path.name] = float("inf")
            yield images[0].parent, changed

    def _walk(
        self, exclude: "Storage", unread: Counter[str]
    ) -> Iterator[tuple[Path, dict[str, float]]]:
        with explained(self):
            for folder, below, files in self.fs.walk(self.root, detail=True, on_error="raise"):
                holds_results = RECORDS in below or JOURNAL in files
                for name in list(below):
                    path = f"{folder.rstrip('/')}/{name}"
                    excluded = exclude.fs == self.fs and path == exclude.root
                    if name.startswith(".") or excluded or (holds_results and name in KINDS):
                        del below[name]
                visible = {Path(name): files[name] for name in sorted(files) if name[:1] != "."}
                changed = {
                    path.name: _changed(information)
                    for path, information in visible.items()
                    if path.suffix.lower() in READABLE
                }
                unread.update(filter(None, map(unread_suffix, visible)))
                if changed:
                    yield Path(os.path.relpath(folder, self.root)), changed

    def changed(self, folder: str) -> dict[str, float]:
        """The names in `folder` and the times of their last change; empty if there is no such
        folder."""
        with suppress(FileNotFoundError):
            entries = self.fs.ls(self.name(folder), detail=True)
            return {entry["name"].rsplit("/", 1)[-1]: _changed(entry) for entry in entries}
        return {}

    def read(self, path: str) -> bytes:
        """Raises `OSError`, or what the object store's own library raises."""
        data: bytes = self.fs.cat_file(self.name(path))
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file; raises as `read`."""
        if self.folder is None:
            self.fs.pipe_file(self.name(path), data)
            return
        target = self.folder / path
        make_folders(target.parent)
        with atomic_path(target) as temporary:
            temporary.write_bytes(data)


def find_storage(url: str) -> Storage:
    """The storage at a path or URL; raises `PortraitmattingError` if it cannot be opened."""
    if not url.strip():
        raise PortraitmattingError("an empty name of a folder: give a folder or a URL")
    if "://" not in url:  # a path, which may contain colons
        return Storage(
            url, LocalFileSystem(), LocalFileSystem._strip_protocol(os.path.abspath(url))
        )
    try:
        # Without a cache of listings, which would hide what other machines have written since.
        fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise PortraitmattingError(
            f"{one_line(url)}: {one_line(str(error))}: choose a folder, or a URL that fsspec can "
            "open here"
        ) from error
    return Storage(url, fs, root)


@contextmanager
def explained(storage: Storage) -> Iterator[None]:
    """Every error becomes a `PortraitmattingError`: the libraries of object stores have errors of
    their own."""
    try:
        yield
    except PortraitmattingError:
        raise
    except Exception as error:
        message = getattr(error, "strerror", None) or one_line(str(error)) or type(error).__name__
        raise PortraitmattingError(
            f"{storage}: cannot be used ({message}): check the address and your rights there"
        ) from error


def _changed(info: dict[str, Any]) -> float:
    """The time of a file's last change; 0, older than everything, if it is unknown."""
    time = next((info[key] for key in _TIMES if info.get(key) is not None), 0.0)
    if isinstance(time, str):
        time = datetime.fromisoformat(time.replace("Z", "+00:00"))
    return float(time.timestamp() if isinstance(time, datetime) else time)
