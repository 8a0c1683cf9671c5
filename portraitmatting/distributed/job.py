"""Hand the images out to workers, and collect what became of them."""

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError
from tqdm import tqdm

from portraitmatting.distributed.report import Report
from portraitmatting.distributed.worker import FAILED, ROWS, Orders, Worker
from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.folder.pipeline import failure

_LOST = "no worker has reported it: run again"
_LARGEST_BLOCK = 64
_BLOCKS_PER_WORKER = 8


def hand_out(
    todo: pa.Table, orders: Orders, workers: int, gpus: float, report: Report, progress: bool
) -> None:
    """Every image of `todo` (schema `TODO`) to one of `workers` workers; Ray must be connected.

    Results are written by the workers themselves; through Ray go paths on the way out and a small
    row per image on the way back. A worker that is lost is replaced and its images are tried
    again. When this returns, `report` has one row of each image, unless it says that the job
    was stopped: by Ctrl-C, or by a disk that is full. `progress` shows a bar if stderr is a
    terminal.
    """
    blocks = _blocks(todo, workers)
    waiting = np.ones(len(blocks), bool)
    images = (
        ray.data.from_blocks(blocks)
        # Actors restart and tasks are tried again without limit: Ray Data's own default. What
        # would never end is caught by the `CrashCounter`.
        .map_batches(
            Worker,
            fn_constructor_args=(orders,),
            compute=ActorPoolStrategy(size=workers),
            batch_format="pyarrow",
            batch_size=len(blocks[0]),
            num_cpus=orders.cores,
            num_gpus=gpus or None,
        )
    )
    with tqdm(total=len(todo), unit=" images", disable=None if progress else True) as bar:
        try:
            for rows in _rows(images):
                report.add(rows)
                waiting[rows["block"].to_numpy()] = False
                bar.update(len(rows))
                if report.summary.stopped:
                    return
        except KeyboardInterrupt:
            report.summary.stopped, report.summary.interrupted = "interrupted", True
            return
        except RayError as error:  # at length, with the trace of every process
            raise PortraitmattingError(
                f"a worker cannot be started: {_cause(error)}: see that every machine has the same "
                "environment, with this package and what it needs"
            ) from error
    for block in np.flatnonzero(waiting):
        report.add(_lost(blocks[block], orders))


def _cause(error: BaseException) -> str:
    """The last line that says something, which is the innermost error's."""
    lines = [line.strip() for line in str(error).splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Warning)\b", line)]
    return one_line((errors or [line for line in lines if line] or [type(error).__name__])[-1])


def _rows(images: Any) -> Iterator[pa.Table]:
    yield from images.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _blocks(todo: pa.Table, workers: int) -> list[pa.Table]:
    """What a worker gets at once: so little that all have work until the end, and that little is
    lost with a worker; so much that Ray has few to look after."""
    size = max(1, min(_LARGEST_BLOCK, len(todo) // (workers * _BLOCKS_PER_WORKER)))
    blocks = []
    for index, start in enumerate(range(0, len(todo), size)):
        # Copied: a slice would travel with the whole table.
        rows = pa.concat_tables([todo.slice(start, size)]).combine_chunks()
        rows = pa.table({name: pa.concat_arrays(rows[name].chunks) for name in rows.column_names})
        blocks.append(rows.append_column("block", pa.array([index] * len(rows), pa.int64())))
    return blocks


def _lost(block: pa.Table, orders: Orders) -> pa.Table:
    """Rows about images that no worker has reported."""
    rows = [
        {
            "source": row["source"],
            "outcome": FAILED,
            "reason": failure(orders.source.name(os.fsdecode(row["source"])), ImageError(_LOST)),
            "seconds": 0.0,
            "cpu_seconds": 0.0,
            "bytes_read": 0,
            "bytes_written": 0,
            "worker": "",
            "block": row["block"],
        }
        for row in block.to_pylist()
    ]
    return pa.Table.from_pylist(rows, ROWS)
