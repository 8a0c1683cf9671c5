"""Images from reading to writing in many threads, for any source and target of images.

Each thread reads, runs and writes one image at a time. On a CPU, as many threads as cores, each
with one thread of the network, keep every core busy. On a GPU, images of one working size go
through the network together: threads hand their images to `_Batches` and wait. The images in work
are limited by the number of threads and by the memory of their pixels.
"""

import errno
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from PIL import Image

from portraitmatting.device import is_out_of_memory, memory_of
from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.images.decode import DecodedImage
from portraitmatting.matte import Matte
from portraitmatting.predictor import Estimate, Predictor, Prepared

BYTES_PER_PIXEL = 40
"""Peak memory of an image, from reading to writing alpha and rgba with "ml"."""
GPU_BYTES_PER_PIXEL = 6
"""An image's own pixels, which a GPU holds from the network to the guided filter."""
PIXELS_PER_WORKER = 24_000_000

_CGROUP = Path("/sys/fs/cgroup")


class Budget:
    """Limits the pixels in work, in order of arrival. An image above the limit waits until it is
    the only one."""

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


def pixels_in_flight(workers: int, gpu_memory: int | None = None) -> int:
    """The pixels of `workers` photos of 24 megapixels, or as many as half of the free memory holds,
    and a quarter of a GPU's, in bytes."""
    limits = [workers * PIXELS_PER_WORKER]
    if (free := available_memory()) is not None:
        limits.append(free // 2 // BYTES_PER_PIXEL)
    if gpu_memory is not None:
        limits.append(gpu_memory // 4 // GPU_BYTES_PER_PIXEL)
    return max(1, min(limits))


def available_memory() -> int | None:
    """Bytes that are free without swapping, also in a container; None if unknown."""
    limits = []
    if sys.platform == "linux":
        with suppress(OSError, ValueError):
            lines = Path("/proc/meminfo").read_text().splitlines()
            values = dict(line.split(":", 1) for line in lines)
            limits.append(int(values["MemAvailable"].split()[0]) * 1024)
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            limit = int((_CGROUP / "memory.max").read_text())
            used = int((_CGROUP / "memory.current").read_text())
            lines = (_CGROUP / "memory.stat").read_text().splitlines()
            cached = dict(line.split() for line in lines).get("inactive_file", "0")
            limits.append(limit - used + int(cached))
        with suppress(ImportError, OSError, ValueError):
            import resource

            soft, _ = resource.getrlimit(resource.RLIMIT_AS)
            if soft != resource.RLIM_INFINITY:
                used = int(Path("/proc/self/statm").read_text().split()[0])
                limits.append(soft - used * os.sysconf("SC_PAGE_SIZE"))
    else:
        with suppress(ValueError, AttributeError, OSError):  # half of all memory
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(limits)) if limits else None


Item = TypeVar("Item")

_END = object()
_STORAGE_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Stop(Exception):
    """No further image can be written; its text is the reason, in one line."""


@dataclass(frozen=True)
class Pipeline(Generic[Item]):
    """The steps for every item, which several threads call at once."""

    predictor: Predictor
    pixels: Callable[[Item], int]
    """The image's number of pixels, 0 if that is unknown before it is decoded."""
    read: Callable[[Item], DecodedImage]
    """May raise `PortraitmattingError`."""
    write: Callable[[Item, Matte, DecodedImage], None]
    """Makes and writes the results. May raise `OSError`, `ValueError`, `RuntimeError` or
    `MemoryError`."""
    fail: Callable[[Item, Exception], None]
    """Called if a step raised one of these errors."""

    def run(self, items: Iterable[Item], batch_size: int, workers: int) -> None:
        """Run all items; raises `Stop` if the storage for results is full.

        `batch_size` images of one working size go through the network together. `workers` threads
        read and write; with batches there are more, since those of a batch wait for it.
        """
        batched = batch_size > 1 or self.predictor.device.type != "cpu"
        threads = workers + 2 * batch_size if batched else workers
        network = _Batches(self.predictor, batch_size, threads) if batched else None
        budget = Budget(pixels_in_flight(threads, memory_of(self.predictor.device)))
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
                self.write(item, self._matte(image, network), image)
        # ValueErrors are ours, or pymatting's when the colours of an image defeat its solver.
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _STORAGE_FULL:
                raise Stop(reason(error)) from error
            self.fail(item, error)

    def _matte(self, image: DecodedImage, network: "_Batches | None") -> Matte:
        """On return nothing but the matte is kept: pinned memory and that of a GPU are free again
        while results are made and written."""
        prepared = self.predictor.prepare(image)
        if network:
            return self.predictor.finish(network.estimate(prepared))
        (estimate,) = self.predictor.estimate([prepared])
        return self.predictor.finish(estimate)


class _Batches:
    """Collects images for the network, which runs in one thread, until there are enough of one
    working size, or until every thread waits, so that no image could be added."""

    def __init__(self, predictor: Predictor, batch_size: int, threads: int) -> None:
        self._predictor = predictor
        self._batch_size = batch_size
        self._threads = threads
        self._busy = threads
        self._groups: dict[tuple[int, int], list[tuple[Prepared, Future[Estimate]]]] = {}
        self._closed = False
        self._changed = threading.Condition()

    def estimate(self, prepared: Prepared) -> Estimate:
        """Waits for it; raises what `Predictor.estimate` raises, and CancelledError once closed."""
        future: Future[Estimate] = Future()
        with self._changed:
            if self._closed:  # nobody would run it
                raise CancelledError
            self._groups.setdefault(prepared.size, []).append((prepared, future))
            self._busy -= 1
            self._changed.notify_all()
        return future.result()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Use this while a thread waits for something else that depends on other threads."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._busy += 1

    def leave(self) -> None:
        """Call this as a thread ends; the last one ends `run`."""
        with self._changed:
            self._threads -= 1
            self._busy -= 1
            self._closed |= not self._threads
            self._changed.notify_all()

    def close(self) -> None:
        """End `run`, and cancel the images that still wait."""
        with self._changed:
            self._closed = True
            for _, future in itertools.chain(*self._groups.values()):
                future.cancel()
            self._changed.notify_all()

    def run(self) -> None:
        """The network's thread."""
        while self._run_batch():
            pass

    def _run_batch(self) -> bool:
        """Wait for a batch and run it; False once closed. On return no memory of it is kept, or
        else it would be until the next batch."""
        batch = self._next()
        if not batch:
            return False
        images, futures = zip(*batch, strict=True)
        try:
            estimates = self._predictor.estimate(images)
        except Exception as error:  # each thread reports its own image
            for future in futures:
                future.set_exception(error)
        else:
            for future, estimate in zip(futures, estimates, strict=True):
                future.set_result(estimate)
        return True

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
    """An image's number of pixels, by its header; 0 if that cannot be read."""
    try:
        with Image.open(file) as image:
            return image.width * image.height
    except Exception:  # decoding reports it
        return 0


def _check_memory(pixels: int) -> None:
    needed, free = pixels * BYTES_PER_PIXEL, available_memory()
    if free is not None and needed > free and pixels > PIXELS_PER_WORKER:
        raise ImageError(
            f"its {pixels / 1e6:.0f} megapixels need about {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free: scale it down, or close other programs"
        )


def reason(error: Exception) -> str:
    """An error's message in one line; those of the system without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(": ".join(filter(None, [error.filename, error.strerror])))
    if not isinstance(error, PortraitmattingError) and is_out_of_memory(error):
        return "not enough memory: scale it down, or run with --workers 1"
    return one_line(str(error)) or type(error).__name__


def failure(name: str, error: Exception) -> str:
    """The reason why an image failed, in one line that names the image."""
    name, message = one_line(name), reason(error)
    return message if name in message else f"{name}: {message}"
