"""Work done ahead by threads, but only so far ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def overlap(
    pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, "Future[Made]"]]:
    """Each item with its work, in order, while `pool` does that of at most `ahead` items more.

    Items are taken from the iterable as they are needed, in the caller's thread.
    """
    pending: deque[tuple[Item, Future[Made]]] = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) > ahead:
            yield pending.popleft()
    while pending:
        yield pending.popleft()
