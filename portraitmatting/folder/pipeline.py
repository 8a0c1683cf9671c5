"""Reading, the network and writing, which overlap, for any source and target of images.

Images are pulled through a chain of generators by the one thread that runs the network, and does
nothing else: readers before it bring images to their working size, writers behind it bring mattes
to the images' size. Both are threads (their work leaves Python's lock) that may run only so far
ahead, so that memory is bounded however many images there are.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.images.decode import DecodedImage
from portraitmatting.lookahead import lookahead
from portraitmatting.matte import Matte
from portraitmatting.predictor import Predictor
from portraitmatting.steps import Estimate, Prepared

Item = TypeVar("Item")

_NO_POINT_IN_GOING_ON = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Stop(Exception):
    """No further image can be written; says why in one line."""


@dataclass(frozen=True)
class _Read(Generic[Item]):
    """An image that the network can take."""

    item: Item
    prepared: Prepared
    icc_profile: bytes | None


@dataclass(frozen=True)
class _Estimated(Generic[Item]):
    """An image whose results can be made and written."""

    item: Item
    estimate: Estimate
    icc_profile: bytes | None


@dataclass(frozen=True)
class Pipeline(Generic[Item]):
    """What is done with every item; `read` and `write` are called from several threads at once."""

    predictor: Predictor
    read: Callable[[Item], DecodedImage]
    """May raise `PortraitmattingError`."""
    write: Callable[[Item, Matte, bytes | None], None]
    """Makes and writes the results; the bytes are the image's ICC profile. May raise `OSError`,
    `ValueError` or `MemoryError`."""
    fail: Callable[[Item, Exception], None]
    """Told instead if that happened; from any thread."""

    def run(self, items: Iterable[Item], batch_size: int, workers: int) -> None:
        """Until all is written or failed; raises `Stop` if the place for results is full.

        `batch_size` images of one working size go through the network together; `workers`
        threads read and shrink, as many estimate foregrounds and write.
        """
        readers = ThreadPoolExecutor(workers, "reader")
        writers = ThreadPoolExecutor(workers, "writer")
        try:
            read = lookahead(readers, self._read, items, workers + batch_size)
            estimated = self._estimates(self._batches(read, batch_size))
            for _, written in lookahead(writers, self._write, estimated, workers + batch_size):
                written.result()
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(cancel_futures=True)

    def _read(self, item: Item) -> _Read[Item]:
        image = self.read(item)
        return _Read(item, self.predictor.prepare(image.pixels), image.icc_profile)

    def _batches(
        self, read: Iterable[tuple[Item, "Future[_Read[Item]]"]], batch_size: int
    ) -> Iterator[list[_Read[Item]]]:
        """Images of one working size together, once there are enough, or too many in all."""
        waiting: dict[tuple[int, ...], list[_Read[Item]]] = {}
        for item, future in read:
            try:
                found = future.result()
            except PortraitmattingError as error:
                self.fail(item, error)
                continue
            size = tuple(found.prepared.tensor.shape)
            waiting.setdefault(size, []).append(found)
            if len(waiting[size]) == batch_size:
                yield waiting.pop(size)
            elif sum(map(len, waiting.values())) > 2 * batch_size:
                yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
        yield from waiting.values()

    def _estimates(self, batches: Iterable[list[_Read[Item]]]) -> Iterator[_Estimated[Item]]:
        for batch in batches:
            try:
                estimates = self.predictor.estimate([found.prepared for found in batch])
            except PortraitmattingError as error:  # too large for the GPU, even one by one
                for found in batch:
                    self.fail(found.item, error)
                continue
            for found, estimate in zip(batch, estimates, strict=True):
                yield _Estimated(found.item, estimate, found.icc_profile)

    def _write(self, found: _Estimated[Item]) -> None:
        try:
            self.write(found.item, self.predictor.finish(found.estimate), found.icc_profile)
        # ValueErrors are ours, or pymatting's when the colours of an image defeat its solver.
        except (OSError, ValueError, MemoryError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_POINT_IN_GOING_ON:
                raise Stop(reason(error)) from error
            self.fail(found.item, error)


def reason(error: Exception) -> str:
    """In one line; the system's own errors without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(": ".join(filter(None, [error.filename, error.strerror])))
    if isinstance(error, MemoryError):
        return "not enough memory to estimate its foreground: use another method for that"
    return one_line(str(error))


def failure(name: str, error: Exception) -> str:
    """The reason why the image `name` failed, which names it, in one line."""
    name, why = one_line(name), reason(error)
    return why if name in why else f"{name}: {why}"
