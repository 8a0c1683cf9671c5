"""Folder jobs: where their time goes, what they add to the network's, and their peak memory.

python -m benchmarks.folder                 # from the repository's root
python -m benchmarks.folder --images 28     # a shorter job
python -m benchmarks.folder --memory        # peak memory of several jobs instead
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.scenes import BACKGROUNDS, draw_portrait
from benchmarks.timing import interleaved, machine, say, table
from portraitmatting import ModelConfig, PortraitMatting, Predictor, load_model
from portraitmatting.compositing import rgba
from portraitmatting.folder.job import available_cores, matte_folder
from portraitmatting.folder.plan import plan_folder
from portraitmatting.folder.results import ResultOptions
from portraitmatting.foreground import estimate_foreground
from portraitmatting.images.files import read_image, write_image
from portraitmatting.images.pixels import to_dtype

MIXED = ((640, 480), (480, 640), (800, 600), (600, 900), (768, 1024), (1200, 900), (1080, 1440))
_TWO_MEGAPIXELS = ((1224, 1632), (1632, 1224))
_PHONE = ((6048, 8064),)
_SMALL = ((120, 160), (160, 120))


def fill(folder: Path, sizes: Sequence[tuple[int, int]], count: int) -> None:
    """`count` JPEGs of drawn portraits, of these sizes in turn; each size is drawn once."""
    drawn = []
    for number, (height, width) in enumerate(sizes[:count]):
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        pixels, _ = draw_portrait(height, width, seed=number, background=background)
        drawn.append(folder / f"{number:04}.jpg")
        write_image(drawn[-1], pixels)
    for number in range(len(sizes), count):
        (folder / f"{number:04}.jpg").write_bytes(drawn[number % len(sizes)].read_bytes())


def breakdown_table(count: int) -> str:
    """Seconds of each step, alone on all cores, as a mean over the mixed sizes; and of whole jobs
    of `count` mixed images, by workers, with how much longer than the network alone they take."""
    torch.set_grad_enabled(False)
    predictor = Predictor(load_model(device="cpu"))
    total: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "in").mkdir()
        fill(root / "in", MIXED, len(MIXED))
        say("preparing foreground estimation")
        ResultOptions().prepare(["rgba"])
        for number, (height, width) in enumerate(MIXED):
            say(f"steps of an image of {height}x{width}")
            steps = _steps(predictor, root / "in" / f"{number:04}.jpg", root / "out.png")
            share = len(range(number, count, len(MIXED))) / count
            for step, seconds in interleaved(steps, 3).items():
                total[step] = total.get(step, 0) + seconds * share
    everything = sum(total.values())
    rows = [[step, f"{s:.3f} s", f"{s / everything:.0%}"] for step, s in total.items()]
    rows.append(["all, one after another", f"{everything:.3f} s", "100%"])
    for workers in sorted({1, available_cores()}):
        say(f"a job of {count} images, {workers} workers")
        job, _ = _job("mixed", count, "ml", workers)
        added = f"{job / total['network'] - 1:+.0%} of the network's"
        rows.append([f"the job, {count} images, {workers} workers", f"{job:.3f} s", added])
    return table(("step, per image", "time", "share"), rows)


def _steps(predictor: Predictor, source: Path, target: Path) -> dict[str, Callable[[], Any]]:
    image = read_image(source).pixels
    prepared = predictor.prepare(image)
    (estimate,) = predictor.estimate([prepared])
    matte = predictor.finish(estimate)
    cut_out = rgba(matte.foreground, matte.alpha)

    def write() -> None:
        write_image(target, to_dtype(matte.alpha, image.dtype))
        write_image(target, cut_out)

    return {
        "read": lambda: read_image(source),
        "resize to the network": lambda: predictor.prepare(image),
        "network": lambda: predictor.estimate([prepared]),
        "resize back": lambda: predictor.finish(estimate),
        "foreground": lambda: estimate_foreground(image, matte.alpha),
        "write alpha and rgba": write,
    }


def memory_table() -> str:
    """Peak memory of a short and a long job, to see that it does not grow with the folder; of large
    images, with and without foreground estimation. Each job runs in a process of its own."""
    few, many, large = 50, 500, 50
    rows = []
    for title, arguments in (
        (f"{few} small images, tiny network", ("tiny", few, "ml")),
        (f"{many} small images, tiny network", ("tiny", many, "ml")),
        (f"{large} of 2 megapixels, foreground", ("large", large, "ml")),
        (f"{large} of 2 megapixels, no foreground", ("large", large, "none")),
        ("4 of 48 megapixels, foreground", ("huge", 4, "ml")),
    ):
        say(f"memory: {title}")
        seconds, megabytes = _job(*arguments)
        rows.append([title, f"{seconds:.3f} s", f"{megabytes:.0f} MB"])
    return table(("job", "per image", "peak memory"), rows)


def _job(network: str, count: int, method: str, workers: int = 0) -> tuple[float, float]:
    """Seconds per image and MB of a job in a process of its own, which waits as the command line
    makes it wait."""
    arguments = ["--job", network, str(count), method, str(workers)]
    command = [sys.executable, "-m", "benchmarks.folder", *arguments]
    root, environment = Path(__file__).parent.parent, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    printed = subprocess.run(
        command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    seconds, megabytes = printed.split()[-2:]
    return float(seconds), float(megabytes)


def _measured_job(network: str, count: int, method: str, workers: int) -> None:
    """Prints seconds per image and the process's peak memory in MB."""
    import resource

    if network == "tiny":
        predictor, sizes = Predictor(PortraitMatting(ModelConfig.tiny()), 64), _SMALL
    else:
        predictor = Predictor(load_model(device="cpu"))
        sizes = {"mixed": MIXED, "large": _TWO_MEGAPIXELS, "huge": _PHONE}[network]
    results = ResultOptions(foreground=method)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "in").mkdir()
        # In yet another process, so that drawing, at twice the size, is not the peak.
        draw = (
            "import sys; from pathlib import Path; from benchmarks.folder import fill; "
            f"fill(Path(sys.argv[1]), {sizes}, {count})"
        )
        subprocess.run([sys.executable, "-c", draw, f"{name}/in"], check=True)
        plan = plan_folder(f"{name}/in", f"{name}/out")
        results.prepare(plan.kinds)
        before = time.perf_counter()
        summary = matte_folder(plan, predictor, results, workers=workers or None)
        seconds = (time.perf_counter() - before) / count
    assert summary.done == count, summary
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, peak // (2**20 if sys.platform == "darwin" else 2**10))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the tables of a folder job.")
    parser.add_argument("--images", type=int, default=200, help="in the job that is timed")
    parser.add_argument("--memory", action="store_true", help="peak memory instead")
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        network, count, method, workers = options.job
        _measured_job(network, int(count), method, int(workers))
        return
    print(machine(), end="\n\n", flush=True)
    print(memory_table() if options.memory else breakdown_table(options.images))


if __name__ == "__main__":
    main()
