#!/usr/bin/env python3
"""The person before another background, live or in a file: `portraitmatting webcam` in a file."""

from portraitmatting.cli import run
from portraitmatting.commands.webcam import main

if __name__ == "__main__":
    run(main)
