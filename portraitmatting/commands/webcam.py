"""The person before another background, live or in a video file.

Live:   portraitmatting webcam [CAMERA]       a camera's index or device, a stream's URL, or a file
File:   portraitmatting webcam IN.mp4 -o OUT  no window; OUT ends in .mp4, .mkv, .webm or .mov, or
                                              is the name of a folder for PNG files
Folder: portraitmatting webcam IN -o OUT      IN holds videos, or numbered images (also
                                              IN/frame_%04d.png); results of videos go to OUT
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from portraitmatting import choices
from portraitmatting.cli import FAILED, Parser, given
from portraitmatting.commands.options import (
    add_device_option,
    add_foreground_option,
    add_network_options,
    checked,
    load_predictor,
    number,
)
from portraitmatting.errors import PortraitmattingError, one_line

FORMATS = ("mp4", "mkv", "webm", "mov", "png")
"""Of the results of a folder of videos."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)

    from portraitmatting.video.reader import is_recorded

    recorded = is_recorded(options.source)
    return convert(options) if recorded and options.output is not None else show(options)


def convert(options: argparse.Namespace) -> int:
    """Matte a video, or every video of a folder, into -o."""
    from portraitmatting.video.backgrounds import parse_video_background
    from portraitmatting.video.reader import open_video
    from portraitmatting.video.writer import check_outputs, result_kind

    # A wrong call is answered before PyTorch is loaded, which takes seconds.
    if options.preset:
        choices.check_preset(options.preset)  # without "auto", which follows a camera
    backgrounds = options.background or [None]
    if len(backgrounds) > 1:
        raise PortraitmattingError("a file takes one --background: run once for each")
    videos = plan(options)
    for source, target in videos:
        check_outputs(source, target)
        result_kind(target, options.kind, backgrounds[0] is not None)
    background = backgrounds[0] and parse_video_background(backgrounds[0])
    if len(videos) == 1:
        with open_video(videos[0][0], options.frame_rate):
            pass

    from portraitmatting.video.stream import matte_video

    predictor = load_predictor(options, "short_side", "precision")
    print(predictor.at_preset(options.preset or "quality"), file=sys.stderr)
    chosen = given(options, "foreground", "smooth", "preset", "batch_size", "kind", "frame_rate")
    failed = False
    for source, target in videos:
        try:
            done = matte_video(source, target, predictor, background, progress=True, **chosen)
        except PortraitmattingError as error:
            if len(videos) == 1:
                raise
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            failed = True
            continue
        print(f"{done} in {target}")
        if done.missing:
            print(f"{one_line(str(source))}: {done.missing}", file=sys.stderr)
        failed = failed or bool(done.damaged or done.missing)
    return FAILED if failed else 0


def plan(options: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Sources and targets: one, or one for each video of a folder."""
    from portraitmatting.video.reader import videos_in
    from portraitmatting.video.writer import check_target, plan_videos

    source = Path(options.source)
    if not source.is_dir() or not videos_in(source):
        if options.format is not None:
            raise PortraitmattingError("--format is for folders of videos: for one, -o names it")
        return [(source, options.output)]
    if not options.output.is_dir():
        check_target(options.output)
    suffix = options.format or "mp4"
    videos = plan_videos(source, options.output, "" if suffix == "png" else f".{suffix}")
    for _, target in videos:
        target.parent.mkdir(parents=True, exist_ok=True)
    return videos


def show(options: argparse.Namespace) -> int:
    """Matte a camera's images, or a video's, in a window."""
    from portraitmatting.video.backgrounds import live_backgrounds
    from portraitmatting.video.camera import Camera
    from portraitmatting.video.preview import require_display

    # A wrong call is answered before PyTorch is loaded, which takes seconds.
    if options.window is not False:
        require_display()
    backgrounds = live_backgrounds(options.background or [])
    with Camera(options.source, **given(options, "width", "height")) as camera:
        from portraitmatting.video.live import run_live

        predictor = load_predictor(options, "short_side", "precision")
        at_largest = "quality" if options.preset in (None, "auto") else options.preset
        print(predictor.at_preset(at_largest), file=sys.stderr)
        names = ("foreground", "smooth", "preset", "target_rate", "overlay", "window")
        chosen = given(options, *names, "virtual_camera", "folder")
        timing = run_live(camera, predictor, backgrounds, record_to=options.output, **chosen)
    print(timing)
    if timing.lost:
        print(f"camera {options.source} gives no more frames", file=sys.stderr)
    return FAILED if timing.failed else 0


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting webcam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        nargs="?",
        default="0",
        help="a camera, a URL, a video, a folder of videos or of numbered images, or a pattern as "
        "frame_%%04d.png (default: camera 0)",
    )
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
        "files, blur live); live, the key n switches between several",
    )
    add_foreground_option(result.add_argument, "fast")
    result.add_argument(
        "--kind",
        choices=choices.KINDS,
        metavar="KIND",
        help="files only: composite, rgba, alpha (the matte, in grey) or foreground (the person's "
        "colours, opaque); default: rgba where -o can be transparent and there is no --background, "
        "else composite",
    )
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
    folders = parser.add_argument_group("folders")
    folders.add_argument(
        "--format",
        choices=FORMATS,
        metavar="FORMAT",
        help="of videos' results: mp4, mkv, webm, mov or png (default: mp4)",
    )
    folders.add_argument(
        "--frame-rate",
        type=number(float, 0.01, 1000),
        metavar="N",
        help="of numbered images, per second (default: 25)",
    )
    live = parser.add_argument_group("live")
    live.add_argument(
        "--width", type=number(int, 1, 65535), metavar="PIXELS", help="to ask the camera for"
    )
    live.add_argument(
        "--height", type=number(int, 1, 65535), metavar="PIXELS", help="to ask the camera for"
    )
    live.add_argument("--no-overlay", dest="overlay", action="store_false", default=None)
    live.add_argument("--no-window", dest="window", action="store_false", default=None)
    live.add_argument(
        "--virtual-camera", action="store_true", default=None, help="for meeting programs"
    )
    live.add_argument("--folder", type=Path, help="for snapshots and recordings (default: here)")
    add_device_option(add_network_options(parser, ["auto", *choices.PRESETS]))
    return parser
