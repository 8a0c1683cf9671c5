"""Every command of `portraitmatting`, and the module that it lives in.

Such a module has `parser()`, its command line, and `main(arguments)`, which returns an exit code.
Importing it must be instant: what is heavy it imports once the call is known to be right. To add
a command is to add a line here.
"""

from importlib import import_module
from typing import Any

COMMANDS = {
    "folder": ("folder.__main__", "mattes and cut-outs for every picture of a folder"),
    "distributed": ("distributed.__main__", "the same on many machines, over Ray Data"),
    "webcam": ("video.__main__", "another background, live or in a video file"),
    "web": ("web.__main__", "a page in the browser for single photos"),
    "evaluate": ("evaluate.__main__", "score mattes against a benchmark's truth"),
    "train": ("train", "train the network, or make a checkpoint of a run"),
    "export": ("export", "the network as one ONNX file of any batch and size"),
    "checkpoint": ("checkpoint.__main__", "convert, describe and verify checkpoint files"),
    "doctor": ("doctor.__main__", "versions, devices, and what is wrong with this environment"),
    "completion": ("completion", "a script that lets bash or zsh complete all of this"),
}
"""Name to module (inside this package) and one line of help."""


def command(name: str) -> Any:
    """The module of a command."""
    return import_module(f"portraitmatting.{COMMANDS[name][0]}")
