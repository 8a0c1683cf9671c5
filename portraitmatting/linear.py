"""Linear layers, through oneDNN where that is the faster way."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """x (..., in) by weight (out, in) plus bias, then GELU, or `residual` (..., out) added.

    For inference in fp32 on x86, PyTorch sends linear layers to MKL, which on some processors
    reaches less than half of oneDNN's speed, and makes GELU and the sum passes of their own. The
    operator here is the one that torch.compile uses for its CPU code.
    """
    if _onednn(x, weight):
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
        none: list[float] = []
        activation = ("gelu", none, "none") if gelu else ("none", none, "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *activation)
    x = F.linear(x, weight, bias)
    if gelu:
        x = F.gelu(x)
    return x if residual is None else residual + x


def is_recording() -> bool:
    """Whether a graph is being recorded: compiled, exported or traced.

    Then sizes may be symbols, which no `if` may ask, and operators have to be plain ones.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_recording()  # compilers fuse by themselves; export wants plain operators
        and _AVAILABLE
    )


_AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
