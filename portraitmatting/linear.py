"""Linear layers, through oneDNN where that is the faster way, and two of them by blocks of rows."""

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x (..., in) by weight (out, in) plus bias, and `residual` (..., out) added.

    For inference in fp32 on x86, PyTorch sends linear layers to MKL, which on some processors
    reaches less than half of oneDNN's speed, and makes the sum a pass of its own. The operator here
    is the one that torch.compile uses for its CPU code.
    """
    if _onednn(x, weight):
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
        none: list[float] = []
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", none, "")
    x = F.linear(x, weight, bias)
    return x if residual is None else residual + x


def is_recording() -> bool:
    """Whether a graph is being recorded: compiled, exported or traced.

    Then sizes may be symbols, which no `if` may ask, and operators have to be plain ones.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def add_mlp(x: Tensor, norm: nn.LayerNorm, mlp: Mlp) -> Tensor:
    """x + mlp(norm(x)), without dropout, for x (..., in), which for inference on a CPU is
    overwritten.

    There the rows go block by block, so that what is hidden, four times the size of x, stays in the
    processor's cache and needs no memory to speak of. GELU works in place: as a part of oneDNN's
    operator it takes longer.
    """
    up, down = mlp.fc1, mlp.fc2
    if x.device.type != "cpu" or torch.is_grad_enabled() or is_recording():
        hidden = F.gelu(linear(norm(x), up.weight, up.bias))
        return linear(hidden, down.weight, down.bias, residual=x)
    for rows in x.view(-1, x.shape[-1]).split(max(1, _HIDDEN // len(up.weight))):
        hidden = torch.ops.aten.gelu_(linear(norm(rows), up.weight, up.bias))
        rows.copy_(linear(hidden, down.weight, down.bias, residual=rows))
    return x


_HIDDEN = 2**20
"""Values of a block: 4 MB in fp32."""


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
