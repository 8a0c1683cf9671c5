"""The network on this CPU: what its speed is made of, size by size.

    python -m benchmarks.network [--sizes 320x416 ...] [--repeats N] [--onnx FILE]
    python -m benchmarks.network --batch 4         # images one by one against together
    python -m benchmarks.network --peaks FOLDER    # largest activations, as shares of fp16's range

Each way adds one thing to the one before: the modules as PyTorch runs them; freed memory kept for
the next pass; linear layers through oneDNN where that is the faster one; bf16. Every way has a
process of its own. They take turns; times are medians of the turns after the first: by the clock,
and of the process on all cores, which other work on the machine lengthens less. Memory is what the
process holds afterwards, and the most it has held.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import machine, say, table
from portraitmatting import Predictor, load_model
from portraitmatting.cli import keep_freed_memory
from portraitmatting.images.files import read_image
from portraitmatting.images.listing import list_images
from portraitmatting.modeling import swin
from portraitmatting.modeling.swin import SwinBlock

WAYS = {
    "plain": (False, False, "fp32"),
    "kept memory": (True, False, "fp32"),
    "oneDNN": (True, True, "fp32"),
    "bf16": (True, True, "bf16"),
}
"""Name to whether freed memory is kept, whether oneDNN multiplies, and the precision."""
ONNX = "onnxruntime"
ONE_BY_ONE, TOGETHER = "one by one", "together"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", metavar="HxW", default=["320x416", "448x576", "768x1024"]
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--onnx", metavar="FILE", help="a file of `portraitmatting export`, beside")
    parser.add_argument("--batch", type=int, metavar="N", help="N images one by one, and together")
    parser.add_argument("--peaks", metavar="FOLDER", type=Path, help="of images, instead of times")
    options = parser.parse_args()
    if options.peaks:
        print(peaks(options.peaks))
        return
    ways = [*WAYS, ONNX] if options.onnx else list(WAYS)
    if options.batch:
        ways = [f"{way}, {each}" for way in ("oneDNN", "bf16") for each in (ONE_BY_ONE, TOGETHER)]
    images = options.batch or 1
    print(machine(), end="\n\n")
    titles = (f"{images} images: seconds, processor's, memory", *ways)
    print(table(titles, []), end="", flush=True)
    for size in options.sizes:
        say(size)
        height, width = map(int, size.split("x"))
        measured = measure(ways, height, width, options.repeats, options.onnx, images)
        print("| " + " | ".join([size, *measured]) + " |", flush=True)


@torch.inference_mode()
def peaks(folder: Path) -> str:
    """The layers with the largest outputs over the folder's images, at the checkpoint's size."""
    predictor = Predictor(load_model(), precision="fp32")
    largest: dict[str, float] = {}

    def watch(name: str) -> None:
        def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            largest[name] = max(largest.get(name, 0), output.abs().max().item())

        predictor.model.get_submodule(name).register_forward_hook(note)

    for name, module in predictor.model.named_modules():
        if isinstance(module, SwinBlock) or not list(module.children()):
            watch(name)
    images = list_images(folder)
    for image in images:
        predictor.estimate([predictor.prepare(read_image(folder / image).pixels)])
    limit = torch.finfo(torch.float16).max
    top = sorted(largest.items(), key=lambda item: -item[1])[:5]
    rows = [[name, f"{value:.1f}", f"{value / limit:.2%}"] for name, value in top]
    return table((f"largest of {len(images)} images", "magnitude", "of fp16's range"), rows)


def measure(
    ways: list[str], height: int, width: int, repeats: int, onnx: str | None, images: int
) -> list[str]:
    """Seconds, seconds of processor and memory of each way."""
    context = multiprocessing.get_context("spawn")
    ends = []
    for way in ways:
        ours, theirs = context.Pipe()
        arguments = theirs, way, height, width, onnx, images
        context.Process(target=_serve, args=arguments, daemon=True).start()
        ends.append(ours)
    seconds: list[list[tuple[float, float]]] = [[] for _ in ways]
    for number in range(repeats + 1):
        for end, times in zip(ends, seconds, strict=True):
            end.send(True)
            took = end.recv()
            if number:
                times.append(took)
    results = []
    for end, times in zip(ends, seconds, strict=True):
        end.send(False)
        clock, processor = (statistics.median(column) for column in zip(*times, strict=True))
        results.append(f"{clock:.2f}, {processor:.2f}, {end.recv()}")
    return results


@torch.inference_mode()
def _serve(
    end: Connection, way: str, height: int, width: int, onnx: str | None, images: int
) -> None:
    """In a process of its own: all images, and their seconds, each time that it is asked."""
    way, _, each = way.partition(", ")
    keep, onednn, precision = WAYS.get(way, (False, False, None))
    if keep:
        keep_freed_memory()
    swin._ONEDNN = swin._ONEDNN and onednn
    predictor = Predictor(load_model(onnx if way == ONNX else None), precision=precision)
    image = (torch.rand(height, width, 3) * 255).byte().numpy()
    predictor.short_side = min(height, width)
    batch = [predictor.prepare(image)] * images
    assert batch[0].tensor.shape[1:] == (height, width)
    batches = [batch] if each == TOGETHER else [[prepared] for prepared in batch]
    while end.recv():
        before = time.perf_counter(), time.process_time()
        for images_at_once in batches:
            predictor.estimate(images_at_once)
        end.send((time.perf_counter() - before[0], time.process_time() - before[1]))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now = pages * resource.getpagesize() / 1e6
    end.send(
        f"{now:.0f} / {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
