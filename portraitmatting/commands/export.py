"""`portraitmatting export OUT.onnx`: the network as one ONNX file that is compared with PyTorch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from portraitmatting import choices
from portraitmatting.cli import Parser, given
from portraitmatting.commands.options import add_checkpoint_option


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)

    from portraitmatting.checkpoint.load import load_network
    from portraitmatting.checkpoint.registry import locate
    from portraitmatting.onnx_export import CHECKED_SHAPES, OPSET, export_onnx, with_source

    model = load_network(options.checkpoint)
    source, _ = locate(options.checkpoint)
    assert model.checkpoint is not None
    model.checkpoint = with_source(model.checkpoint, source)
    difference = export_onnx(options.out, model, **given(options, "precision", "overwrite"))
    size = options.out.stat().st_size / 1e6
    shapes = " and ".join("x".join(map(str, shape)) for shape in CHECKED_SHAPES)
    print(
        f"{options.out}: {size:.1f} MB, opset {OPSET}; proven at {shapes}, "
        f"within {difference:.1g} of PyTorch"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting export",
        description="Write the network as an ONNX file of any batch and size, once its results "
        "are PyTorch's.",
    )
    parser.add_argument("out", metavar="OUT.onnx", type=Path)
    add_checkpoint_option(parser.add_argument)
    parser.add_argument(
        "--precision",
        metavar="TYPE",
        choices=choices.ONNX_PRECISIONS,
        help="fp32 or fp16 (default: fp32)",
    )
    parser.add_argument("--overwrite", action="store_true", default=None)
    return parser
