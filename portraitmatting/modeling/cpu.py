"""Inference on a CPU: when it is one, how much of a map it takes at once, and linear layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP = 2**21
"""Values of the widest map between two layers, when a map is worked off in strips: 8 MB in fp32,
which stay in a processor's last cache. It hardly matters for the time, half and four times as many
take as long; but memory for larger pieces would be asked from the system anew each time."""


def is_recording() -> bool:
    """Whether a graph is being recorded: compiled, exported or traced.

    Then sizes may be symbols, which no `if` may ask, and operators have to be plain ones.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def infers_on_cpu(x: Tensor) -> bool:
    """Whether `x` is part of an inference in fp32 on a CPU, and of no recorded graph.

    There work in place, piece by piece so that what is between two layers stays in the processor's
    cache, is faster than whole maps. Elsewhere it is not (a GPU), or not allowed (gradients), or
    the compiler's business.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_recording()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) by weight (out, in), plus bias (out,).

    With AVX512 through oneDNN for inference: MKL, which PyTorch takes, keeps its own AVX512 code
    for Intel's processors. With AVX2 MKL is the faster one, on AMD's too.
    """
    if _ONEDNN and infers_on_cpu(x):
        none: list[float] = []
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", none, "")
    return F.linear(x, weight, bias)


def add_linear_(sums: Tensor, x: Tensor, layer: nn.Linear) -> None:
    """Add layer(x) to `sums` in place: x (N, in), sums (N, out), without gradients."""
    if _ONEDNN:
        sums.add_(linear(x, layer.weight, layer.bias))
    else:
        sums.add_(layer.bias).addmm_(x, layer.weight.t())


_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
