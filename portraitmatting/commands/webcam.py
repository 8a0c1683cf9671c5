"""The person before another background, live or in a video file.

Live:  portraitmatting webcam [CAMERA]       a camera's index or device, a stream's URL, or a file
File:  portraitmatting webcam IN.mp4 -o OUT  no window; OUT ends in .mp4, .mkv, .webm or .mov, or is
                                             the name of a folder for PNG files
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from portraitmatting import choices
from portraitmatting.cli import FAILED, Parser, given, run
from portraitmatting.commands.options import (
    add_device_option,
    add_foreground_option,
    add_network_options,
    checked,
    number,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    converts = options.output is not None and Path(options.source).is_file()
    return convert(options) if converts else show(options)


def convert(options: argparse.Namespace) -> int:
    from portraitmatting.errors import PortraitmattingError
    from portraitmatting.video.backgrounds import parse_video_background
    from portraitmatting.video.reader import VideoReader
    from portraitmatting.video.writer import check_outputs

    # What can be wrong with the call is found before the seconds that PyTorch takes to load.
    if options.preset:
        choices.check_preset(options.preset)  # without "auto", which follows a camera
    check_outputs(options.source, options.output)
    backgrounds = options.background or [None]
    if len(backgrounds) > 1:
        raise PortraitmattingError("a file takes one --background: run once for each")
    background = backgrounds[0] and parse_video_background(backgrounds[0])
    with VideoReader(options.source):
        pass

    from portraitmatting.video.convert import matte_video

    predictor = load(options)
    print(predictor, file=sys.stderr)
    chosen = given(options, "foreground", "smooth", "preset", "batch_size")
    done = matte_video(
        options.source, options.output, predictor, background, progress=True, **chosen
    )
    print(f"{done} in {options.output}")
    return FAILED if done.damaged else 0


def show(options: argparse.Namespace) -> int:
    from portraitmatting.video.backgrounds import live_backgrounds
    from portraitmatting.video.camera import Camera
    from portraitmatting.video.window import require_display

    # What can be wrong with the call is found before the seconds that PyTorch takes to load.
    if options.window is not False:
        require_display()
    backgrounds = live_backgrounds(options.background or [])
    with Camera(options.source, **given(options, "width", "height")) as camera:
        from portraitmatting.video.live import run_live

        predictor = load(options)
        print(predictor, file=sys.stderr)
        names = ("foreground", "smooth", "preset", "target_rate", "overlay", "window")
        chosen = given(options, *names, "virtual_camera", "folder")
        timing = run_live(camera, predictor, backgrounds, record_to=options.output, **chosen)
    print(timing)
    if timing.lost:
        print(f"camera {options.source} gives no more frames", file=sys.stderr)
    return FAILED if timing.failed else 0


def load(options: argparse.Namespace) -> Any:
    from portraitmatting.checkpoint import load_model
    from portraitmatting.predictor import Predictor

    model = load_model(options.checkpoint, options.device)
    return Predictor(model, **given(options, "short_side", "precision"))


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting webcam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", nargs="?", default="0", help="default: camera 0")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="of a file: write all of it here, without a --background transparent where the kind "
        "can; of a camera: record to here from the start",
    )
    result = parser.add_argument_group("result")
    result.add_argument(
        "--background",
        action="append",
        type=checked(choices.check_background),
        metavar="WHAT",
        help="a colour, an image, a video, blur, blur:0.05 or checkerboard (default: green for "
        "files, blur live); live, several are gone through with the key n",
    )
    add_foreground_option(result.add_argument, "fast")
    result.add_argument(
        "--no-smooth",
        dest="smooth",
        action="store_false",
        default=None,
        help="leave the matte as it is from frame to frame",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--target-rate",
        type=number(float, 0.1, 1000),
        metavar="N",
        help="frames per second (default: 24)",
    )
    speed.add_argument(
        "--batch-size",
        type=number(int, 1, 1024),
        metavar="N",
        help="files only (default: 8 on a GPU, 1 on a CPU)",
    )
    live = parser.add_argument_group("live")
    live.add_argument(
        "--width", type=number(int, 1, 65535), metavar="PIXELS", help="asked of the camera"
    )
    live.add_argument(
        "--height", type=number(int, 1, 65535), metavar="PIXELS", help="asked of the camera"
    )
    live.add_argument("--no-overlay", dest="overlay", action="store_false", default=None)
    live.add_argument("--no-window", dest="window", action="store_false", default=None)
    live.add_argument(
        "--virtual-camera", action="store_true", default=None, help="for meeting programs"
    )
    live.add_argument("--folder", type=Path, help="for snapshots and recordings (default: here)")
    add_device_option(add_network_options(parser, ["auto", *choices.PRESETS]), "auto")
    return parser


if __name__ == "__main__":
    run(main)
