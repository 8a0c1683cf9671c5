"""Read a file of weights, whatever wrote it, or say plainly what is wrong with it."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from portraitmatting.errors import CheckpointError

_WRAPPINGS = ("ema", "state_dict", "model")
"""Names under which training scripts keep the weights; averaged weights before plain ones."""


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU, without wrapping and `module.` prefix) and text metadata of a file.

    Reads safetensors and pickles; the latter without running any code of theirs. Raises
    `CheckpointError`, which says what was found instead.
    """
    head = _head(path)
    # In this order: the length that safetensors begin with may itself begin like a pickle.
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return _unwrap(_read_pickle(path), path), {}
    raise CheckpointError(f"{path}: {_describe(head)}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: a folder, expected a checkpoint file in it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _describe(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty: download it again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights: run `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, not the weights: open the download link in a browser"
    return "neither safetensors nor a PyTorch checkpoint: download it again and check its sha256"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return _without_prefix(tensors), dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: a damaged or truncated safetensors file ({error}): download it again"
        ) from None


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols: the error says it all
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise _truncated(path) from None
        raise CheckpointError(
            f"{path}: refused, since this pickle holds more than weights and could run code; "
            "ask its maker for plain weights or a safetensors file"
        ) from None
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError, KeyError):
        raise _truncated(path) from None


def _truncated(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: a damaged or truncated PyTorch checkpoint ({path.stat().st_size:,} bytes): "
        "download it again"
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The first dict of tensors under the known wrappings, at any depth."""
    while isinstance(content, Mapping):
        inner = next((content[w] for w in _WRAPPINGS if isinstance(content.get(w), Mapping)), None)
        if inner is None:
            tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
            if tensors:
                return _without_prefix(tensors)
            break
        content = inner
    found = ", ".join(map(repr, list(content)[:5])) if isinstance(content, Mapping) else ""
    raise CheckpointError(
        f"{path}: no weights found in it, only {found or type(content).__name__}: "
        f"expected a state dict, plain or under one of {', '.join(_WRAPPINGS)}"
    )


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module.` that DataParallel and EMA wrappers put before every key."""
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)
