"""The plan of a folder job, what it reads and writes, made before anything heavy is loaded."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from portraitmatting.atomic import check_replaceable
from portraitmatting.choices import BITS, DEEP_FORMATS, FORMATS, KINDS, OPAQUE_FORMATS
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.results import existing, folds_names, result_names
from portraitmatting.images.listing import READABLE, list_images

VIDEOS = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts",
    ".mts", ".m2ts", ".3gp", ".ogv",
})  # fmt: skip

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Plan:
    """The images of a job, and the paths of its results: OUTPUT/KIND/same/tree/name.suffix."""

    root: Path
    """The folder that the sources are relative to."""
    sources: list[Path]
    """Relative to `root`, sorted."""
    output: Path
    kinds: tuple[str, ...]
    suffix: str
    bits: int | None
    """8 or 16 per channel; None for as many as the image has and the format holds."""
    names: dict[Path, Path] = field(default_factory=dict)
    """Names of results that keep the suffix of their image, of `result_names`."""
    unread: Counter[str] = field(default_factory=Counter)
    """Suffixes of files that seem to be images but are of kinds that are not read, counted."""

    def target(self, source: Path, kind: str) -> Path:
        """The path of the result of this kind."""
        return self.output / kind / self.name(source)

    def name(self, source: Path) -> Path:
        """The path of an image's results below the folder of each kind."""
        return self.names.get(source) or source.with_suffix(self.suffix)

    def describe_sources(self) -> str:
        """ "3 images", with their kinds if there are several: "3 images (1 .heic, 2 .jpg)"."""
        suffixes = Counter(source.suffix.lower() for source in self.sources)
        count = len(self.sources)
        text = f"{count} {'image' if count == 1 else 'images'}"
        if len(suffixes) < 2:
            return text
        counts = (f"{suffixes[suffix]} {suffix}" for suffix in sorted(suffixes))
        return f"{text} ({', '.join(counts)})"

    def remarks(self) -> list[str]:
        """Lines for people about results that they may not expect."""
        if not self.names:
            return []
        source, name = next(iter(self.names.items()))
        return [
            f"{len(self.names)} images share a name with another: their results keep the suffix "
            f"({one_line(str(source))} becomes {one_line(str(name))})"
        ]


def plan_folder(
    source: Source | Sequence[Source],
    output: Source = "mattes",
    kinds: Sequence[str] = ("alpha", "rgba"),
    image_format: str = "png",
    bits: int | None = None,
    may_be_empty: bool = False,
) -> Plan:
    """Find the images, and name their results.

    Args:
        source: a folder, searched with its subfolders, or an image; or several, also patterns
            such as "*.jpg". Results of one folder keep its tree, those of several sources the tree
            below the folder that they have in common.
        output: the folder for results.
        kinds: some of `KINDS`.
        image_format: "png", "webp", "tiff" or "jpg".
        bits: 8 or 16 per channel; None for as many as each image has.
        may_be_empty: whether a folder without images is no error, as when it is watched.

    Raises `PortraitmattingError` if there is nothing to do, if a result could overwrite a source,
    or if the format cannot hold what is asked for.
    """
    if not str(output).strip():
        raise PortraitmattingError("the output is an empty name: give a folder")
    plan = plan_results(output, kinds, image_format, bits)
    root, sources, unread = _find(
        expand([source] if isinstance(source, str | os.PathLike) else source),
        plan.output,
        may_be_empty,
    )
    names = result_names(sources, plan.suffix, cache(lambda: folds_names(plan.output)))
    plan = replace(plan, root=root, sources=sources, names=names, unread=unread)
    check_output(plan)
    return plan


def plan_results(
    output: Source,
    kinds: Sequence[str] = ("alpha", "rgba"),
    image_format: str = "png",
    bits: int | None = None,
) -> Plan:
    """A plan without sources; raises `PortraitmattingError` like `plan_folder`.

    Args:
        output: as in `plan_folder`.
        kinds: as in `plan_folder`.
        image_format: as in `plan_folder`.
        bits: as in `plan_folder`.
    """
    format_name = image_format.lower().lstrip(".")
    if format_name not in FORMATS:
        raise PortraitmattingError(
            f"unknown format {image_format!r}: use one of {', '.join(sorted(FORMATS))}"
        )
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise PortraitmattingError(f"unknown output {unknown[0]!r}: use any of {', '.join(KINDS)}")
    if "rgba" in kinds and format_name in OPAQUE_FORMATS:
        raise PortraitmattingError(
            "JPEG has no transparency, rgba needs it: use png, webp or tiff, or leave rgba out, as "
            "in --output alpha composite"
        )
    if bits is not None and bits not in BITS:
        raise PortraitmattingError(f"{bits} bits per channel: use 8 or 16")
    if bits == 16 and format_name not in DEEP_FORMATS:
        raise PortraitmattingError(f"{image_format} holds 8 bits per channel: use png or tiff")
    return Plan(Path(), [], Path(output), tuple(dict.fromkeys(kinds)), f".{format_name}", bits)


