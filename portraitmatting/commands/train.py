"""Train the network, or make a checkpoint of a finished run.

    portraitmatting train run RUN --config recipe.toml
    portraitmatting train run RUN --resume
    portraitmatting train export RUN OUT.safetensors

Several GPUs: torchrun --nproc-per-node N -m portraitmatting train run RUN ...
"""

import argparse
from dataclasses import fields
from typing import Any, get_type_hints

from portraitmatting import choices
from portraitmatting.cli import Parser, given, run
from portraitmatting.errors import PortraitmattingError
from portraitmatting.training.config import TrainConfig, config_from_dict, read_config

_SCALARS = {
    f.name: kind
    for f in fields(TrainConfig)
    for kind in [get_type_hints(TrainConfig)[f.name]]
    if kind in (int, float, str, bool)
}
"""Settings that are one value each; every one is an option of the command line too."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    if options.command == "export":
        from portraitmatting.training.export_run import export_run

        chosen = given(options, "which", "storage", "licence")
        print(f"wrote {export_run(options.run, options.out, **chosen)}")
        return 0
    changes = _changes(options)
    if options.resume:
        if changes or options.config:
            raise PortraitmattingError(
                "--resume goes on by the run's own recipe: leave the others out"
            )
        recipe = None
    else:
        values: dict[str, Any] = read_config(options.config) if options.config else {}
        recipe = config_from_dict(values | changes)

    from portraitmatting.training.loop import train

    train(options.run, recipe)
    return 0


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line sets over the recipe's file."""
    changes = given(options, *_SCALARS, "validation")
    data = [{"kind": "photos", "folder": folder} for folder in options.photos or ()]
    for folder in options.cutouts or ():
        data.append({"kind": "cutouts", "folder": folder, "backgrounds": options.over})
    data += [{"kind": "backgrounds", "folder": folder} for folder in options.backgrounds or ()]
    return changes | ({"data": data} if data else {})


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    text = __doc__ or ""
    parser = Parser(
        prog="portraitmatting train",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser(
        "run",
        help="train in the folder RUN",
        epilog="The settings and their defaults are in portraitmatting/training/config.py",
    )
    start.add_argument(
        "run", metavar="RUN", help="folder of the run: new, or with --resume one to go on with"
    )
    start.add_argument("--config", metavar="TOML", help="the recipe; the options below go over it")
    start.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    start.add_argument(
        "--photos", action="append", metavar="DIR", help="data: holds image/ and alpha/"
    )
    start.add_argument(
        "--cutouts", action="append", metavar="DIR", help="data: images with transparency"
    )
    start.add_argument("--over", metavar="DIR", help="images that the cut-outs are laid over")
    start.add_argument(
        "--backgrounds", action="append", metavar="DIR", help="data: images without people"
    )
    start.add_argument(
        "--validation", metavar="DIR", help="holds image/ and alpha/ to be scored on"
    )
    for name, kind in _SCALARS.items():
        option = "--" + name.replace("_", "-")
        if kind is bool:
            start.add_argument(option, action=argparse.BooleanOptionalAction)
        else:
            start.add_argument(option, type=kind, metavar=kind.__name__.upper())
    export = commands.add_parser("export", help="the averaged weights of RUN as a checkpoint OUT")
    export.add_argument("run", metavar="RUN")
    export.add_argument("out", metavar="OUT")
    export.add_argument("--which", choices=("best", "last"), help="weights (default: best)")
    export.add_argument("--storage", choices=choices.STORAGE, help="of the weights (default: fp16)")
    export.add_argument("--licence", help="under which the weights may be used")
    return parser


if __name__ == "__main__":
    run(main)
