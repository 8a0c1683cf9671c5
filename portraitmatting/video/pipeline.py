"""The newest of what a thread makes, for another to take."""

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


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
