"""The network as an ONNX file, run by onnxruntime: for GPUs that PyTorch does not support."""

import ctypes
import hashlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portraitmatting.checkpoint.format import METADATA_KEY, CheckpointInfo, parse_metadata
from portraitmatting.device import PRECISIONS, describe_device, describe_precision, driver_cuda
from portraitmatting.errors import CheckpointError, PortraitmattingError, one_line
from portraitmatting.modeling.model import ModelConfig, Prediction, check_images

_log = logging.getLogger("portraitmatting")
INPUTS, OUTPUTS = ("image",), Prediction._fields

_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""Devices, and the names of onnxruntime's execution providers for them."""
_AUTO = ("cuda", "directml", "cpu")
"""The devices that "auto" tries, in order. Not CoreML, which is meant for graphs of one size."""
_CPU = torch.device("cpu")
_MEMORY_WORDS = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")


class OnnxModel:
    """A file of `portraitmatting export`, called like `PortraitMatting`.

    RGB (B, 3, H, W) in [0, 1], H and W multiples of 32, to alpha and trimap logits, float32. They
    are on CUDA if both onnxruntime and PyTorch use it, else on the CPU.
    """

    def __init__(self, path: Path, device: str = "cpu", data: bytes | None = None) -> None:
        """Raises `CheckpointError` for a file that `portraitmatting export` did not write, and
        `PortraitmattingError` for a device that this machine does not have.

        Args:
            path: the ONNX file.
            device: "cpu", "cuda", "cuda:1", "directml", "directml:1", "coreml", or "auto" for the
                best that this onnxruntime has. Only "auto" falls back to the CPU.
            data: the content of the file, if `path` is a file on another machine.
        """
        runtime = _onnxruntime()
        self._path, self._data = path, data
        self._name, providers = choose_providers(device, runtime.get_available_providers())
        self._session, message = _open(runtime, path, data, providers)
        # onnxruntime falls back to the CPU with only a warning.
        first = _PROVIDERS[self._name.partition(":")[0]]
        if self._session.get_providers()[0] != first:
            reason = f"onnxruntime could not start its {first} ({message or _why_not(first)})"
            if device != "auto":
                raise PortraitmattingError(f"device {device!r}: {reason}: use cpu or auto")
            _log.warning("%s; using the CPU", reason)
            self._name = "cpu"
        self.device = _device_of_tensors(self._name)
        """The device of the inputs and outputs; onnxruntime may compute on another."""
        self.config, self.checkpoint = _metadata(self._session, path)
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxModel, (self._path, self._name, self._data or self._path.read_bytes())

    def __call__(self, image: Tensor) -> Prediction:
        check_images(image)
        if os.getpid() != self._process:
            raise PortraitmattingError(
                f"{self._path}: loaded before this process was forked, without onnxruntime's "
                "threads: load it in each worker, or start workers by spawn"
            )
        if self.device.type == "cuda":
            return self._run_bound(image)
        array = np.ascontiguousarray(image.detach().to(_CPU, torch.float32).numpy())
        with _memory_errors():
            outputs = self._session.run(OUTPUTS, {INPUTS[0]: array})
        return Prediction(*map(torch.from_numpy, outputs))

    def _run_bound(self, image: Tensor) -> Prediction:
        """Run on tensors that stay on their device, without copies to the CPU and back."""
        image = image.detach().to(self.device, torch.float32, memory_format=torch.contiguous_format)
        image = image.contiguous()
        batch, _, height, width = image.shape
        outputs = [
            torch.empty(batch, channels, height, width, device=self.device) for channels in (1, 3)
        ]
        binding = self._session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, INPUTS[0], image),
            *((binding.bind_output, *pair) for pair in zip(OUTPUTS, outputs, strict=True)),
        ):
            shape = tuple(tensor.shape)
            bind(
                name, self.device.type, self.device.index or 0, np.float32, shape, tensor.data_ptr()
            )
        if self.device.type == "cuda":  # onnxruntime computes on a stream of its own
            torch.cuda.current_stream(self.device).synchronize()
        with _memory_errors():
            self._session.run_with_iobinding(binding)
        return Prediction(*outputs)

    def __str__(self) -> str:
        """onnxruntime and its device, for people to read."""
        name = describe_device(_CPU) if self._name == "cpu" else self._name
        return f"onnxruntime on {name}"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the file computes in; its inputs and outputs are always float32."""
        return PRECISIONS[self.checkpoint.precision]

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the file."""
        return hashlib.sha256(self._data or self._path.read_bytes()).hexdigest()[:16]

    def require(self, device: str | torch.device | None, precision: str | None) -> None:
        """Raise `PortraitmattingError` unless the device is that of loading and the precision that
        of export; None and "auto" are accepted."""
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
    """The name of the device, with "auto" resolved, and onnxruntime's providers for it, the CPU
    always last.

    `available` are the providers that onnxruntime was built with. Raises `PortraitmattingError` for
    a device that is not among them.
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


def _device_of_tensors(name: str) -> torch.device:
    """CUDA if onnxruntime uses it and PyTorch can, else the CPU."""
    if not name.startswith("cuda") or not torch.cuda.is_available():
        return _CPU
    # With its index: to PyTorch "cuda" is the current GPU of a thread, to onnxruntime the first.
    return torch.device("cuda", torch.device(name).index or 0)


def _why_not(provider: str) -> str:
    """Why onnxruntime does not start a provider: for CUDA, usually a library that is missing."""
    if provider != _PROVIDERS["cuda"]:
        return "it does not say why"
    name = "onnxruntime_providers_cuda"
    name = f"{name}.dll" if sys.platform == "win32" else f"lib{name}.so"
    try:
        ctypes.CDLL(str(Path(_onnxruntime().__file__).parent / "capi" / name))
    except (OSError, AttributeError) as error:
        return one_line(str(error))
    return "no NVIDIA driver" if driver_cuda() is None else "its libraries can be loaded"


@contextmanager
def _memory_errors() -> Iterator[None]:
    """onnxruntime's errors of missing memory become `torch.OutOfMemoryError`."""
    try:
        yield
    except Exception as error:  # onnxruntime's errors have no base class of their own
        if any(word in str(error).lower() for word in _MEMORY_WORDS):
            raise torch.OutOfMemoryError(str(error)) from None
        raise


def _open(runtime: Any, path: Path, data: bytes | None, providers: list[Any]) -> tuple[Any, str]:
    """A session, and the message that onnxruntime prints if it falls back to the CPU, else ""."""
    if data is None and not path.is_file():
        raise CheckpointError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # no messages: errors are raised as exceptions
    if _PROVIDERS["directml"] in str(providers[0]):
        options.enable_mem_pattern = False  # DirectML requires this
    if _PROVIDERS["cuda"] in str(providers[0]):
        # The default, an exhaustive search, takes seconds for every new working size.
        name, choice = providers[0] if isinstance(providers[0], tuple) else (providers[0], {})
        providers = [(name, {**choice, "cudnn_conv_algo_search": "HEURISTIC"}), *providers[1:]]
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            session = runtime.InferenceSession(data or str(path), options, providers=providers)
        errors = [line for line in printed.getvalue().splitlines() if line.startswith("EP Error")]
        return session, one_line(errors[0].removeprefix("EP Error "))[:300] if errors else ""
    except Exception as error:
        message = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: not an ONNX file, or a damaged one ({message}): export it again"
        ) from None


def _metadata(session: Any, path: Path) -> tuple[ModelConfig, CheckpointInfo]:
    """The configuration and the information that `export` stores in a file."""
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
        raise CheckpointError(f"{path}: its precision {info.precision!r} is unknown")
    return config, info
