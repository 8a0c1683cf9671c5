"""The network as an ONNX file, run by onnxruntime: for machines whose GPU PyTorch does not know."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portraitmatting.checkpoint.format import METADATA_KEY, CheckpointInfo, parse_metadata
from portraitmatting.device import PRECISIONS, describe_device, describe_precision
from portraitmatting.errors import CheckpointError, PortraitmattingError
from portraitmatting.modeling.model import ModelConfig, Prediction, check_images

INPUTS, OUTPUTS = ("image",), Prediction._fields

_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""Device to what onnxruntime calls it."""
_AUTO = ("cuda", "directml", "cpu")
"""What "auto" tries, in order. Not CoreML: it is made for graphs of one size."""
_PLACES = torch.device("cpu")
_MEMORY_WORDS = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")


class OnnxModel:
    """A file of `portraitmatting export`, called like the network that it came from.

    RGB (B, 3, H, W) in [0, 1], H and W multiples of 32, to raw alpha and trimap logits, float32 on
    the CPU. `device` is "cpu", "cuda", "cuda:1", "directml", "directml:1", "coreml", or "auto" for
    the best that this onnxruntime has; only "auto" falls back. Raises `CheckpointError` for a file
    that is not ours, and `PortraitmattingError` for a device that is not there.
    """

    device = _PLACES
    """Where tensors go in and come out, whatever computes."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        runtime = _onnxruntime()
        self._path = path
        self._name, providers = choose_providers(device, runtime.get_available_providers())
        self._session = _open(runtime, path, providers)
        # onnxruntime itself falls back to the CPU, with nothing but a warning.
        first = _PROVIDERS[self._name.partition(":")[0]]
        if self._session.get_providers()[0] != first:
            if device != "auto":
                raise PortraitmattingError(
                    f"device {device!r}: onnxruntime could not start its {first}: use cpu or auto"
                )
            self._name = "cpu"
        self.config, self.checkpoint = _metadata(self._session, path)

    def __call__(self, image: Tensor) -> Prediction:
        check_images(image)
        array = np.ascontiguousarray(image.detach().to(_PLACES, torch.float32).numpy())
        try:
            outputs = self._session.run(OUTPUTS, {INPUTS[0]: array})
        except Exception as error:  # onnxruntime's have no common base of their own
            if any(word in str(error).lower() for word in _MEMORY_WORDS):
                raise torch.OutOfMemoryError(str(error)) from None
            raise
        return Prediction(*map(torch.from_numpy, outputs))

    def __str__(self) -> str:
        """What computes, for people."""
        name = describe_device(_PLACES) if self._name == "cpu" else self._name
        return f"onnxruntime on {name}"

    @property
    def dtype(self) -> torch.dtype:
        """What the file computes in; its inputs and outputs are float32 all the same."""
        return PRECISIONS[self.checkpoint.precision]

    @cached_property
    def fingerprint(self) -> str:
        """Of the file."""
        return hashlib.sha256(self._path.read_bytes()).hexdigest()[:16]

    def require(self, device: str | torch.device | None, precision: str | None) -> None:
        """Raise `PortraitmattingError` if these are not what was chosen at loading and export."""
        if device is not None and str(device) not in ("auto", self._name):
            raise PortraitmattingError(
                f"device {str(device)!r}: an ONNX file's is chosen as it is loaded: "
                f"load_model({str(self._path)!r}, {str(device)!r})"
            )
        own = describe_precision(self.dtype)
        if precision not in (None, "auto", own):
            raise PortraitmattingError(
                f"precision {precision!r}: {self._path} computes in {own}, which was chosen when "
                "it was exported"
            )


def choose_providers(
    device: str, available: Sequence[str]
) -> tuple[str, list[str | tuple[str, dict[str, Any]]]]:
    """The device's name as chosen and onnxruntime's providers for it, the CPU always the last.

    `available` is what onnxruntime was built with. Raises `PortraitmattingError`.
    """
    kind, _, index = device.partition(":")
    if device == "auto":
        device = kind = next(name for name in _AUTO if _PROVIDERS[name] in available)
    numbered = kind in ("cuda", "directml") and index.isdecimal()
    if kind not in _PROVIDERS or (":" in device and not numbered):
        known = ", ".join(_PROVIDERS)
        raise PortraitmattingError(f"unknown device {device!r}: for ONNX files use auto, {known}")
    provider = _PROVIDERS[kind]
    if provider not in available:
        raise PortraitmattingError(
            f"device {device!r}: this onnxruntime has no {provider}; use cpu or auto, or install "
            "the onnxruntime that has it"
        )
    chosen = (provider, {"device_id": index}) if numbered else provider
    return device, [chosen] if kind == "cpu" else [chosen, _PROVIDERS["cpu"]]


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise PortraitmattingError(
            'ONNX files need onnxruntime: pip install -e ".[onnx]"'
        ) from None
    return onnxruntime


def _open(runtime: Any, path: Path, providers: list[Any]) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions
    if _PROVIDERS["directml"] in str(providers[0]):
        options.enable_mem_pattern = False  # DirectML asks for it
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        said = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: not an ONNX file, or a damaged one ({said}): export it again"
        ) from None


def _metadata(session: Any, path: Path) -> tuple[ModelConfig, CheckpointInfo]:
    """The configuration and information in a file of ours."""
    ends = session.get_inputs(), session.get_outputs()
    names = tuple(tuple(end.name for end in side) for side in ends)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if names != (INPUTS, OUTPUTS) or text is None:
        raise CheckpointError(
            f"{path}: an ONNX file, but not of `portraitmatting export`: it takes "
            f"{', '.join(names[0])} and gives {', '.join(names[1])}"
        )
    try:
        values, info = parse_metadata(text)
        config = ModelConfig.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if info.precision not in PRECISIONS:
        raise CheckpointError(f"{path}: its precision {info.precision!r} is none that is known")
    return config, info
