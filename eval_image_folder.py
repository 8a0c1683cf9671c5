#!/usr/bin/env python3
"""Mattes and cut-outs for every picture of a folder: `portraitmatting folder` in a file."""

from portraitmatting.cli import run
from portraitmatting.folder.__main__ import main

if __name__ == "__main__":
    run(main)
