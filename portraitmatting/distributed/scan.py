"""What is still to be done, by the files at the input and at the output.

As with `make`, a result is done if it is no older than its image and no older than the record of
the settings, OUTPUT/.portraitmatting/KIND, which is written anew whenever they change. So nothing
has to be recorded for each image, and results of a killed run count.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa
from tqdm import tqdm

from portraitmatting.distributed.storage import Storage, explained
from portraitmatting.errors import PortraitmattingError, one_line
from portraitmatting.folder.plan import Plan, check_output, nothing_found
from portraitmatting.folder.results import folds_names, result_names
from portraitmatting.images.listing import RECORDS

_INPUT = "input"
_CHUNK = 1 << 16

TODO = pa.schema({"source": pa.binary(), "name": pa.binary(), "kinds": pa.string()})
"""An image's path (bytes: file names need not be UTF-8); its results' path below their kind's
folder where that is not `Plan.name`, else empty; the kinds to make of it, separated by spaces.
Compact: about as many bytes as the path has, and 28."""


@dataclass(frozen=True)
class Scan:
    todo: pa.Table
    """Of schema `TODO`, in the order of the tree."""
    skipped: int
    """Images of which every result exists and is up to date."""
    unread: Counter[str]
    """Suffixes of files that seem to be images but are of kinds that are not read."""


def check_outputs(source: Storage, output: Storage, plan: Plan) -> None:
    """Raises `PortraitmattingError` unless `source` is a folder outside the results."""
    if not source.exists():
        raise PortraitmattingError(f"{source}: no such folder")
    if source.fs != output.fs:
        return
    if source.root == output.root:
        raise PortraitmattingError(f"{output}: is the input folder too; choose another output")
    for kind in plan.kinds:
        if f"{source.root}/".startswith(f"{output.name(kind)}/"):
            raise PortraitmattingError(
                f"{source}: is among the results in {output}, which could overwrite it; choose "
                "another output"
            )


def scan(
    source: Storage,
    output: Storage,
    plan: Plan,
    settings: Mapping[str, str],
    overwrite: bool,
    bar: "tqdm[None]",
) -> Scan:
    """Look through both storages, folder by folder, after `check_outputs`.

    Args:
        source, output: the folders of images and results.
        plan: of `plan_results`.
        settings: of each kind of result; recorded at the output.
        overwrite: every result counts as out of date.
        bar: advances with each image listed.

    Raises `PortraitmattingError` as `plan_folder` does.
    """
    is_new = overwrite or _check_input(source, output)
    since = {kind: _record(output, kind, settings[kind], overwrite) for kind in plan.kinds}
    folds = cache(lambda: output.folder is not None and folds_names(output.folder))
    chunks: list[pa.RecordBatch] = []
    rows: list[tuple[bytes, bytes, str]] = []
    unread: Counter[str] = Counter()
    count = 0
    for folder, images in source.images(exclude=output, unread=unread):
        count += len(images)
        paths = [folder / name for name in images]
        if source.folder is not None and output.folder is not None:
            check_output(replace(plan, root=source.folder, output=output.folder, sources=paths))
        # Only images of one folder can share a name.
        names = result_names(paths, plan.suffix, folds)
        times = {kind: output.changed((kind / folder).as_posix()) for kind in plan.kinds}
        for path, changed in zip(paths, images.values(), strict=True):
            name = names.get(path)
            file = (name or plan.name(path)).name
            kinds = [
                kind
                for kind in plan.kinds
                if times[kind].get(file, -1.0) < max(changed, since[kind])
            ]
            if kinds:
                rows.append((bytes(path), bytes(name) if name else b"", " ".join(kinds)))
            if len(rows) == _CHUNK:
                chunks.append(_batch(rows))
                rows = []
        bar.update(len(images))
    if not count:
        raise PortraitmattingError(nothing_found(str(source), unread))
    if is_new:  # only now: a mistyped input must not claim this output
        with explained(output):
            output.write(f"{RECORDS}/{_INPUT}", os.fsencode(_name(source)))
    todo = pa.Table.from_batches([*chunks, _batch(rows)], schema=TODO)
    return Scan(todo, count - todo.num_rows, unread)


def _batch(rows: list[tuple[bytes, bytes, str]]) -> pa.RecordBatch:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return pa.record_batch(columns, schema=TODO)


def _check_input(source: Storage, output: Storage) -> bool:
    """Whether the output is new. Raises `PortraitmattingError` if it holds the results of another
    input: those of images of the same name would count as done."""
    with explained(output):
        if _INPUT not in output.changed(RECORDS):
            return True
        earlier = os.fsdecode(output.read(f"{RECORDS}/{_INPUT}"))
    if earlier != _name(source):
        raise PortraitmattingError(
            f"{output}: holds the results of {one_line(earlier)}: choose another output, or "
            "overwrite them with --overwrite"
        )
    return False


def _name(source: Storage) -> str:
    return os.path.realpath(source.folder) if source.folder is not None else source.url


def _record(output: Storage, kind: str, settings: str, overwrite: bool) -> float:
    """The time since which these settings apply, by the output's own clock."""
    path = f"{RECORDS}/{kind}"
    data = settings.encode(errors="surrogateescape")
    with explained(output):
        if overwrite or kind not in output.changed(RECORDS) or output.read(path) != data:
            output.write(path, data)
        return output.changed(RECORDS)[kind]
