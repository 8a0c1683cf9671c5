"""Batches of augmented samples; a sample depends on (seed, step, index) only."""

import itertools
import zlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from portraitmatting.errors import PortraitmattingError
from portraitmatting.lookahead import lookahead
from portraitmatting.training.augment import crop, degrade, replace_background
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.sources import Source, open_source, paired
from portraitmatting.trimap import BACKGROUND, FOREGROUND, UNKNOWN, VALUES, draw_trimap

_ASPECTS = ((1, 1), (1, 1), (3, 4), (4, 3))
"""Width to height of a step's images; half of the steps are square."""
_SETTLED = 0.04
"""Alpha this close to 0 or 1 counts as 0 or 1: annotated mattes have artefacts of compression."""
_CLASSES = np.full(256, UNKNOWN, np.int64)
_CLASSES[VALUES] = BACKGROUND, UNKNOWN, FOREGROUND


class Batch(NamedTuple):
    """Samples of one size."""

    image: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    alpha: Tensor
    """(B, 1, H, W) float32 in [0, 1]."""
    trimap: Tensor
    """(B, H, W) int64, the classes of the module `trimap`."""
    names: list[str]
    """The files that each sample is made of."""


class TrainingData:
    """The configured sources as an endless, random-access series of samples."""

    def __init__(self, config: TrainConfig) -> None:
        if not config.data:
            raise PortraitmattingError("no data: give at least one folder to train on")
        self.config = config
        self.sources: list[Source] = [open_source(source) for source in config.data]
        weights = np.array([source.weight for source in config.data], np.float64)
        if weights.sum() <= 0:
            raise PortraitmattingError("every data source has weight 0: nothing to train on")
        self._shares = weights / weights.sum()

    def sample(self, step: int, index: int) -> Batch:
        """Sample `index` of a step, as a batch of one."""
        # Each sample has a generator of its own: the number of threads, parts and processes, or a
        # resume, changes nothing.
        rng = np.random.default_rng((self.config.seed, step, index))
        number = int(rng.choice(len(self.sources), p=self._shares))
        scene = self.sources[number].draw(rng)
        size = working_size(self.config, step)
        image, alpha = crop(scene.image, scene.alpha, size, self.config.augment, rng)
        if scene.background is not None:
            # Only after the crop: at this size the estimate takes a tenth of the time, and sees
            # hair as the network does.
            method = self.config.data[number].foreground
            image = replace_background(image, alpha, scene.background, method, rng)
        image = degrade(image, self.config.augment, rng)
        radius = rng.uniform(*self.config.band) * min(size)
        classes = trimap_classes(alpha, radius)
        return Batch(
            torch.from_numpy(image.transpose(2, 0, 1).copy()).unsqueeze(0),
            torch.from_numpy(alpha)[None, None],
            torch.from_numpy(classes).unsqueeze(0),
            [scene.name],
        )

    def batches(
        self, first: int, last: int, indices: Sequence[int], threads: int, ahead: int = 2
    ) -> Generator[list[Batch], None, None]:
        """The samples of each step, prepared by threads; their errors are raised by this generator.

        Threads, because processes that are forked after OpenMP or numba has run may hang or die.

        Args:
            first: the first step.
            last: the step after the last.
            indices: those of a step's samples that are wanted.
            threads: the number of threads.
            ahead: the number of steps that they may be ahead.
        """
        pool = ThreadPoolExecutor(threads, thread_name_prefix="samples")
        try:
            positions = ((step, index) for step in range(first, last) for index in indices)
            samples = lookahead(pool, lambda p: self.sample(*p), positions, ahead * len(indices))
            for _ in range(first, last):
                yield [future.result() for _, future in itertools.islice(samples, len(indices))]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def working_size(config: TrainConfig, step: int) -> tuple[int, int]:
    """(height, width) of a step's images, multiples of 32, whose short side is one of `sizes`."""
    rng = np.random.default_rng((config.seed, step))
    width, height = _ASPECTS[rng.integers(len(_ASPECTS))]
    sides = next(entry[1:] for entry in reversed(config.sizes) if step >= entry[0])
    unit = sides[rng.integers(len(sides))] / min(width, height)
    return round(height * unit / 32) * 32, round(width * unit / 32) * 32


def trimap_classes(alpha: np.ndarray, radius: float) -> np.ndarray:
    """alpha (H, W) -> trimap classes (H, W) int64: unknown up to `radius` pixels from soft ones."""
    settled = np.where(alpha <= _SETTLED, 0, np.where(alpha >= 1 - _SETTLED, 1, alpha))
    return _CLASSES[draw_trimap(settled.astype(np.float32), radius)]


def join(samples: Sequence[Batch]) -> Batch:
    """Several batches of one size as one."""
    return Batch(
        torch.cat([s.image for s in samples]),
        torch.cat([s.alpha for s in samples]),
        torch.cat([s.trimap for s in samples]),
        [name for s in samples for name in s.names],
    )


_DIGEST_BYTES = 2**16


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
        for folder, unsorted in files.items():
            paths = sorted(unsorted)
            names = [path.relative_to(folder).as_posix() for path in paths]
            # Only the folder's name: data may move. A second one of that name gets a mark.
            label = Path(folder).name
            while label in digests:
                label += "'"
            digests[label] = dict(zip(names, pool.map(_digest, paths), strict=True))
    return {"counts": [source.size for source in sources], "files": digests}


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between two of `record_data`, on one line; None if nothing does."""
    old, new = (
        {(folder, name): d for folder, names in r["files"].items() for name, d in names.items()}
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
    """Size and checksum of a file's beginning and end: reading all data would take too long."""
    try:
        with path.open("rb") as file:
            check = zlib.crc32(file.read(_DIGEST_BYTES))
            size = path.stat().st_size
            file.seek(max(file.tell(), size - _DIGEST_BYTES))
            return f"{size}-{zlib.crc32(file.read(_DIGEST_BYTES), check):08x}"
    except OSError as error:
        raise PortraitmattingError(f"{path}: cannot be read ({error.strerror})") from None
