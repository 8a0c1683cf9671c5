"""Train the network, or make a checkpoint of a finished run.

    portraitmatting train run RUN --config recipe.toml
    portraitmatting train run RUN --resume
    portraitmatting train export RUN OUT.safetensors

Several GPUs: torchrun --nproc-per-node N -m portraitmatting train run RUN ...
"""

import argparse
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from portraitmatting.choices import STORAGE
from portraitmatting.cli import Parser, given
from portraitmatting.errors import PortraitmattingError
from portraitmatting.training.config import RENAMED, TrainConfig, config_from_dict, read_config


def _scalar(hint: Any) -> Any:
    """int, float, str or bool, if that or None is all that the type takes; else None."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    is_one = len(kinds) == 1 and get_origin(hint) not in (dict, tuple)
    return kinds[0] if is_one and kinds[0] in (int, float, str, bool) else None


_HINTS = get_type_hints(TrainConfig)
_SCALARS = {
    spec: kind for spec in fields(TrainConfig) if (kind := _scalar(_HINTS[spec.name])) is not None
}
"""Settings of a single value, each with its type; they are options of the command line too."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    if options.command == "export":
        from portraitmatting.training.run_directory import export_run

        chosen = given(options, "which", "storage", "licence")
        print(f"wrote {export_run(options.run, options.out, **chosen)}")
        return 0
    values: dict[str, Any] = read_config(options.config) if options.config else {}
    values |= _changes(options)
    recipe = None if options.resume else config_from_dict(values)

    from portraitmatting.training.loop import train

    train(options.run, recipe, changes=values if options.resume else None)
    return 0


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the command line, which override those of a recipe or of a resumed run."""
    changes = given(options, *(spec.name for spec in _SCALARS))
    for old in given(options, *RENAMED):
        raise PortraitmattingError(f"--{_dashed(old)} is now --{_dashed(RENAMED[old])}")
    data = [{"kind": "photos", "folder": folder} for folder in options.photos or ()]
    for folder in options.cutouts or ():
        data.append({"kind": "cutouts", "folder": folder, "backgrounds": options.over})
    data += [{"kind": "backgrounds", "folder": folder} for folder in options.backgrounds or ()]
    return changes | ({"data": data} if data else {})


def _dashed(name: str) -> str:
    return name.replace("_", "-")


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
        epilog="Tables of a recipe (data, losses, augment, lr_scale, sizes): docs/training.md",
    )
    start.add_argument(
        "run", metavar="RUN", help="folder of the run: a new one, or with --resume one to continue"
    )
    start.add_argument("--config", metavar="TOML", help="the recipe; the options below override it")
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint; --steps and --decay-steps make the run longer",
    )
    start.add_argument(
        "--photos", action="append", metavar="DIR", help="data: holds image/ and alpha/"
    )
    start.add_argument(
        "--cutouts", action="append", metavar="DIR", help="data: images with transparency"
    )
    start.add_argument("--over", metavar="DIR", help="backgrounds for the cut-outs")
    start.add_argument(
        "--backgrounds", action="append", metavar="DIR", help="data: images without people"
    )
    for spec, kind in _SCALARS.items():
        text = spec.metadata["help"]
        if kind is bool:
            start.add_argument(
                f"--{_dashed(spec.name)}", action=argparse.BooleanOptionalAction, help=text
            )
            continue
        if spec.default is not None:
            text += f" (default: {spec.default})"
        metavar = "DIR" if spec.name == "validation" else kind.__name__.upper()
        start.add_argument(f"--{_dashed(spec.name)}", type=kind, metavar=metavar, help=text)
    for old in RENAMED:
        start.add_argument(f"--{_dashed(old)}", dest=old, help=argparse.SUPPRESS)
    export = commands.add_parser("export", help="the averaged weights of RUN as a checkpoint OUT")
    export.add_argument("run", metavar="RUN")
    export.add_argument("out", metavar="OUT")
    export.add_argument("--which", choices=("best", "last"), help="weights (default: best)")
    export.add_argument("--storage", choices=STORAGE, help="of the weights (default: fp16)")
    export.add_argument("--licence", help="of the weights")
    return parser
