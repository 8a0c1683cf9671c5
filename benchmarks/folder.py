"""Folder jobs: where their time goes, what they add to the network's, and their peak memory."""

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
from benchmarks.timing import interleaved, say, table
from portraitmatting import ModelConfig, PortraitMatting, Predictor, load_model
from portraitmatting.compositing import rgba
from portraitmatting.folder.job import matte_folder
from portraitmatting.folder.plan import plan_folder
from portraitmatting.folder.results import ResultOptions
from portraitmatting.foreground import estimate_foreground
from portraitmatting.images.files import read_image, write_image
from portraitmatting.images.pixels import to_dtype

MIXED = ((640, 480), (480, 640), (800, 600), (600, 900), (768, 1024), (1200, 900), (1080, 1440))
_TWO_MEGAPIXELS = ((1224, 1632), (1632, 1224))
_SMALL = ((120, 160), (160, 120))


def fill(folder: Path, sizes: Sequence[tuple[int, int]], count: int) -> None:
    """`count` JPEGs of drawn portraits, of these sizes in turn; each size is drawn once."""
    drawn = []
    for number, (height, width) in enumerate(sizes):
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        pixels, _ = draw_portrait(height, width, seed=number, background=background)
        drawn.append(folder / f"{number:04}.jpg")
        write_image(drawn[-1], pixels)
    for number in range(len(sizes), count):
        (folder / f"{number:04}.jpg").write_bytes(drawn[number % len(sizes)].read_bytes())


def breakdown_table(quick: bool) -> str:
    """Of each step alone, one after another, the mean over the mixed sizes; and of a whole job of
    200 mixed images, how much longer than the network alone it takes."""
    torch.set_grad_enabled(False)
    sizes, count = (MIXED[:2], 4) if quick else (MIXED, 200)
    predictor = Predictor(load_model(device="cpu"))
    total: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "in").mkdir()
        fill(root / "in", sizes, len(sizes))
        say("foreground estimation gets ready")
        ResultOptions().prepare(["rgba"])
        for number in range(len(sizes)):
            say(f"steps of an image of {sizes[number][0]}x{sizes[number][1]}")
            steps = _steps(predictor, root / "in" / f"{number:04}.jpg", root / "out.png")
            share = len(range(number, count, len(sizes))) / count
            for step, seconds in interleaved(steps, 1 if quick else 3).items():
                total[step] = total.get(step, 0) + seconds * share
    say(f"a job of {count} images")
    job, _ = _job("mixed", count, "ml")
    everything = sum(total.values())
    rows = [[step, f"{s:.3f} s", f"{s / everything:.0%}"] for step, s in total.items()]
    rows.append(["all, one after another", f"{everything:.3f} s", "100%"])
    added = f"{job / total['network'] - 1:+.0%} of the network's"
    rows.append([f"the job, {count} images", f"{job:.3f} s", added])
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


def memory_table(quick: bool) -> str:
    """Peak memory does not grow with the folder; what a job of 50 images of 2 megapixels takes,
    with and without foreground estimation. Each job in a process of its own."""
    few, many, large = (5, 20, 2) if quick else (50, 500, 50)
    rows = []
    for title, arguments in (
        (f"{few} small images, tiny network", ("tiny", few, "ml")),
        (f"{many} small images, tiny network", ("tiny", many, "ml")),
        (f"{large} of 2 megapixels, foreground", ("large", large, "ml")),
        (f"{large} of 2 megapixels, no foreground", ("large", large, "none")),
    ):
        say(f"memory: {title}")
        seconds, megabytes = _job(*arguments)
        rows.append([title, f"{seconds:.3f} s", f"{megabytes:.0f} MB"])
    return table(("job", "per image", "peak memory"), rows)


def _job(network: str, count: int, method: str) -> tuple[float, float]:
    """Seconds per image and MB of a job in a process of its own, which waits as the command line
    makes it wait."""
    command = [sys.executable, "-m", "benchmarks.folder", network, str(count), method]
    root, environment = Path(__file__).parent.parent, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    said = subprocess.run(
        command, cwd=root, env=environment, check=True, capture_output=True, text=True
    ).stdout
    seconds, megabytes = said.split()[-2:]
    return float(seconds), float(megabytes)


def _measured_job(network: str, count: int, method: Any) -> None:
    """Prints seconds per image and the process's peak memory in MB."""
    import resource

    if network == "tiny":
        predictor, sizes = Predictor(PortraitMatting(ModelConfig.tiny()), 64), _SMALL
    else:
        predictor = Predictor(load_model(device="cpu"))
        sizes = MIXED if network == "mixed" else _TWO_MEGAPIXELS
    style = ResultOptions(foreground=method)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "in").mkdir()
        # In yet another process, so that drawing, at twice the size, is not the peak.
        draw = (
            "import sys; from pathlib import Path; from benchmarks.folder import fill; "
            f"fill(Path(sys.argv[1]), {sizes}, {count})"
        )
        subprocess.run([sys.executable, "-c", draw, f"{name}/in"], check=True)
        plan = plan_folder(f"{name}/in", f"{name}/out")
        style.prepare(plan.kinds)
        before = time.perf_counter()
        summary = matte_folder(plan, predictor, style)
        seconds = (time.perf_counter() - before) / count
    assert summary.done == count, summary
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, peak // (2**20 if sys.platform == "darwin" else 2**10))


if __name__ == "__main__":
    _measured_job(sys.argv[1], int(sys.argv[2]), sys.argv[3])
