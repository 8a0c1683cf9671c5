"""A worker: runs its share of the images through the pipeline, and reports a row about each."""

import io
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import ray
import torch

from portraitmatting.distributed.storage import Storage
from portraitmatting.errors import ImageError, one_line
from portraitmatting.folder.pipeline import Pipeline, Stop, count_pixels, failure, reason
from portraitmatting.folder.plan import Plan
from portraitmatting.folder.results import ResultOptions
from portraitmatting.images.decode import DecodedImage, decode
from portraitmatting.images.encode import encode_image
from portraitmatting.matte import Matte
from portraitmatting.onnx_model import OnnxModel
from portraitmatting.predictor import Predictor

DONE, FAILED, STOPPED = "done", "failed", "stopped"

ROWS = pa.schema(
    {
        "source": pa.binary(),
        "outcome": pa.string(),
        "reason": pa.string(),
        "empty": pa.bool_(),
        "seconds": pa.float64(),
        "cpu_seconds": pa.float64(),
        "bytes_read": pa.int64(),
        "bytes_written": pa.int64(),
        "worker": pa.string(),
        "block": pa.int64(),
    }
)
"""A worker's report of each image. `empty`: nobody is in the matte; `seconds`: the worker's time
for the block, divided by its images; `cpu_seconds`: the same of its cores' computing time;
`worker`: HOST:PID; `block`: the block's number."""

_DEATHS_ALLOWED = 2


@dataclass(frozen=True)
class Orders:
    """All that a worker needs to know; sent to other machines."""

    source: Storage
    output: Storage
    plan: Plan
    """Without sources."""
    results: ResultOptions
    model: Any
    """A Ray reference to the network, or to the bytes of an ONNX file, which only the machine that
    starts the job reads."""
    crashes: Any
    """A Ray reference to the job's `CrashCounter`."""
    short_side: int
    precision: str
    batch_size: int
    cores: int
    device: str


@dataclass
class Task:
    """An image, and its outcome so far."""

    source: str
    name: str = ""
    """Of its results, below the folder of each kind."""
    kinds: list[str] = field(default_factory=list)
    key: str = ""
    """For the `CrashCounter`."""
    outcome: str = STOPPED
    reason: str = "not tried"
    empty: bool = False
    data: bytes = b""
    """The file, from reading to decoding."""
    bytes_read: int = 0
    bytes_written: int = 0


def make_rows(
    tasks: Sequence[Task],
    block: int,
    seconds: float = 0.0,
    cpu_seconds: float = 0.0,
    worker: str = "",
) -> pa.Table:
    """The `ROWS` of a block.

    Args:
        tasks: the images of the block, when they are done.
        block: its number.
        seconds: the worker's time for the whole block.
        cpu_seconds: the worker's CPU time for the whole block.
        worker: its name.
    """
    rows = [
        {
            "source": os.fsencode(task.source),
            "outcome": task.outcome,
            "reason": task.reason,
            "empty": task.empty,
            "seconds": seconds / len(tasks),
            "cpu_seconds": cpu_seconds / len(tasks),
            "bytes_read": task.bytes_read,
            "bytes_written": task.bytes_written,
            "worker": worker,
            "block": block,
        }
        for task in tasks
    ]
    return pa.Table.from_pylist(rows, ROWS)


def _onnx_model(data: bytes, device: str) -> OnnxModel:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        path.write_bytes(data)
        return OnnxModel(path, device)


class Worker:
    """One per GPU, or per number of cores; Ray keeps it, with its network, for the whole job."""

    def __init__(self, orders: Orders) -> None:
        # Each library would take all cores of the machine.
        if "numba" not in sys.modules:  # which fails if this changes once its threads run
            os.environ["NUMBA_NUM_THREADS"] = str(orders.cores)
        # On a CPU each core runs the network for an image of its own.
        one_each = orders.device == "cpu" and orders.batch_size == 1
        torch.set_num_threads(1 if one_each else orders.cores)
        cv2.setNumThreads(orders.cores)
        self._orders = orders
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        orders.results.prepare(orders.plan.kinds)
        model = ray.get(orders.model)
        if isinstance(model, bytes):
            model = _onnx_model(model, orders.device)
        predictor = Predictor(model, orders.short_side, orders.precision, orders.device)
        self._pipeline = Pipeline(predictor, self._pixels, self._read, self._write, self._fail)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the results of a block (source, name, kinds, block); returns its `ROWS`."""
        start, cpu_start = time.perf_counter(), time.process_time()
        block = batch["block"][0].as_py()
        tasks = []
        for index, row in enumerate(batch.to_pylist()):
            source = os.fsdecode(row["source"])
            name = os.fsdecode(row["name"]) or str(self._orders.plan.name(Path(source)))
            tasks.append(Task(source, name, row["kinds"].split(), f"{block}/{index}"))
        if self._begin(str(block)) == 0:
            self._run(tasks)
        else:
            self._run_one_by_one(tasks)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return make_rows(tasks, block, seconds, cpu_seconds, self._name)

    def _run(self, tasks: list[Task]) -> None:
        try:
            self._pipeline.run(tasks, self._orders.batch_size, self._orders.cores)
        except Stop as stop:
            outcome, message = STOPPED, str(stop)
        except Exception as error:  # a bug: other blocks may still succeed
            outcome, message = FAILED, f"{type(error).__name__}: {reason(error)}"
        else:
            return
        for task in tasks:
            if task.outcome == STOPPED:
                task.outcome, task.reason = outcome, message

    def _run_one_by_one(self, tasks: list[Task]) -> None:
        """After a worker has died at this block: images at which workers die are left out."""
        for task in tasks:
            deaths = self._begin(task.key)
            if deaths < _DEATHS_ALLOWED:
                self._run([task])
            else:
                message = f"a worker died at it {deaths} times; it may be too large or damaged"
                self._fail(task, ImageError(message))
            ray.get(self._orders.crashes.end.remote(task.key))

    def _begin(self, key: str) -> int:
        before: int = ray.get(self._orders.crashes.begin.remote(key))
        return before

    def _pixels(self, task: Task) -> int:
        try:
            task.data = self._orders.source.read(task.source)
        except Exception as error:  # object stores have errors of their own
            message = getattr(error, "strerror", None) or reason(error)
            name = one_line(self._orders.source.name(task.source))
            raise ImageError(f"{name}: cannot be opened ({message}): check the path") from error
        task.bytes_read = len(task.data)
        return count_pixels(io.BytesIO(task.data))

    def _read(self, task: Task) -> DecodedImage:
        data, task.data = task.data, b""
        return decode(data)

    def _write(self, task: Task, matte: Matte, image: DecodedImage) -> None:
        orders = self._orders
        metadata = None if orders.results.strip_metadata else image.metadata
        for kind, pixels in orders.results.results(matte, task.kinds, orders.plan.bits):
            data = encode_image(pixels, orders.plan.suffix, image.icc_profile, metadata)
            target = f"{kind}/{Path(task.name).as_posix()}"
            try:
                orders.output.write(target, data)
            except Exception as error:
                message = getattr(error, "strerror", None) or reason(error)
                raise ImageError(f"{orders.output.name(target)}: {message}") from error
            task.bytes_written += len(data)
        task.outcome, task.reason, task.empty = DONE, "", bool(matte.is_empty)

    def _fail(self, task: Task, error: Exception) -> None:
        task.outcome = FAILED
        task.reason = failure(self._orders.source.name(task.source), error)
