"""Command line: `portraitmatting doctor`."""

import argparse
from collections.abc import Sequence

from portraitmatting.cli import FAILED, Parser
from portraitmatting.doctor import examine
from portraitmatting.errors import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, look, report; exit code 1 if anything is wrong."""
    parser().parse_args(arguments)
    findings = examine()
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        print(f"{finding.name:<{width}}{one_line(finding.value)}")
    wrongs = [finding.wrong for finding in findings if finding.wrong]
    print(f"\n{len(wrongs) or 'nothing'} wrong")
    for wrong in wrongs:
        print(f"- {one_line(wrong)}")
    return FAILED if wrongs else 0


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    return Parser(
        prog="portraitmatting doctor",
        description="Versions, devices, threads and checkpoint, and in words what is wrong with "
        "this environment. Exit code 1 if anything is.",
    )
