"""The device of this process and the precision that it computes in."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from portraitmatting.device import choose_device, choose_precision


@dataclass(frozen=True)
class Precision:
    """Weights, losses and updates stay fp32; the network runs in `dtype`."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """For the network's forward pass."""
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses in fp16, whose gradients would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose(device_name: str, precision_name: str) -> Precision:
    """Under torchrun, "auto" and "cuda" mean this process's own GPU; "auto" precision prefers bf16
    to fp16 on a GPU, since it needs no scaling, and is fp32 elsewhere."""
    device = choose_device(device_name)
    if device.type == "cuda" and device.index is None:
        device = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(device)
    if precision_name == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        precision_name = "bf16"
    return Precision(device, choose_precision(precision_name, device))
