"""Checkpoint files, ours and the author's, as tensors and metadata, without the network itself.

Ours are safetensors files whose metadata holds the network's configuration and how to use the
weights. The author's are pickles, which are read without running any code in them, and their keys
are translated to ours.
"""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from portraitmatting import choices
from portraitmatting.atomic import atomic_path
from portraitmatting.device import is_out_of_memory
from portraitmatting.errors import CheckpointError, one_line

METADATA_KEY = "portraitmatting"
"""Under which a file's metadata, of safetensors or ONNX, holds `metadata_text`."""
STORAGE = {name: getattr(torch, dtype) for name, dtype in choices.STORAGE.items()}

_WRAPPINGS = ("ema", "state_dict", "model")
"""Names under which training scripts keep the weights; averaged weights before plain ones."""
_DEEPEST_WRAPPING = 8
_CODES, _SCALE = ".int8", ".scale"
"""What is added to a tensor's name for its codes and for the scale of each output channel."""
_SMALLEST = 4096
"""Tensors of fewer values stay fp16 beside int8: norms, biases, position tables; 1 % of the
network."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's metadata says, also as `PortraitMatting.checkpoint`."""

    origin: str
    """Where the weights come from."""
    licence: str
    working_short_side: int
    """The short side, in pixels, at which the weights give their best mattes; a multiple of 32."""
    precision: str = "auto"
    """What to compute in: "fp32", "bf16", "fp16", or "auto" (as `choose_precision`)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Anything else worth knowing: data, schedule, scores, limits."""

    def __post_init__(self) -> None:
        if type(self.working_short_side) is not int:
            raise CheckpointError(f"working_short_side {self.working_short_side!r} is no integer")
        choices.check_short_side(self.working_short_side)
        choices.check_precision(self.precision)


