"""How much memory there is for images in flight, and who may take of it."""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    """Bytes that can be used without swapping, also in a container; None if nobody says."""
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