def check_output(plan: Plan) -> None:
    """Raise `PortraitmattingError` if a source is, perhaps by links, where results are written."""
    if os.path.exists(plan.output) and not os.path.isdir(plan.output):
        raise PortraitmattingError(f"{plan.output}: is no folder; choose another output")
    folders = [os.path.join(os.path.realpath(plan.output / kind), "") for kind in plan.kinds]
    for source in plan.sources:
        real = os.path.realpath(plan.root / source)
        if any(real.startswith(folder) for folder in folders):
            raise PortraitmattingError(
                f"{plan.root / source}: is among the results in {plan.output}, which could "
                "overwrite it; choose another output"
            )


def check_writable(plan: Plan) -> None:
    """Raise `PortraitmattingError` if results cannot be written; no file is left."""
    for folder in (plan.output, *(plan.output / kind for kind in plan.kinds)):
        try:
            check_replaceable(existing(folder) / f"result{plan.suffix}")
        except OSError as error:
            raise PortraitmattingError(
                f"{one_line(str(folder))}: cannot write there ({error.strerror}): choose another "
                "output"
            ) from error


def expand(sources: Iterable[Source]) -> list[Path]:
    """The paths, with patterns that no shell has expanded, as on Windows, replaced by the files
    that match them."""
    paths: list[Path] = []
    for source in sources:
        name = os.fspath(source)
        if not name.strip():
            raise PortraitmattingError("the input is an empty name: give a folder or an image")
        if "\0" in name:
            raise PortraitmattingError(f"{one_line(name)}: no name of a file")
        if glob.has_magic(name) and not os.path.lexists(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise PortraitmattingError(f"{one_line(name)}: no file matches this pattern")
            paths += map(Path, matches)
        else:
            paths.append(Path(source))
    if not paths:
        raise PortraitmattingError("no input: give a folder or an image")
    return paths


def _find(
    inputs: list[Path], output: Path, may_be_empty: bool
) -> tuple[Path, list[Path], Counter[str]]:
    """The root, the images relative to it, and `Plan.unread`."""
    images: dict[Path, None] = {}
    unread: Counter[str] = Counter()
    root = _root(inputs)
    for source in inputs:
        if os.path.isfile(source):
            refuse_video(source)
            images[Path(os.path.relpath(source, root))] = None
            continue
        if not os.path.isdir(source):
            raise PortraitmattingError(f"{one_line(str(source))}: no such file or folder")
        if os.path.realpath(source) == os.path.realpath(output):
            raise PortraitmattingError(
                f"{one_line(str(output))}: is the input folder too; choose another output"
            )
        below = Path(os.path.relpath(source, root))
        for path in list_images(source, output, unread, skip_results=True):
            images[below / path] = None
    if not images and not may_be_empty:
        where = one_line(str(inputs[0])) if len(inputs) == 1 else "the inputs"
        if not unread and any(map(_holds_video, inputs)):
            raise PortraitmattingError(f"{where}: videos but no images: use eval_webcam.py")
        raise PortraitmattingError(nothing_found(where, unread))
    return root, sorted(images), unread


def _root(inputs: list[Path]) -> Path:
    """The one input folder, or the folder that all inputs have in common."""
    folders = [path if os.path.isdir(path) else path.parent for path in inputs]
    if len(folders) == 1:
        return folders[0]
    names = [os.path.normpath(folder) for folder in folders]
    if any(os.path.isabs(name) or name.startswith(os.pardir) for name in names):
        names = [os.path.abspath(name) for name in names]
    try:
        return Path(os.path.commonpath([os.path.join(name, "") for name in names]))
    except ValueError:
        raise PortraitmattingError(
            "the inputs are on several drives: give each drive a call of its own"
        ) from None


def refuse_video(source: Path) -> None:
    if source.suffix.lower() in VIDEOS:
        name = one_line(str(source))
        raise PortraitmattingError(
            f"{name}: is a video, not an image: python eval_webcam.py {name} -o out.mp4"
        )


def nothing_found(where: str, unread: Counter[str]) -> str:
    """The error if there are no images to do."""
    if unread:
        return f"{where}: {describe_unread(unread)}, and no other images in it: convert them first"
    known = " ".join(sorted(READABLE))
    return f"{where}: no images found in it (looked for {known})"


def _holds_video(folder: Path) -> bool:
    return any(
        os.path.splitext(name)[1].lower() in VIDEOS
        for _, _, names in os.walk(folder)
        for name in names
    )


def describe_unread(unread: Counter[str]) -> str:
    """ "3 not read: .cr2, .psd"."""
    return f"{sum(unread.values())} not read: {', '.join(sorted(unread))}"
