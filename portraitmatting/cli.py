"""What all commands share: exit codes, errors in one line, and options without defaults."""

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any, NoReturn, TextIO

from portraitmatting.allocator import keep_freed_memory
from portraitmatting.errors import PortraitmattingError, one_line

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: some of the work failed; the call was wrong and nothing was done; Ctrl-C. SIGTERM
(from `docker stop` or systemd) and SIGHUP (a closed terminal) end a command like Ctrl-C, but with
143 and 129."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which refuses empty values: a shell variable that is
    not set gives one, and as a path it would mean the current folder."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        options, unknown = self.parse_known_args(args, namespace)
        if unknown and unknown[0].startswith("-"):
            self.error(f"unknown option {unknown[0]}")
        if unknown:
            self.error(
                f"{unknown[0]!r} is left over: quote names that contain spaces, and put options "
                "before or after all of them"
            )
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {one_line(message)}; {self.prog} --help says more\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [name.strip("-") for name in action.option_strings[-1:]]
            if action.metavar == "METHOD" or not names:
                names.append(str(action.metavar or action.dest).lower())
            known = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(None, f"unknown {' '.join(names)} {value!r}: use {known}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # argparse calls this for every value.
        if not arg_string and not isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(action, "is empty: give a value or leave it out")
        return super()._get_value(action, arg_string)


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with its code. A PortraitmattingError, so a mistake in the call, becomes
    one line and exit code 2; other expected errors become one line and exit code 1."""
    keep_freed_memory()
    _open_standard_files()
    stopped_by = _stop_on_signals()
    try:
        code = main()
        sys.stdout.flush()
    except PortraitmattingError as error:
        _report(f"error: {one_line(str(error))}")
        code = USAGE
    except KeyboardInterrupt:
        _report("interrupted")
        code = INTERRUPTED
    except BrokenPipeError:  # the program that read our output (head, less) has ended
        code = FAILED
    except MemoryError as error:
        _report(
            f"error: out of memory ({one_line(str(error))}): use smaller images, or fewer at once"
        )
        code = FAILED
    except OSError as error:  # usually a full disk that standard output is redirected to
        _report(f"error: {one_line(str(error))}")
        code = FAILED
    if code == INTERRUPTED and stopped_by:
        code = 128 + stopped_by[0]
    _close_standard_output()
    sys.exit(code)


def _report(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed
        print(text, file=sys.stderr, flush=True)


def _open_standard_files() -> None:
    """Open /dev/null for standard streams that the caller closed (`>&-`). In Python they are None,
    and their file descriptors would be given to the next files that are opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or _null_device()
    sys.stderr = sys.stderr or _null_device()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not fit its encoding
        sys.stdout.reconfigure(errors="backslashreplace")


def _null_device() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _close_standard_output() -> None:
    """Flush standard output, or send it to /dev/null if the other end is closed: Python would flush
    it at exit and print an error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop_on_signals() -> list[int]:
    """Let the first SIGTERM or SIGHUP do what Ctrl-C would do at that moment, and append it to the
    list that is returned. Signals that are ignored (by nohup) or handled already are left alone."""
    received: list[int] = []
    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in filter(None, numbers):
            signal.signal(other, signal.SIG_IGN)  # nothing may interrupt the cleanup
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    for number in filter(None, numbers):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    return received


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The named options that the user gave. Others are left to the defaults of the function that is
    called with these."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def own_version() -> str:
    """The version of the installed package, or "(not installed)" for a source tree on the path."""
    try:
        return version("portraitmatting")
    except PackageNotFoundError:
        return "(not installed)"
