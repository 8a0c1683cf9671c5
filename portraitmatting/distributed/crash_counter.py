"""What workers have begun and not ended, kept where it outlives them."""

from typing import Any

import ray


class CrashCounter:
    """Counts how often something was begun and not ended.

    Ray tries a block of images again as often as its worker dies; with an image that is the
    reason for it (one that crashes a decoder, or takes all memory), for ever. A Ray actor of its
    own, in a file of its own: so it starts without PyTorch.
    """

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, key: str) -> int:
        """How often that was begun before, without an end."""
        before = self._begun.get(key, 0)
        self._begun[key] = before + 1
        return before

    def end(self, key: str) -> None:
        self._begun.pop(key, None)


def start_crash_counter() -> Any:
    """Ray's reference to a new `CrashCounter`, which occupies no core."""
    endless = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    actor: Any = endless(CrashCounter)
    return actor.remote()
