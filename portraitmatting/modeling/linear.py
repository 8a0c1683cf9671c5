"""Linear layers; the only place in the network that knows of processors."""

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, computed by oneDNN where that is faster than MKL, PyTorch's choice for fp32.

    MKL keeps its AVX512 code for Intel's processors. With AVX2 it is the faster one everywhere.
    """

    def forward(self, x: Tensor) -> Tensor:
        if _ONEDNN and _infers_in_fp32_on_cpu(x):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return super().forward(x)


def is_recording() -> bool:
    """Whether a graph is compiled, exported or traced, in which sizes may be symbols."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _infers_in_fp32_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_recording()
    )


_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
