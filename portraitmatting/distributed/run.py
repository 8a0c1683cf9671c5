"""The whole job in one call."""

import sys
from pathlib import Path

import ray
import torch
from tqdm import tqdm

from portraitmatting.checkpoint.load import load_model
from portraitmatting.checkpoint.registry import locate
from portraitmatting.device import choose_precision, describe_precision
from portraitmatting.distributed.cluster import connected, room_for
from portraitmatting.distributed.crash_counter import start_crash_counter
from portraitmatting.distributed.job import hand_out
from portraitmatting.distributed.report import Report, Summary, check_reports
from portraitmatting.distributed.scan import check_outputs, scan
from portraitmatting.distributed.storage import Storage
from portraitmatting.distributed.worker import Orders
from portraitmatting.errors import PortraitmattingError
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
    """Matte every image below `source` into `output`, as `plan_results` settled, over Ray.

    Each worker has `cores` CPU cores and `gpus` GPUs (a share of one if below 1; 0: it runs on its
    cores); by default there are as many workers as the cluster at `address` has room for. Without
    an address Ray is started on this machine, or the one that runs in this process is used.
    `batch_size`, `overwrite` and `progress` are as in `matte_folder`, `checkpoint` is as in
    `load_model`, `short_side`, `precision` and `preset` are as in `Predictor`. Nothing is started
    or written if nothing is to be done. Raises `PortraitmattingError` if it cannot begin.
    """
    results = results or ResultOptions()
    device = "cuda" if gpus else "cpu"
    if batch_size is None:
        batch_size = 8 if gpus else 1
    _check_numbers(batch_size, cores, gpus, workers)
    check_outputs(source, output, plan)
    check_reports(output)
    model = load_model(checkpoint)
    # Here the network only tells what it is; the GPU it will run on may be on other machines.
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
