"""Each image from reading to writing in one thread, for any source and target of images.

On a CPU that is all: as many threads as cores, each with one thread of the network, keep every core
busy with something. A GPU runs images of one working size together: threads hand their images to a
`_Batches` and wait. What is in flight is bounded by the number of threads and by pixels.
"""

import errno
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from PIL import Image

from portraitmatting.device import is_out_of_memory
from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.images.decode import DecodedImage
from portraitmatting.matte import Matte
from portraitmatting.predictor import Estimate, Predictor, Prepared

BYTES_PER_PIXEL = 40
"""What an image takes at its peak, from reading to writing alpha and rgba with "ml"."""
PIXELS_PER_WORKER = 24_000_000

_CGROUP = Path("/sys/fs/cgroup")


class Budget:
    """Pixels that may be in flight; who asks first is served first. An image that is larger than
    all of it waits until it is alone."""

    def __init__(self, pixels: int) -> None:
        self._limit = pixels
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: (
                        self._waiting[0] is ticket
                        and (not self._used or self._used + pixels <= self._limit)
                    )
                )
                self._used += pixels
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def pixels_in_flight(workers: int) -> int:
    """As many as `workers` photos of 24 megapixels have, if half of the free memory holds them."""
    wanted = workers * PIXELS_PER_WORKER
    free = available_memory()
    return wanted if free is None else max(1, min(wanted, free // 2 // BYTES_PER_PIXEL))


def available_memory() -> int | None:
    """Bytes that can be used without swapping, also in a container; None if it is unknown."""
    limits = []
    if sys.platform == "linux":
        with suppress(OSError, ValueError):
            lines = Path("/proc/meminfo").read_text().splitlines()
            facts = dict(line.split(":", 1) for line in lines)
            limits.append(int(facts["MemAvailable"].split()[0]) * 1024)
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            limit = int((_CGROUP / "memory.max").read_text())
            used = int((_CGROUP / "memory.current").read_text())
            counted = (_CGROUP / "memory.stat").read_text().splitlines()
            cached = dict(line.split() for line in counted).get("inactive_file", "0")
            limits.append(limit - used + int(cached))
        with suppress(ImportError, OSError, ValueError):
            import resource

            soft, _ = resource.getrlimit(resource.RLIMIT_AS)
            if soft != resource.RLIM_INFINITY:
                used = int(Path("/proc/self/statm").read_text().split()[0])
                limits.append(soft - used * os.sysconf("SC_PAGE_SIZE"))
    else:
        with suppress(ValueError, AttributeError, OSError):  # all there is, of which half is free
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(limits)) if limits else None


Item = TypeVar("Item")

_END = object()
_NO_POINT_IN_GOING_ON = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Stop(Exception):
    """No further image can be written; says why in one line."""


@dataclass(frozen=True)
class Pipeline(Generic[Item]):
    """What is done with every item; all of it is called from several threads at once."""

    predictor: Predictor
    pixels: Callable[[Item], int]
    """How many an image has, as far as can be told before it is decoded; 0 if nothing can."""
    read: Callable[[Item], DecodedImage]
    """May raise `PortraitmattingError`."""
    write: Callable[[Item, Matte, DecodedImage], None]
    """Makes and writes the results. May raise `OSError`, `ValueError`, `RuntimeError` or
    `MemoryError`."""
    fail: Callable[[Item, Exception], None]
    """Called instead if that happened."""

    def run(self, items: Iterable[Item], batch_size: int, workers: int) -> None:
        """Until all is written or failed; raises `Stop` if the storage for results is full.

        `batch_size` images of one working size go through the network together. `workers` threads
        read and write; while a batch is collected or computed, as many more as it takes.
        """
        batched = batch_size > 1 or self.predictor.device.type != "cpu"
        threads = workers + 2 * batch_size if batched else workers
        network = _Batches(self.predictor, batch_size, threads) if batched else None
        budget = Budget(pixels_in_flight(threads))
        source, turn, stopped = iter(items), threading.Lock(), threading.Event()

        def work() -> None:
            try:
                while not stopped.is_set():
                    with turn:
                        item = next(source, _END)
                    if item is _END:
                        break
                    self._process(item, budget, network)  # type: ignore[arg-type]
            finally:
                if network:
                    network.leave()

        with ThreadPoolExecutor(threads + 1, "image") as pool:
            try:
                futures = [pool.submit(work) for _ in range(threads)]
                if network:
                    futures.append(pool.submit(network.run))
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:
                stopped.set()
                if network:
                    network.close()

    def _process(self, item: Item, budget: Budget, network: "_Batches | None") -> None:
        try:
            with ExitStack() as held:
                pixels = self.pixels(item)
                with network.waiting() if network else nullcontext():
                    held.enter_context(budget.take(pixels))
                _check_memory(pixels)
                image = self.read(item)
                prepared = self.predictor.prepare(image)
                if network:
                    estimate = network.estimate(prepared)
                else:
                    (estimate,) = self.predictor.estimate([prepared])
                self.write(item, self.predictor.finish(estimate), image)
        # ValueErrors are ours, or pymatting's when the colours of an image defeat its solver.
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_POINT_IN_GOING_ON:
                raise Stop(reason(error)) from error
            self.fail(item, error)


class _Batches:
    """Images that wait for the network, which runs in one thread, until there are enough of one
    working size or until every thread waits, so that nobody could bring another."""

    def __init__(self, predictor: Predictor, batch_size: int, threads: int) -> None:
        self._predictor = predictor
        self._batch_size = batch_size
        self._threads = threads
        self._busy = threads
        self._groups: dict[tuple[int, int], list[tuple[Prepared, Future[Estimate]]]] = {}
        self._closed = False
        self._changed = threading.Condition()

    def estimate(self, prepared: Prepared) -> Estimate:
        """Waits for it; raises what `Predictor.estimate` raises."""
        future: Future[Estimate] = Future()
        with self._changed:
            self._groups.setdefault(prepared.size, []).append((prepared, future))
            self._busy -= 1
            self._changed.notify_all()
        return future.result()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While its thread waits for something else, which another thread has to end."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._busy += 1

    def leave(self) -> None:
        """A thread has ended; the last one ends `run`."""
        with self._changed:
            self._threads -= 1
            self._busy -= 1
            self._closed |= not self._threads
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of whoever still waits."""
        with self._changed:
            self._closed = True
            for _, future in itertools.chain(*self._groups.values()):
                future.cancel()
            self._changed.notify_all()

    def run(self) -> None:
        """The network's thread."""
        while batch := self._next():
            images, futures = zip(*batch, strict=True)
            try:
                estimates = self._predictor.estimate(images)
            except Exception as error:  # each thread tells of its own image
                for future in futures:
                    future.set_exception(error)
                continue
            for future, estimate in zip(futures, estimates, strict=True):
                future.set_result(estimate)

    def _next(self) -> "list[tuple[Prepared, Future[Estimate]]]":
        """The largest group, once it is full or nobody could add to it; empty once closed."""
        with self._changed:
            while not self._closed:
                size = max(self._groups, key=lambda size: len(self._groups[size]), default=None)
                if size and (len(self._groups[size]) >= self._batch_size or self._busy == 0):
                    group = self._groups.pop(size)
                    batch, rest = group[: self._batch_size], group[self._batch_size :]
                    if rest:
                        self._groups[size] = rest
                    self._busy += len(batch)
                    return batch
                self._changed.wait()
        return []


def count_pixels(file: str | os.PathLike[str] | BinaryIO) -> int:
    """By the header alone; 0 if it says nothing, as of files that cannot be read."""
    try:
        with Image.open(file) as image:
            return image.width * image.height
    except Exception:  # decoding will tell why
        return 0


def _check_memory(pixels: int) -> None:
    needed, free = pixels * BYTES_PER_PIXEL, available_memory()
    if free is not None and needed > free and pixels > PIXELS_PER_WORKER:
        raise ImageError(
            f"its {pixels / 1e6:.0f} megapixels need about {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free: scale it down, or close other programs"
        )


def reason(error: Exception) -> str:
    """In one line; the system's own errors without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(": ".join(filter(None, [error.filename, error.strerror])))
    if not isinstance(error, PortraitmattingError) and is_out_of_memory(error):
        return "not enough memory: scale it down, or run with --workers 1"
    return one_line(str(error)) or type(error).__name__


def failure(name: str, error: Exception) -> str:
    """The reason why the image `name` failed, which names it, in one line."""
    name, why = one_line(name), reason(error)
    return why if name in why else f"{name}: {why}"
