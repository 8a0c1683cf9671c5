"""Work that threads do ahead of its use, by a limited number of items: memory stays bounded."""

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
    """Each item with the future of its work, in order, while `pool` works on up to `ahead` more.

    Items are taken from the iterable as they are needed, in the caller's thread. The pool is the
    caller's to shut down.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) > ahead:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


def prefetch(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items in the same order, made by another thread, up to `depth` ahead.

    An exception of `items` is raised in place of its item. Closing this generator waits for the
    thread and closes `items`.
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
