"""What a folder job will read and write, settled before anything heavy is loaded."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from portraitmatting.choices import KINDS
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.encode import SIXTEEN_BIT, WRITABLE
from portraitmatting.images.files import list_images
from portraitmatting.images.kinds import READABLE

_WITHOUT_TRANSPARENCY = (".jpg", ".jpeg")
_FOLDS_CASE = sys.platform in ("darwin", "win32")


@dataclass(frozen=True)
class Plan:
    """The images of a job, and where each result goes: OUTPUT/KIND/same/tree/name.suffix."""

    root: Path
    """The folder that the sources' paths start from."""
    sources: list[Path]
    """Relative to `root`, sorted."""
    output: Path
    kinds: tuple[str, ...]
    suffix: str
    bits: int | None
    """8 or 16 per channel; None for as many as the source has and the format holds."""

    def target(self, source: Path, kind: str) -> Path:
        """Where `kind` of the image at the relative path `source` is written."""
        return self.output / kind / source.with_suffix(self.suffix)


def plan_folder(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] = "mattes",
    kinds: Sequence[str] = ("alpha", "rgba"),
    image_format: str = "png",
    bits: int | None = None,
) -> Plan:
    """Look through the folder `source` (or take a single file) and settle every result's place.

    `kinds` are any of `KINDS`; `image_format` is "png", "webp", "tiff" or "jpg".
    Raises `PortraitmattingError` if there is nothing to do, if two sources would write one file,
    if a result could overwrite a source, or if the format cannot hold what is asked for.
    """
    plan = plan_results(output, kinds, image_format, bits)
    root, sources = _find(Path(source), plan.output)
    plan = replace(plan, root=root, sources=sources)
    check_output(plan)
    check_names(plan)
    return plan


def plan_results(
    output: str | os.PathLike[str],
    kinds: Sequence[str] = ("alpha", "rgba"),
    image_format: str = "png",
    bits: int | None = None,
) -> Plan:
    """A plan without sources yet: what is written, and how. Raises `PortraitmattingError`."""
    suffix = f".{image_format.lower().lstrip('.')}"
    if suffix not in WRITABLE:
        known = ", ".join(sorted(s.lstrip(".") for s in WRITABLE))
        raise PortraitmattingError(f"unknown format {image_format!r}: use one of {known}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise PortraitmattingError(f"unknown output {unknown[0]!r}: use any of {', '.join(KINDS)}")
    if "rgba" in kinds and suffix in _WITHOUT_TRANSPARENCY:
        raise PortraitmattingError("JPEG has no transparency, rgba needs it: use png, webp or tiff")
    if bits not in (None, 8, 16):
        raise PortraitmattingError(f"{bits} bits per channel: use 8 or 16")
    if bits == 16 and suffix not in SIXTEEN_BIT:
        raise PortraitmattingError(f"{image_format} holds 8 bits per channel: use png or tiff")
    return Plan(Path(), [], Path(output), tuple(dict.fromkeys(kinds)), suffix, bits)


def _find(source: Path, output: Path) -> tuple[Path, list[Path]]:
    if os.path.isfile(source):
        return source.parent, [Path(source.name)]
    if not os.path.isdir(source):
        raise PortraitmattingError(f"{source}: no such file or folder")
    if os.path.realpath(source) == os.path.realpath(output):
        raise PortraitmattingError(f"{output}: is the input folder too; choose another output")
    sources = list_images(source, exclude=output)
    if not sources:
        known = " ".join(sorted(READABLE))
        raise PortraitmattingError(f"{source}: no images found in it (looked for {known})")
    return source, sources


def check_output(plan: Plan) -> None:
    """No source may lie, by whatever links, where results are written."""
    if os.path.exists(plan.output) and not os.path.isdir(plan.output):
        raise PortraitmattingError(f"{plan.output}: is no folder; choose another output")
    folders = [Path(os.path.realpath(plan.output / kind)) for kind in plan.kinds]
    for source in plan.sources:
        above = Path(os.path.realpath(plan.root / source)).parents
        if any(folder in above for folder in folders):
            raise PortraitmattingError(
                f"{plan.root / source}: lies among the results in {plan.output}, which could "
                "overwrite it; choose another output"
            )


def check_names(plan: Plan) -> None:
    """No two sources may be written as one file, as a.jpg and a.png would be."""
    taken: dict[str, Path] = {}
    for source in plan.sources:
        place = source.with_suffix(plan.suffix)
        name = str(place).casefold() if _FOLDS_CASE else str(place)
        other = taken.setdefault(name, source)
        if other is not source:
            raise PortraitmattingError(
                f"{plan.root / other} and {source.name} would both be written as {place}: "
                "rename one of them, or run them apart"
            )
