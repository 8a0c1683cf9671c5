"""The folder of checkpoints, and the file that a name means. Needs no PyTorch."""

import hashlib
import os
from pathlib import Path

from portraitmatting.errors import CheckpointError

DEFAULT = "portraitmatting_swint"
FOLDER_VARIABLE = "PORTRAITMATTING_CHECKPOINTS"
"""Environment variable that names another folder in which checkpoints are looked up by name."""
SUMS = "SHA256SUMS"
"""The table of known checkpoints in a checkpoints folder, as sha256sum writes and checks it."""


def locate(source: str | os.PathLike[str] | None = None) -> tuple[Path, str | None]:
    """The file that `source` means, and the sha256 listed for it if it was asked for by name.

    Raises CheckpointError for a name that is not in the checkpoints folder; a path need not exist.
    """
    if not isinstance(source, str | os.PathLike | None):
        raise CheckpointError(f"expected a checkpoint's name or path, got {type(source).__name__}")
    name = DEFAULT if source is None else str(source)
    if not name:
        raise CheckpointError("the checkpoint's name is empty: leave it out for the default one")
    if source is not None and (os.sep in name or Path(name).suffix or os.path.exists(name)):
        return Path(name), None
    folder = checkpoints_folder()
    path = folder / f"{name}.safetensors"
    if not os.path.isfile(path):
        names = sorted(p.stem for p in folder.glob("*.safetensors"))
        raise CheckpointError(
            f"no checkpoint named {name!r} in {folder} (there: {', '.join(names) or 'none'}): "
            f"give a path, or set {FOLDER_VARIABLE} to the folder that holds it"
        )
    return path, known_sums(folder).get(path.name)


def is_onnx(source: str | os.PathLike[str] | None) -> bool:
    """Whether `source` is the path of an ONNX file, by its suffix."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".onnx"


def check_source(source: str) -> str:
    """`source`, if it names a file that exists; raises CheckpointError."""
    path, _ = locate(source)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: {'a folder' if os.path.isdir(path) else 'no such file'}")
    return source


def checkpoints_folder() -> Path:
    """$PORTRAITMATTING_CHECKPOINTS, or the folder inside the package, or that of its repository."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    package = Path(__file__).parent.parent
    inside_wheel = package / "checkpoints"
    return inside_wheel if inside_wheel.is_dir() else package.parent / "checkpoints"


def known_sums(folder: Path) -> dict[str, str]:
    """File name to sha256, as listed in the folder's table; empty without one."""
    table = folder / SUMS
    if not table.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in table.read_text().splitlines() if line.strip())
    return {name.strip().lstrip("*"): digest for digest, name in lines}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
