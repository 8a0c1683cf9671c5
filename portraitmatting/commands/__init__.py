"""Every command of `portraitmatting`, and the module that it lives in.

Such a module has `parser()`, its command line, and `main(arguments)`, which returns an exit code.
Importing it must be instant: heavy modules are imported once the call is known to be right. A new
command needs its module and a line here.
"""

from importlib import import_module
from typing import Any

COMMANDS = {
    "folder": "mattes and cut-outs for every image of a folder",
    "distributed": "the same on many machines, over Ray Data",
    "webcam": "another background, live or in a video file",
    "web": "a page in the browser for single photos",
    "evaluate": "score mattes against a benchmark's ground truth",
    "train": "train the network, or make a checkpoint of a run",
    "export": "the network as one ONNX file of any batch and size",
    "checkpoint": "convert, describe and verify checkpoint files",
    "doctor": "versions, devices, and what is wrong with this environment",
    "completion": "a script that lets bash or zsh complete all of this",
}
"""Name, which is also the module's in this package, and one line of help."""


def command(name: str) -> Any:
    """The module of a command."""
    return import_module(f"portraitmatting.commands.{name}")
