"""Threads that prepare the next items while the current one is used; a limit bounds the memory."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


def lookahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[tuple[Item, "Future[Result]"], None, None]:
    """Each item with the future of `work(item)`, in order, while the pool works on the next ones.

    Args:
        pool: the threads; the caller shuts it down.
        work: called with each item in a thread of the pool.
        items: iterated over in the caller's thread, only as far as needed.
        ahead: how many items the pool may work on beyond the one that is returned.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) > ahead:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


def prefetch(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items in the same order, from another thread that is up to `depth` items ahead.

    An exception that `items` raises is raised here, in place of the item. Closing this generator
    waits for the thread and closes `items`.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        for _, future in lookahead(
            pool, lambda _: next(iterator, _END), itertools.repeat(0), depth
        ):
            item = future.result()
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
        close: Callable[[], None] | None = getattr(iterator, "close", None)
        if close is not None:
            close()
