"""Two ways for a thread to hand work to the next: all of it in order, or only the newest."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, made by a thread of their own, at most `depth` ahead.

    An exception of `items` is raised here, at the place where its item would have come. Closing
    this generator stops the thread, and closes `items` in it, before returning.
    """
    slots: queue.Queue[T | _End] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                slots.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as raised:
            error = raised
        close: Callable[[], None] | None = getattr(items, "close", None)
        if close is not None and stop.is_set():
            close()
        put(_End(error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item = slots.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        thread.join()


class Newest(Generic[T]):
    """A slot for one item, where a newer one replaces an older one that nobody has taken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self._error: BaseException | None = None
        self.dropped = 0
        """How many items were replaced before anybody took them."""

    def put(self, item: T) -> None:
        """Never waits."""
        with self._changed:
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify()

    def close(self, error: BaseException | None = None) -> None:
        """Nothing will be put any more, because of `error` if one is given."""
        with self._changed:
            self._closed, self._error = True, self._error or error
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T | None:
        """Wait for the newest item; None once closed. Raises the error that the slot was closed
        with, and TimeoutError after `timeout` seconds without an item."""
        with self._changed:
            there = self._changed.wait_for(lambda: self._item is not None or self._closed, timeout)
            if not there:
                raise TimeoutError
            item, self._item = self._item, None
            if item is None and self._error is not None:
                raise self._error
            return item
