"""Reading, the network and writing, which overlap, for any source and target of pictures.

Pictures are pulled through a chain of generators by the one thread that runs the network; readers
before it and writers behind it are threads (their work leaves Python's lock) that may run only so
far ahead, so that memory is bounded however many pictures there are.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from portraitmatting.cli import one_line
from portraitmatting.decode import Picture
from portraitmatting.errors import PortraitmattingError
from portraitmatting.folder.overlap import overlap
from portraitmatting.predictor import Matte, Predictor

Item = TypeVar("Item")

_NO_POINT_IN_GOING_ON = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Stop(Exception):
    """No further picture can be written; says why in one line."""


@dataclass(frozen=True)
class Chain(Generic[Item]):
    """What is done with every item; `read` and `write` are called from several threads at once."""

    predictor: Predictor
    read: Callable[[Item], Picture]
    """May raise `PortraitmattingError`."""
    write: Callable[[Item, Matte, bytes | None], None]
    """Makes and writes the results; the bytes are the picture's ICC profile. May raise `OSError`,
    `ValueError` or `MemoryError`."""
    fail: Callable[[Item, Exception], None]
    """Told instead if that happened; from any thread."""

    def run(self, items: Iterable[Item], batch_size: int, workers: int) -> None:
        """Until all is written or failed; raises `Stop` if the place for results is full.

        `batch_size` pictures of one working size go through the network together; `workers`
        threads read, as many write.
        """
        readers = ThreadPoolExecutor(workers, "reader")
        writers = ThreadPoolExecutor(workers, "writer")
        try:
            read = overlap(readers, self.read, items, workers + batch_size)
            matted = self._mattes(self._batches(read, batch_size))
            for _, written in overlap(writers, self._write, matted, workers):
                written.result()
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(cancel_futures=True)

    def _batches(
        self, read: Iterable[tuple[Item, "Future[Picture]"]], batch_size: int
    ) -> Iterator[list[tuple[Item, Picture]]]:
        """Pictures of one working size together, once there are enough, or too many in all."""
        waiting: dict[tuple[int, int], list[tuple[Item, Picture]]] = {}
        for item, future in read:
            try:
                picture = future.result()
            except PortraitmattingError as error:
                self.fail(item, error)
                continue
            size = self.predictor.network_size(picture.pixels)
            waiting.setdefault(size, []).append((item, picture))
            if len(waiting[size]) == batch_size:
                yield waiting.pop(size)
            elif sum(map(len, waiting.values())) > 2 * batch_size:
                yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
        yield from waiting.values()

    def _mattes(
        self, batches: Iterable[list[tuple[Item, Picture]]]
    ) -> Iterator[tuple[Item, Matte, bytes | None]]:
        for batch in batches:
            try:
                mattes = self.predictor.predict_batch([picture.pixels for _, picture in batch])
            except PortraitmattingError as error:  # too large for the GPU, even one by one
                for item, _ in batch:
                    self.fail(item, error)
                continue
            for (item, picture), matte in zip(batch, mattes, strict=True):
                yield item, matte, picture.icc_profile

    def _write(self, matted: tuple[Item, Matte, bytes | None]) -> None:
        try:
            self.write(*matted)
        # ValueErrors are ours, or pymatting's when the colours of a picture defeat its solver.
        except (OSError, ValueError, MemoryError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_POINT_IN_GOING_ON:
                raise Stop(reason(error)) from error
            self.fail(matted[0], error)


def reason(error: Exception) -> str:
    """In one line; the system's own errors without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(": ".join(filter(None, [error.filename, error.strerror])))
    if isinstance(error, MemoryError):
        return "not enough memory to estimate its foreground: use another method for that"
    return one_line(str(error))


def failure(name: str, error: Exception) -> str:
    """The reason why the picture `name` failed, which names it, in one line."""
    name, why = one_line(name), reason(error)
    return why if name in why else f"{name}: {why}"
