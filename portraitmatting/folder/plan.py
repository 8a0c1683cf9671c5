"""What a folder job will read and write, settled before anything heavy is loaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portraitmatting.cli import one_line
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images import READABLE, WRITABLE, list_images

KINDS = ("alpha", "rgba", "composite", "foreground")
"""What can be written of a picture, each into a folder of this name under the output."""
_WITHOUT_TRANSPARENCY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Plan:
    """The pictures of a job, and where each result goes: OUTPUT/KIND/same/tree/name.suffix."""

    root: Path
    """The folder that the sources' paths start from."""
    sources: list[Path]
    """Relative to `root`, sorted."""
    output: Path
    kinds: tuple[str, ...]
    suffix: str

    def target(self, source: Path, kind: str) -> Path:
        """Where `kind` of the picture at the relative path `source` is written."""
        return self.output / kind / source.with_suffix(self.suffix)


def plan_folder(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    kinds: Sequence[str],
    image_format: str,
) -> Plan:
    """Look through a folder (or take a single file) and settle every output's place.

    Raises `PortraitmattingError` if there is nothing to do, if two sources would write one file,
    if an output would overwrite a source, or if the format cannot hold what is asked for.
    """
    source, output = Path(source), Path(output)
    suffix = f".{image_format.lower().lstrip('.')}"
    if suffix not in WRITABLE:
        known = ", ".join(sorted(s.lstrip(".") for s in WRITABLE))
        raise PortraitmattingError(f"unknown format {image_format!r}: use one of {known}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise PortraitmattingError(f"unknown output {unknown[0]!r}: use any of {', '.join(KINDS)}")
    if "rgba" in kinds and suffix in _WITHOUT_TRANSPARENCY:
        raise PortraitmattingError("JPEG has no transparency, rgba needs it: use png, webp or tiff")
    root, sources = _find(source, output)
    plan = Plan(root, sources, output, tuple(dict.fromkeys(kinds)), suffix)
    _check_places(plan)
    return plan


def _find(source: Path, output: Path) -> tuple[Path, list[Path]]:
    if source.is_file():
        return source.parent, [Path(source.name)]
    if not source.is_dir():
        raise PortraitmattingError(f"{source}: no such file or folder")
    if source.resolve() == output.resolve():
        raise PortraitmattingError(f"{output}: is the input folder too; choose another output")
    sources = list_images(source, exclude=output)
    if not sources:
        known = " ".join(sorted(READABLE))
        raise PortraitmattingError(f"{source}: no pictures found in it (looked for {known})")
    return source, sources


def _check_places(plan: Plan) -> None:
    root = plan.root.resolve()
    for kind in plan.kinds:
        folder = (plan.output / kind).resolve()
        if root == folder or folder in root.parents:
            raise PortraitmattingError(
                f"{plan.output}: results would be written over the pictures in {plan.root}; "
                "choose another output"
            )
    taken: dict[str, Path] = {}
    for source in plan.sources:
        place = os.path.normcase(source.with_suffix(plan.suffix))
        other = taken.setdefault(place, source)
        if other is not source:
            raise PortraitmattingError(
                f"{one_line(str(other))} and {one_line(str(source))} would both be written as "
                f"{one_line(place)}: rename one of them, or run them apart"
            )
