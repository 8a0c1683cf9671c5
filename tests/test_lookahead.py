"""The bounded read-ahead that folders, videos and training share."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from portraitmatting.lookahead import lookahead, prefetch


def test_work_is_in_order_and_never_far_ahead():
    started = []

    def work(number: int) -> int:
        started.append(number)
        if number == 7:
            raise ValueError("seven")
        return number * number

    with ThreadPoolExecutor(3) as pool:
        for item, future in lookahead(pool, work, range(10), ahead=2):
            time.sleep(0.005)
            assert max(started, default=0) <= item + 2
            assert isinstance(future.exception(), ValueError) == (item == 7)
            assert item == 7 or future.result() == item * item
    assert sorted(started) == list(range(10))


def test_prefetch_keeps_order_bounds_and_errors():
    made = []

    def items():
        for index in range(10):
            made.append(index)
            yield index
        raise RuntimeError("from the thread")

    stream = prefetch(items(), depth=2)
    assert next(stream) == 0
    time.sleep(0.1)
    assert len(made) <= 4
    rest = []
    with pytest.raises(RuntimeError, match="from the thread"):
        rest.extend(stream)
    assert made == list(range(10))


def test_closing_prefetch_stops_its_thread_and_closes_its_source():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    before = threading.active_count()
    stream = prefetch(items())
    next(stream)
    stream.close()
    assert closed.is_set()
    assert threading.active_count() == before
