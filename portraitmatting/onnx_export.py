"""Write the network as an ONNX file, for batches and images of any size.

`portraitmatting export` calls this; `onnx_model` runs the file with onnxruntime.
"""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from portraitmatting.atomic import atomic_path
from portraitmatting.checkpoint.format import METADATA_KEY, CheckpointInfo, metadata_text
from portraitmatting.checkpoint.registry import sha256
from portraitmatting.device import PRECISIONS
from portraitmatting.errors import PortraitmattingError
from portraitmatting.modeling.model import PortraitMatting, Prediction
from portraitmatting.onnx_model import INPUTS, OUTPUTS, OnnxModel

OPSET = 17
"""The oldest opset with an operator for layer normalisation: more runtimes read older opsets."""
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2}
"""The largest difference between the file's outputs and PyTorch's in fp32; relative to their
largest magnitude if that is above 1."""

_HEADROOM = 0.5
"""The share of fp16's range that values may reach in the check: photos may lead to larger ones."""
_TRACED_SHAPE = (2, 3, 64, 96)
CHECKED_SHAPES = ((1, 3, 224, 160), (3, 3, 32, 96))
"""Input shapes that every file is checked with: other batches, sizes and numbers of windows."""


def export_onnx(
    path: Path,
    model: PortraitMatting,
    precision: str = "fp32",
    overwrite: bool = False,
) -> float:
    """Write an ONNX file, check it, and return the largest difference from `model`'s outputs.

    Its input is "image" Bx3xHxW, its outputs are "alpha" Bx1xHxW and "trimap_logits" Bx3xHxW, all
    float32 as in `PortraitMatting`, with free B, H and W. Raises `PortraitmattingError`, and then
    writes no file, if the graph is invalid or its outputs differ from those of `model`.

    Args:
        path: the file; it ends in .onnx and appears whole or not at all.
        model: the network, with `checkpoint` set.
        precision: "fp32" or "fp16", in which the file computes.
        overwrite: whether a file that exists is replaced.
    """
    if precision not in TOLERANCE:
        known = ", ".join(TOLERANCE)
        raise PortraitmattingError(f"precision {precision!r}: ONNX files are in {known}")
    if path.suffix.lower() != ".onnx":
        raise PortraitmattingError(f"{path}: expected a name that ends in .onnx")
    if path.exists() and not overwrite:
        raise PortraitmattingError(f"{path} exists: add --overwrite to replace it")
    if model.checkpoint is None:
        raise PortraitmattingError("this model has no checkpoint that says at which size to run")
    info = replace(model.checkpoint, precision=precision)
    onnx = _onnx()
    model = copy.deepcopy(model).eval().cpu().float()
    try:
        with atomic_path(path) as temporary:
            _trace(model, PRECISIONS[precision], temporary)
            graph = onnx.load(temporary)
            onnx.helper.set_model_props(graph, {METADATA_KEY: metadata_text(model.config, info)})
            onnx.save(graph, temporary)
            try:
                onnx.checker.check_model(temporary, full_check=True)
            except Exception as error:
                message = str(error).split("\n")[0]
                raise PortraitmattingError(f"{path}: not a valid graph ({message})") from None
            difference = _check_outputs(temporary, model, TOLERANCE[precision])
            if precision == "fp16":
                _check_fp16_range(model)
            return difference
    except OSError as error:
        raise PortraitmattingError(f"{path}: cannot be written ({error.strerror})") from None


class _Graph(nn.Module):
    """The network in another dtype, with inputs and outputs in float32."""

    def __init__(self, model: PortraitMatting, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype

    def forward(self, image: Tensor) -> Prediction:
        return Prediction(*(output.float() for output in self.model(image.to(self.dtype))))


def _trace(model: PortraitMatting, dtype: torch.dtype, path: Path) -> None:
    """Write the graph, without our metadata.

    This uses PyTorch's older exporter, which traces. The newer one, torch.export, takes from the
    example whether a map is one window wide or wider, and its graph is then wrong for others.
    """
    free = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        # A size that our code turns into a constant is an error; PyTorch's own asserts are not.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("error", category=torch.jit.TracerWarning, module="portraitmatting")
        torch.onnx.export(
            _Graph(model, dtype).eval(),
            (torch.rand(_TRACED_SHAPE, generator=torch.Generator().manual_seed(0)),),
            path,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_axes=dict.fromkeys(INPUTS + OUTPUTS, free),
            opset_version=OPSET,
            dynamo=False,
        )


def _check_outputs(path: Path, model: PortraitMatting, tolerance: float) -> float:
    """Compare the file's outputs with the network's: the largest difference; an error if that is
    above the tolerance."""
    exported = OnnxModel(path)
    largest = 0.0
    for shape in CHECKED_SHAPES:
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = model(image)
        shown = "x".join(map(str, shape))
        try:
            outputs = exported(image)
        except Exception as error:
            raise PortraitmattingError(
                f"the exported graph cannot run at {shown}, nothing is written: {error}"
            ) from None
        for name, one, other in zip(OUTPUTS, outputs, expected, strict=True):
            scale = max(1.0, other.abs().max().item())
            difference = (one - other).abs().max().item() / scale if one.shape == other.shape else 1
            if not difference <= tolerance:
                raise PortraitmattingError(
                    f"the exported graph gives another {name} than the network at {shown} (by "
                    f"{difference:.2g}), nothing is written"
                )
            largest = max(largest, difference)
    return largest


def _check_fp16_range(model: PortraitMatting) -> None:
    """Raise `PortraitmattingError` if the network's values exceed the range of fp16.

    `_check_outputs` does not notice that, because onnxruntime may compute fp16 in fp32 on a CPU.
    Here the network is run in fp16 by PyTorch, and the largest output of any layer is compared
    with the range.
    """
    half = _Graph(model, torch.float16).eval()
    peaks: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs = output if isinstance(output, (tuple, list)) else [output]
            largest = max(float(o.abs().max()) for o in outputs if isinstance(o, Tensor))
            peaks[name] = max(peaks.get(name, 0.0), largest)

        return hook

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        for shape in CHECKED_SHAPES:
            image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                model(image)
                outputs = half(image)
            where, peak = max(peaks.items(), key=lambda item: item[1])
            finite = all(bool(output.isfinite().all()) for output in outputs)
            if not finite or peak > _HEADROOM * torch.finfo(torch.float16).max:
                raise PortraitmattingError(
                    f"these weights overflow in fp16 (up to {peak:.3g} in {where}, of 65,504), "
                    "nothing is written: use fp32"
                )
    finally:
        for handle in hooks:
            handle.remove()


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise PortraitmattingError('export needs onnx: pip install -e ".[onnx]"') from None
    return onnx


def with_source(info: CheckpointInfo, path: Path) -> CheckpointInfo:
    """`info` with the name and hash of the file that was exported."""
    source = {"exported_from": path.name, "exported_from_sha256": sha256(path)}
    return replace(info, facts=info.facts | source)
