"""Names of results: one for each image, also where the output's file system folds names."""

import contextlib
import os
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from portraitmatting.errors import PortraitmattingError, one_line


def result_names(
    sources: Iterable[Path], suffix: str, folds: Callable[[], bool]
) -> dict[Path, Path]:
    """For images that would share a name with another (a.jpg beside a.png), the name that keeps
    their own suffix: a.jpg.png. All others are `source.with_suffix(suffix)`.

    `folds` tells, if it is needed, whether Anna and anna are one name at the output. Raises
    `PortraitmattingError` where even the suffix makes no difference.
    """
    names = {source: source.with_suffix(suffix) for source in sources}
    kept: dict[Path, Path] = {}
    while sharing := list(_sharing(names, folds)):
        more = {
            source: source.with_name(source.name + suffix) for group in sharing for source in group
        }
        if more.keys() <= kept.keys():
            first, second = sharing[0][:2]
            raise PortraitmattingError(
                f"{one_line(str(first))} and {one_line(str(second))} would both be written as one "
                f"file at the output, {one_line(str(names[first]))}: rename one of them, or give "
                "each its own output"
            )
        kept |= more
        names |= more
    return kept


def _sharing(names: dict[Path, Path], folds: Callable[[], bool]) -> Iterator[list[Path]]:
    groups: dict[str, list[Path]] = {}
    for source, name in names.items():
        groups.setdefault(folded(str(name)), []).append(source)
    for group in groups.values():
        if len(group) == 1:
            continue
        if folds():
            yield group
            continue
        same: dict[Path, list[Path]] = {}
        for source in group:
            same.setdefault(names[source], []).append(source)
        yield from (sources for sources in same.values() if len(sources) > 1)


def folded(name: str) -> str:
    """The same text for names that some file systems take for one: Anna and anna, and an accent as
    one character or as two."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def folds_names(folder: Path) -> bool:
    """Whether the file system of `folder`, or of what is there above it, takes names that `folded`
    makes equal for one, as exFAT, SMB and a Mac's do. It is asked, by a file that comes and goes.
    """
    folder = existing(folder)
    token = secrets.token_hex(8)
    probe = folder / f".{token}-\N{LATIN SMALL LETTER E WITH ACUTE}.tmp"
    try:
        probe.touch(exist_ok=False)
        others = (token.upper() + "-É", token + "-e\N{COMBINING ACUTE ACCENT}")
        return any(os.path.exists(folder / f".{other}.tmp") for other in others)
    except OSError:  # cannot be written: reported where it matters
        return False
    finally:
        with contextlib.suppress(OSError):  # below what is no folder
            probe.unlink()


def existing(folder: Path) -> Path:
    """`folder`, or the nearest above it that is there."""
    folder = folder.absolute()
    while not os.path.lexists(folder) and folder.parent != folder:
        folder = folder.parent
    return folder
