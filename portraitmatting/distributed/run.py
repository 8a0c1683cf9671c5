"""The job: scans the folders, starts workers, hands images out to them, collects their reports."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError
from tqdm import tqdm

from portraitmatting.checkpoint.load import load_model
from portraitmatting.checkpoint.registry import locate
from portraitmatting.device import choose_precision, describe_precision
from portraitmatting.distributed.cluster import connected, room_for, start_crash_counter
from portraitmatting.distributed.report import Report, Summary, check_reports
from portraitmatting.distributed.scan import check_outputs, scan
from portraitmatting.distributed.storage import Storage
from portraitmatting.distributed.worker import FAILED, Orders, Task, Worker, make_rows
from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.folder.pipeline import failure
from portraitmatting.folder.plan import Plan
from portraitmatting.folder.results import ResultOptions
from portraitmatting.modeling.model import PortraitMatting
from portraitmatting.onnx_model import OnnxModel
from portraitmatting.predictor import Predictor


def matte_storage(
    source: Storage,
    output: Storage,
    plan: Plan,
    results: ResultOptions | None = None,
    checkpoint: str | Path | None = None,
    short_side: int | None = None,
    precision: str | None = None,
    preset: str | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    address: str | None = None,
    cores: int = 1,
    gpus: float = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Summary:
    """Matte every image below `source` into `output` over Ray. If nothing is to be done, Ray is not
    started.

    Args:
        source: the folder of images.
        output: the folder for results.
        plan: of `plan_results`.
        results: the look of results, by default `ResultOptions()`.
        checkpoint: as in `load_model`.
        short_side, precision, preset: as in `Predictor`.
        batch_size, overwrite, progress: as in `matte_folder`.
        address: of a Ray cluster; by default the Ray of this process, or one that is started on
            this machine.
        cores: CPU cores of each worker.
        gpus: GPUs of each worker, 0 to 1: 0.5 puts two workers on each GPU; 0 runs on the cores.
        workers: their number, by default as many as the cluster has room for.

    Raises `PortraitmattingError` if it cannot begin.
    """
    results = results or ResultOptions()
    device = "cuda" if gpus else "cpu"
    if batch_size is None:
        batch_size = 8 if gpus else 1
    _check_numbers(batch_size, cores, gpus, workers)
    check_outputs(source, output, plan)
    check_reports(output)
    model = load_model(checkpoint)
    # This predictor runs nothing, it only completes the settings: the GPU may be another machine's.
    shared: PortraitMatting | bytes
    if isinstance(model, OnnxModel):
        shared = locate(checkpoint)[0].read_bytes()
        predictor = Predictor(model, short_side, precision, preset=preset)
        precision = describe_precision(predictor.dtype)
    else:
        shared = model
        predictor = Predictor(model, short_side, "fp32", "cpu", preset)
        if precision is None:
            precision = model.checkpoint.precision if model.checkpoint else "auto"
        precision = describe_precision(choose_precision(precision, torch.device(device)))
    settings = {
        kind: f"{plan.suffix} {plan.bits} {predictor.settings} {precision} {results.settings(kind)}"
        for kind in plan.kinds
    }
    with tqdm(unit=" images listed", disable=None if progress else True) as bar:
        scanned = scan(source, output, plan, settings, overwrite, bar)
    summary = Summary(skipped=scanned.skipped, unread=scanned.unread)
    if not len(scanned.todo):
        return summary
    with connected(address), Report(output, summary) as report:
        workers = workers or room_for(cores, gpus)
        if progress:
            print(
                f"{len(scanned.todo)} images to do; {workers} workers of {cores} cores, {device}, "
                f"{precision}, short side {predictor.short_side}",
                file=sys.stderr,
            )
        orders = Orders(
            source, output, plan, results, ray.put(shared), start_crash_counter(),
            predictor.short_side, precision, batch_size, cores, device,
        )  # fmt: skip
        hand_out(scanned.todo, orders, workers, gpus, report, progress)
    return summary


def _check_numbers(batch_size: int, cores: int, gpus: float, workers: int | None) -> None:
    if min(batch_size, cores, 1 if workers is None else workers) < 1 or gpus < 0:
        raise PortraitmattingError(
            f"batch size {batch_size}, {cores} cores, {gpus:g} GPUs, {workers} workers: expected 1 "
            "or more of each, GPUs 0 or more"
        )
    if gpus > 1:
        raise PortraitmattingError(f"{gpus:g} GPUs per worker: the network runs on one; use 1")


_LARGEST_BLOCK = 64
_BLOCKS_PER_WORKER = 8


def hand_out(
    todo: pa.Table, orders: Orders, workers: int, gpus: float, report: Report, progress: bool
) -> None:
    """Send every image to a worker; Ray must be connected.

    Ray carries paths to the workers and a small row per image back; results are written by the
    workers. A worker that dies is replaced, and its images are tried again.

    Args:
        todo: the images, of schema `TODO`.
        orders: for the workers.
        workers: their number.
        gpus: of each worker.
        report: gets a row of each image, unless Ctrl-C or a full disk stops the job.
        progress: show a bar if stderr is a terminal.
    """
    blocks = _blocks(todo, workers)
    unreported = np.ones(len(blocks), bool)
    images = (
        ray.data.from_blocks(blocks)
        # By Ray Data's default, actors restart and blocks are tried again without limit: images
        # that crash workers are left to the `CrashCounter`.
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
                unreported[rows["block"].to_numpy()] = False
                bar.update(len(rows))
                if report.summary.stopped:
                    return
        except KeyboardInterrupt:
            report.summary.stopped, report.summary.interrupted = "interrupted", True
            return
        except RayError as error:  # whose text has the traceback of every process
            raise PortraitmattingError(
                f"a worker cannot be started: {_cause(error)}: see that every machine has the same "
                "environment, with this package and what it needs"
            ) from error
    for block in np.flatnonzero(unreported):
        report.add(_lost(blocks[block], orders))


def _cause(error: BaseException) -> str:
    """The last line that names an error, which is the innermost."""
    lines = [line.strip() for line in str(error).splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Warning)\b", line)]
    return one_line((errors or [line for line in lines if line] or [type(error).__name__])[-1])


def _rows(images: Any) -> Iterator[pa.Table]:
    yield from images.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _blocks(todo: pa.Table, workers: int) -> list[pa.Table]:
    """The images in blocks: small, so that all workers have work until the end, and little is lost
    when one dies; yet not too many for Ray."""
    size = max(1, min(_LARGEST_BLOCK, len(todo) // (workers * _BLOCKS_PER_WORKER)))
    blocks = []
    for index, start in enumerate(range(0, len(todo), size)):
        # Copied: a slice would be sent with the whole table.
        rows = pa.concat_tables([todo.slice(start, size)]).combine_chunks()
        rows = pa.table({name: pa.concat_arrays(rows[name].chunks) for name in rows.column_names})
        blocks.append(rows.append_column("block", pa.array([index] * len(rows), pa.int64())))
    return blocks


def _lost(block: pa.Table, orders: Orders) -> pa.Table:
    """The rows of a block that no worker has reported."""
    error = ImageError("no worker has reported it: run again")
    tasks = []
    for row in block.to_pylist():
        source = os.fsdecode(row["source"])
        message = failure(orders.source.name(source), error)
        tasks.append(Task(source, outcome=FAILED, reason=message))
    return make_rows(tasks, block["block"][0].as_py())