AUTHOR = CheckpointInfo(
    origin="Portraitmatting (Qinglin Liu, 2023), the author's own checkpoint",
    licence="academic use only",
    working_short_side=768,
)
"""The author's files have no metadata."""


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, CheckpointInfo]:
    """A checkpoint of ours, or the author's in any wrapping: weights under our names, the network's
    configuration (None: the published one), and the checkpoint's description.

    Raises `CheckpointError`, which names the file; whether the weights fit the network is not
    checked.
    """
    state, texts = read_state(path)
    text = texts.get(METADATA_KEY)
    try:
        state = dequantise_int8(state)
        if any(key.startswith("start_conv.") for key in state):  # the author's
            state = from_author_keys(state)
        elif text is None:
            raise CheckpointError(
                f"not a Portraitmatting checkpoint: {len(state)} tensors named "
                f"{', '.join(map(repr, list(state)[:3]))}, ..."
            )
        return (state, *(parse_metadata(text) if text is not None else (None, AUTHOR)))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU, without wrapping and `module.` prefix) and text metadata of a file.

    Reads safetensors and pickles, of pickles nothing but tensors and plain values. Raises
    `CheckpointError`, which says what the file is instead.
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
    except Exception as error:
        raise _unreadable(path, "safetensors file", error) from None


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickle protocols; the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise _unreadable(path, "PyTorch checkpoint", error) from None
        raise CheckpointError(
            f"{path}: refused, since this pickle holds more than weights and could run code; "
            "ask its maker for plain weights or a safetensors file"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise _unreadable(path, "PyTorch checkpoint", error) from None


def _unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    if is_out_of_memory(error):
        return CheckpointError(f"{path}: no memory to read it, or a damaged {kind}")
    message = one_line(str(error).split("\n")[0])[:120]
    return CheckpointError(
        f"{path}: a damaged or truncated {kind} of {path.stat().st_size:,} bytes ({message}): "
        "download it again"
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The first dict of tensors under the known wrappings, at any depth."""
    for _ in range(_DEEPEST_WRAPPING):  # a pickled dict may hold itself
        if not isinstance(content, Mapping):
            break
        inner = next((content[w] for w in _WRAPPINGS if isinstance(content.get(w), Mapping)), None)
        if inner is None:
            tensors = {
                k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)
            }
            if tensors:
                return _without_prefix(tensors)
            break
        content = inner
    names = ", ".join(map(repr, list(content)[:5])) if isinstance(content, Mapping) else ""
    raise CheckpointError(
        f"{path}: no weights found in it, only {one_line(names)[:200] or type(content).__name__}: "
        f"expected a state dict, plain or under one of {', '.join(_WRAPPINGS)}"
    )


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module.` that DataParallel and EMA wrappers put before every key."""
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def metadata_text(config: Any, info: CheckpointInfo) -> str:
    """A file's metadata as JSON; `config` is the network's `ModelConfig`."""
    # Under one key: safetensors writes several keys in random order, and then two files of the same
    # weights would differ in their sha256.
    return json.dumps({"config": asdict(config), **asdict(info)}, ensure_ascii=False)


def parse_metadata(text: str) -> tuple[dict[str, Any], CheckpointInfo]:
    """The arguments of `metadata_text`, the configuration as a dict; raises `CheckpointError` for
    any other text."""
    try:
        described = json.loads(text)
        config = dict(described.pop("config"))
        return config, CheckpointInfo(**described)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"its metadata cannot be understood ({error}): made by another version?"
        ) from None


_RENAMED = [
    (r"start_conv\.(\d)", r"encoder.stem.\1"),
    (r"trans\.patch_embed", r"encoder.patch_embed"),
    (r"trans\.layers\.(\d)\.blocks", r"encoder.stages.\1"),
    (r"trans\.layers\.(\d)\.downsample", r"encoder.merges.\1"),
    (r"trans\.norm(\d)", r"encoder.norms.\1"),
    (r"ppm\.comp", r"ppm.reduce"),
    (r"ppm\.features", r"ppm.branches"),
    (r"tran(\d)\.blocks", r"decoder.fusions.\1.blocks"),
    (r"convtri", r"trimap_head.layers"),
    (r"conv5", r"alpha_head.coarse"),
    (r"convo", r"alpha_head.fine"),
]
_FUSION = re.compile(r"conv([1-4])\.0\.")
_DROPPED = re.compile(r".*\.relative_position_index")  # follows from the window's size alone


def from_author_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The author's state dict under our names; every key is translated or dropped on purpose.

    Raises `CheckpointError` for a key that is neither.
    """
    return {_rename(key): value for key, value in state.items() if not _DROPPED.fullmatch(key)}


def _rename(key: str) -> str:
    if match := _FUSION.match(key):  # conv1 is the lowest of the U, our fusion 0
        return f"decoder.fusions.{int(match[1]) - 1}.project.{key[match.end() :]}"
    for pattern, ours in _RENAMED:
        name, count = re.subn(rf"^{pattern}(?=\.)", ours, key)
        if count:
            return name
    raise CheckpointError(f"unknown key {key!r}: not a Portraitmatting checkpoint of the author's")


def save_checkpoint(
    path: str | PathLike[str],
    model: Any,
    info: CheckpointInfo,
    storage: str = "fp32",
) -> None:
    """Write a network atomically as one of our checkpoints.

    Args:
        path: the file to write.
        model: a `PortraitMatting`.
        info: what the metadata says of it.
        storage: of the weights, "fp32", "fp16" or "int8".

    Raises `CheckpointError`.
    """
    if storage not in STORAGE:
        raise CheckpointError(f"storage {storage!r}: expected one of {', '.join(STORAGE)}")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if storage == "int8":
        state = quantise_int8(state)
    else:
        state = {key: value.to(STORAGE[storage]) for key, value in state.items()}
    text = metadata_text(model.config, info)
    try:
        with atomic_path(Path(path)) as temporary:
            # Not save_file, whose files only their owner may read.
            temporary.write_bytes(save(state, {METADATA_KEY: text}))
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be written ({reason})") from None


def smallest_exact(model: Any) -> str:
    """The smallest storage without any loss for a `PortraitMatting`: "fp16" or "fp32"."""
    exact = all(value.equal(value.half().to(value.dtype)) for value in model.state_dict().values())
    return "fp16" if exact else "fp32"


def quantise_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A float state dict with its large weights as int8 and a float32 scale per channel.

    Symmetric, per output channel (the first dimension): value = code * scale, with codes from -127
    to 127 and scale the channel's largest magnitude / 127 (Krishnamoorthi, arXiv 1806.08342,
    section 3.1). A weight NAME becomes NAME.int8 and NAME.scale; the others become fp16 under their
    own names.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if not value.is_floating_point():
            out[name] = value
        elif value.ndim < 2 or value.numel() < _SMALLEST:
            out[name] = value.half()
        else:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            codes = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
            out[name + _CODES], out[name + _SCALE] = codes.view(value.shape), scale
    return out


def dequantise_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float state dict that `quantise_int8` was given, as exactly as 8 bits allow.

    Entries that are not quantised are returned as they are, so that any state dict may be given. A
    weight without its scale raises `CheckpointError`.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(_CODES):
            weight = name.removesuffix(_CODES)
            scale = state.get(weight + _SCALE)
            if value.dtype != torch.int8 or not value.ndim:
                raise CheckpointError(f"{name} holds no weights of 8 bits, but {value.dtype}")
            if scale is None or scale.shape != value.shape[:1] or not scale.is_floating_point():
                raise CheckpointError(f"{name} lacks a scale for each of its {len(value)} channels")
            out[weight] = value.float() * scale.float().view(-1, *[1] * (value.ndim - 1))
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) + _CODES in state):
            out[name] = value
    return out
