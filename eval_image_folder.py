#!/usr/bin/env python3
"""Mattes and cut-outs for every picture of a folder: python eval_image_folder.py INPUT [OUTPUT]"""

import argparse
import sys
from pathlib import Path

from portraitmatting.cli import FAILED, INTERRUPTED, given, run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, argument_default=None)
    parser.add_argument("input", type=Path, help="a folder, searched with its subfolders, or a file")
    parser.add_argument(
        "output",
        type=Path,
        nargs="?",
        default=Path("mattes"),
        help="where results go, as OUTPUT/KIND/same/tree/name.png (default: mattes)",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output",
        dest="kinds",
        nargs="+",
        metavar="KIND",
        default=["alpha", "rgba"],
        help="any of alpha, rgba, composite, foreground (default: alpha rgba)",
    )
    results.add_argument("--format", default="png", help="png, webp, tiff or jpg (default: png)")
    results.add_argument("--bits", type=int, help="8 or 16 per channel (default: as the picture)")
    results.add_argument(
        "--foreground",
        help="how the person's colours are estimated: ml, cf, fast or none (default: ml)",
    )
    results.add_argument(
        "--background",
        help="for composites: a colour, a picture, blur, blur:0.05 or chequer (default: white)",
    )
    results.add_argument(
        "--overwrite", action="store_true", help="do again what an earlier run has done"
    )
    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", help="a name in checkpoints/ or a path (default: ours)")
    network.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    network.add_argument("--precision", help="auto, fp32, bf16 or fp16 (default: the checkpoint's)")
    network.add_argument(
        "--short-side", type=int, help="working short side, a multiple of 32 (default: the checkpoint's)"
    )
    network.add_argument("--batch-size", type=int, help="default: 8 on a GPU, 1 on a CPU")
    network.add_argument("--workers", type=int, help="threads that read, and that write (default: 2)")
    return parser.parse_args()


def main() -> int:
    options = parse()
    # What can be wrong with the call is found before the seconds that the model takes to load.
    from portraitmatting.folder import Style, matte_folder, plan_folder

    plan = plan_folder(options.input, options.output, options.kinds, options.format)
    style = Style(**given(options, "foreground", "background", "bits"))

    from portraitmatting.checkpoint import load_model
    from portraitmatting.device import choose_device
    from portraitmatting.predictor import Predictor

    model = load_model(options.checkpoint, choose_device(options.device))
    predictor = Predictor(model, **given(options, "short_side", "precision"))
    print(f"{len(plan.sources)} pictures, {predictor}", file=sys.stderr)
    chosen = given(options, "batch_size", "workers", "overwrite")
    summary = matte_folder(plan, predictor, style, progress=True, **chosen)
    print(f"{summary}\nresults in {plan.output}")
    if summary.interrupted:
        return INTERRUPTED
    return FAILED if summary.failed else 0


if __name__ == "__main__":
    run(main)
