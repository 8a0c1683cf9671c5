"""Seconds a sample of training takes: fp32 and bf16, whole network and coarse stages.

    python -m benchmarks.training --side 320 --batch 4

And of preparing one: people over a new background by either estimator of their colours.
"""

import argparse
import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.timing import interleaved, machine, table
from portraitmatting.allocator import keep_freed_memory
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.training.augment import replace_background
from portraitmatting.training.config import TrainConfig
from portraitmatting.training.data import Batch, trimap_classes
from portraitmatting.training.runtime import Processes, choose_training_precision, reproducible
from portraitmatting.training.trainer import Trainer


def main() -> None:
    """Parse, measure in turns, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-freed-memory", action="store_true", help="as the commands do")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    if options.keep_freed_memory:
        keep_freed_memory()
    batch = random_batch(options.batch, options.side)
    ways: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16"):
        for stages, coarse_steps in (("whole", 0), ("coarse", 10**6)):
            trainer = make_trainer(precision, coarse_steps, options.batch)
            ways[f"{precision}, {stages}"] = partial(trainer.train_step, [batch])
    rng = np.random.default_rng(0)
    image, alpha = batch.image[0].numpy().transpose(1, 2, 0), batch.alpha[0, 0].numpy()
    image = np.ascontiguousarray(image)
    for method in ("ml", "fast"):
        arguments = (image, alpha, image, method, rng)
        ways[f"new background, {method}"] = partial(repeat, options.batch, *arguments)
    with reproducible(torch.device("cpu")):
        seconds = interleaved(ways, options.rounds)
    rows = [[name, f"{value / options.batch:.3f}"] for name, value in seconds.items()]
    title = f"{options.side}x{options.side}, batches of {options.batch}"
    print(table([title, "s per sample"], rows))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def repeat(times: int, *arguments: Any) -> None:
    """As many new backgrounds as a batch has."""
    for _ in range(times):
        replace_background(*arguments)


def make_trainer(precision: str, coarse_steps: int, batch: int) -> Trainer:
    """A trainer of a fresh network of full size."""
    config = TrainConfig(
        batch_size=batch, coarse_steps=coarse_steps, precision=precision, steps=10**6
    )
    chosen = choose_training_precision("auto", precision)
    return Trainer(config, PortraitMatting(), chosen, Processes())


def random_batch(count: int, side: int) -> Batch:
    """Noise with a soft disc as alpha; what is in an image does not change the time."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] - side / 2
    disc = np.clip((side / 3 - np.hypot(rows, columns)) / 8, 0, 1).astype(np.float32)
    image = rng.random((count, 3, side, side), np.float32)
    return Batch(
        torch.from_numpy(image),
        torch.from_numpy(disc).expand(count, 1, side, side).contiguous(),
        torch.from_numpy(trimap_classes(disc, 5)).expand(count, side, side).contiguous(),
        ["noise"] * count,
    )


if __name__ == "__main__":
    main()
