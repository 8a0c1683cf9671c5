"""Times that can be compared: side by side in one run, as medians of interleaved repeats."""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Function = Callable[[], Any]


def interleaved(functions: Mapping[str, Function], repeats: int) -> dict[str, float]:
    """Name to the median of its seconds: all functions take turns, after one round that does not
    count, so that whatever else the machine does falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(repeats + 1):
        for name, function in functions.items():
            before = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - before)
    return {name: statistics.median(times) for name, times in seconds.items()}


def machine() -> str:
    """Processor, cores and versions, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(": ")[1] if names else model
    capability = torch.backends.cpu.get_cpu_capability()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "opencv-python", "numpy"))
    return (
        f"{model}, {torch.get_num_threads()} threads, {capability}; "
        f"Python {platform.python_version()}, {packages}"
    )


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def say(text: str) -> None:
    """On stderr, what is being measured; the table alone goes to stdout."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
