"""What data a run was trained on, to be told when it has changed."""

import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from portraitmatting.errors import PortraitmattingError
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.sources import Source, paired

_PIECE = 2**16


def record_data(config: TrainConfig, sources: list[Source]) -> dict[str, Any]:
    """Plain values: each source's count, and a digest of every file by folder and name."""
    files: dict[str, set[Path]] = {}
    for source in sources:
        for folder, paths in source.files.items():
            files.setdefault(folder, set()).update(paths)
    if config.validation:
        pairs = paired(config.validation, "alpha")
        files.setdefault(config.validation, set()).update(p for pair in pairs for p in pair)
    digests: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(config.threads) as pool:
        for folder, some in files.items():
            paths = sorted(some)
            names = [path.relative_to(folder).as_posix() for path in paths]
            # By its name, for data may move; a second folder of the name gets a mark.
            label = Path(folder).name
            while label in digests:
                label += "'"
            digests[label] = dict(zip(names, pool.map(_digest, paths), strict=True))
    return {"counts": [source.size for source in sources], "files": digests}


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """One line that says what has changed, and None if nothing has."""
    old, new = (
        {(folder, name): d for folder, some in r["files"].items() for name, d in some.items()}
        for r in (before, now)
    )
    kinds = {
        "gone": sorted(old.keys() - new.keys()),
        "new": sorted(new.keys() - old.keys()),
        "changed": sorted(key for key in old.keys() & new.keys() if old[key] != new[key]),
    }
    texts = [
        f"{len(keys)} {kind} ({Path(*keys[0])}{', ...' if len(keys) > 1 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    return f"the data is not what it was: files {', '.join(texts)}" if texts else None


def _digest(path: Path) -> str:
    """Size and checksum of a file's beginning and end: gigabytes are not read at every start."""
    try:
        with path.open("rb") as file:
            check = zlib.crc32(file.read(_PIECE))
            size = path.stat().st_size
            file.seek(max(file.tell(), size - _PIECE))
            return f"{size}-{zlib.crc32(file.read(_PIECE), check):08x}"
    except OSError as error:
        raise PortraitmattingError(f"{path}: cannot be read ({error.strerror})") from None
