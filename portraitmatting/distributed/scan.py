"""What is still to be done, by what lies at the input and at the output.

As `make` does: a result is done if it is no older than its image and no older than the record of
the settings, OUTPUT/.portraitmatting/KIND, which is written anew whenever they change. So nothing
has to be written down for each image, and what a killed run has finished counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from portraitmatting.distributed.storage import Storage, explained
from portraitmatting.errors import PortraitmattingError
from portraitmatting.folder.plan import Plan, check_names, check_output
from portraitmatting.images.kinds import READABLE

if TYPE_CHECKING:
    from tqdm import tqdm

RECORDS = ".portraitmatting"
_CHUNK = 1 << 16

TODO = pa.schema({"source": pa.binary(), "kinds": pa.string()})
"""An image's path (bytes: file names need not be UTF-8) and the results to make of it, separated
by spaces. Compact: about as many bytes as the path has, and 20."""


@dataclass(frozen=True)
class Survey:
    todo: pa.Table
    """Of schema `TODO`, in the order of the tree."""
    skipped: int
    """Images of which every result is there and up to date."""


def check_outputs(source: Storage, output: Storage, plan: Plan) -> None:
    """Raises `PortraitmattingError` unless `source` is a folder, apart from the results."""
    if not source.exists():
        raise PortraitmattingError(f"{source}: no such folder")
    if source.fs != output.fs:
        return
    if source.root == output.root:
        raise PortraitmattingError(f"{output}: is the input folder too; choose another output")
    for kind in plan.kinds:
        if f"{source.root}/".startswith(f"{output.name(kind)}/"):
            raise PortraitmattingError(
                f"{source}: lies among the results in {output}, which could overwrite it; choose "
                "another output"
            )


def survey(
    source: Storage,
    output: Storage,
    plan: Plan,
    settings: Mapping[str, str],
    overwrite: bool,
    bar: "tqdm[None]",
) -> Survey:
    """Look through both places, folder by folder, after `check_outputs`.

    `settings` of each kind are recorded at the output; `overwrite` makes whatever is there count
    as out of date. Raises `PortraitmattingError` as `plan_folder` does.
    """
    since = {kind: _record(output, kind, settings[kind], overwrite) for kind in plan.kinds}
    chunks: list[pa.RecordBatch] = []
    sources: list[bytes] = []
    missing: list[str] = []
    found = 0
    for folder, images in source.images(exclude=output):
        found += len(images)
        _check(source, output, plan, [folder / name for name in images])
        there = {kind: output.changed((kind / folder).as_posix()) for kind in plan.kinds}
        for name, changed in images.items():
            target = plan.target(Path(name), "").name
            kinds = [
                kind
                for kind in plan.kinds
                if there[kind].get(target, -1.0) < max(changed, since[kind])
            ]
            if kinds:
                sources.append(bytes(folder / name))
                missing.append(" ".join(kinds))
            if len(sources) == _CHUNK:
                chunks.append(pa.record_batch([sources, missing], schema=TODO))
                sources, missing = [], []
        bar.update(len(images))
    if not found:
        known = " ".join(sorted(READABLE))
        raise PortraitmattingError(f"{source}: no images found in it (looked for {known})")
    chunks.append(pa.record_batch([sources, missing], schema=TODO))
    todo = pa.Table.from_batches(chunks)
    return Survey(todo, found - todo.num_rows)


def _check(source: Storage, output: Storage, plan: Plan, sources: list[Path]) -> None:
    """One folder's images as the folder job checks them: a clash of names is always within one
    folder."""
    plan = replace(plan, sources=sources)
    if source.folder is not None and output.folder is not None:
        plan = replace(plan, root=source.folder, output=output.folder)
        check_output(plan)
    check_names(plan)


def _record(output: Storage, kind: str, settings: str, anew: bool) -> float:
    """When these settings began to hold, by the output's own clock."""
    path = f"{RECORDS}/{kind}"
    data = settings.encode(errors="surrogateescape")
    with explained(output):
        if anew or kind not in output.changed(RECORDS) or output.read(path) != data:
            output.write(path, data)
        return output.changed(RECORDS)[kind]
