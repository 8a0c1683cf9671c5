"""What every command line here shares: exit codes, one-line errors, options without defaults."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from portraitmatting.errors import PortraitmattingError, one_line

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: some of the work failed; nothing was done, since the call is wrong; Ctrl-C."""


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with its code; a user's mistake becomes one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not fit its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except PortraitmattingError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        code = USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has left; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The named options that the user gave: defaults live in the called signature only."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def own_version() -> str:
    """The installed version; "(not installed)" for a copy that is merely on the path."""
    try:
        return version("portraitmatting")
    except PackageNotFoundError:
        return "(not installed)"
