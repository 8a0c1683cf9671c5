#!/usr/bin/env python3
"""Mattes and cut-outs for every image of a folder: `portraitmatting folder` in a file."""

from portraitmatting.cli import run
from portraitmatting.commands.folder import main

if __name__ == "__main__":
    run(main)
