"""Ray: start it or join a cluster, count the workers that it has room for, and count crashes.

Imports no PyTorch, so that the actor that counts crashes starts without it.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ray would report each start to its developers.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.data import DataContext

from portraitmatting.errors import PortraitmattingError, one_line


class CrashCounter:
    """Counts how often each key was begun and not ended.

    Ray tries a block of images again whenever its worker dies: for ever, if an image crashes a
    decoder or takes all memory. Runs as a Ray actor of its own.
    """

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, key: str) -> int:
        """Begin a key; returns how often it was begun before without an end."""
        before = self._begun.get(key, 0)
        self._begun[key] = before + 1
        return before

    def end(self, key: str) -> None:
        self._begun.pop(key, None)


def start_crash_counter() -> Any:
    """Ray's handle of a new `CrashCounter`, which occupies no core."""
    endless = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    actor: Any = endless(CrashCounter)
    return actor.remote()


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Ray within the block: the cluster at `address` ("auto": the one that this machine belongs
    to), or one of this machine alone. A Ray that runs in this process already is used and left
    running. Raises `PortraitmattingError` if there is no cluster at `address`."""
    ours = not ray.is_initialized()
    if ours:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        dashboard = None if address else False  # a cluster has its own setting
        try:
            ray.init(
                address or "local",
                include_dashboard=dashboard,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # of nearly any type
            ray.shutdown()
            message = one_line(str(error))
            if not address:
                raise PortraitmattingError(f"Ray cannot be started here: {message}") from error
            raise PortraitmattingError(
                f"no Ray cluster at {address} ({message}): start one with `ray start --head`, or "
                "leave the address out"
            ) from error
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray replaces it with exit code 15
    context = DataContext.get_current()
    context.enable_progress_bars = False  # we have one
    context.print_on_execution_start = False
    # `hand_out` notices blocks whose reports are lost; the job goes on.
    context.max_errored_blocks = -1
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def room_for(cores: int, gpus: float) -> int:
    """The number of workers of this size that the cluster has room for; raises
    `PortraitmattingError` if there is none."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    count = 0
    for machine in machines:
        fits = machine.get("CPU", 0) // cores
        count += int(min(fits, machine.get("GPU", 0) // gpus) if gpus else fits)
    if not count:
        most_cores = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
        most_gpus = max((machine.get("GPU", 0) for machine in machines), default=0)
        raise PortraitmattingError(
            f"no machine has room for a worker of {cores} cores and {gpus:g} GPUs (the largest has "
            f"{most_cores} cores, {most_gpus:g} GPUs): make workers smaller"
        )
    return count
