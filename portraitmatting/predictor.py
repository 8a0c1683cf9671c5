"""Arrays in, mattes out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.composite import Background, composite, rgba
from portraitmatting.depth import FLOAT_SLACK, to_depth
from portraitmatting.device import (
    choose_device,
    choose_precision,
    describe_device,
    describe_precision,
    is_out_of_memory,
)
from portraitmatting.encode import encode
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import estimate_foreground
from portraitmatting.heads import fuse
from portraitmatting.model import PortraitMatting
from portraitmatting.presets import preset_short_side
from portraitmatting.refine import refine, refine_tensor
from portraitmatting.transforms import (
    MULTIPLE,
    as_rgb,
    network_size,
    resize,
    resize_tensor,
    to_source_size,
    to_tensor,
)

_PREVIEW_SIDE = 1024
_TRIMAP_VALUES = np.array([0, 128, 255], np.uint8)


@dataclass(frozen=True, eq=False)
class Matte:
    """A picture's alpha matte, and what can be made of it; everything has the picture's size."""

    image: NDArray[Any]
    """HxWx3 RGB, as given to the predictor: uint8, uint16, or float32 in [0, 1]. Not a copy, if it
    came as RGB integers: leave it alone as long as the foreground may still be asked for."""
    alpha: NDArray[np.float32]
    """HxW float32 in [0, 1]: the share of each pixel that is the person."""
    trimap: NDArray[np.uint8]
    """HxW uint8: 0 background, 128 unknown, 255 foreground."""

    @cached_property
    def foreground(self) -> NDArray[Any]:
        """The person's own colours, HxWx3 of the image's dtype; estimated on first use."""
        return estimate_foreground(self.image, self.alpha)

    def rgba(self) -> NDArray[Any]:
        """The cut-out, HxWx4 of the image's dtype, with straight (not premultiplied) alpha."""
        return rgba(self.foreground, self.alpha)

    def composite(self, background: Background | NDArray[Any] | str) -> NDArray[Any]:
        """The person over a background as `portraitmatting.composite` takes it: a colour, a picture
        of any size, "blur", ...; HxWx3 of the image's dtype."""
        return composite(self.foreground, self.alpha, background, image=self.image)

    def _repr_png_(self) -> bytes:
        """The cut-out as a notebook shows it, at most 1024 pixels a side."""
        height, width = self.alpha.shape
        scale = min(1, _PREVIEW_SIDE / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # Shrunk first: colours of a preview take no time, those of 12 megapixels take seconds.
        image, alpha = resize(self.image, size), to_source_size(self.alpha, size)
        cut_out = rgba(to_depth(estimate_foreground(image, alpha), np.uint8), alpha)
        return encode(cut_out, ".png", icc_profile=None)


class Predictor:
    """Runs a model on pictures of any size.

    `short_side` (a multiple of 32; the working size's short side) and `precision` ("auto", "fp32",
    "bf16", "fp16") default to what the model's checkpoint says, `device` to where the model is; the
    model itself is moved there. `preset`, one of `PRESETS`, takes its part of the short side.
    Pictures are HxWx3 RGB or HxW grey, uint8, uint16 or float in [0, 1]. Whatever cannot be used
    raises `PortraitmattingError`.
    """

    def __init__(
        self,
        model: PortraitMatting,
        short_side: int | None = None,
        precision: str | None = None,
        device: str | torch.device | None = None,
        preset: str | None = None,
    ) -> None:
        info = model.checkpoint
        if short_side is None:
            if info is None:
                raise PortraitmattingError(
                    "this model has no checkpoint that says at which size to run: give short_side"
                )
            short_side = info.working_short_side
        network_size(1, 1, short_side)  # raises now what every picture would raise
        if precision is None:
            precision = info.precision if info else "auto"
        self.short_side = short_side
        if preset is not None:
            self.short_side = preset_short_side(self, preset)
        self.device = choose_device(str(device)) if device else next(model.parameters()).device
        self.dtype = choose_precision(precision, self.device)
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self._largest_batch: dict[tuple[int, int], int] = {}
        """Of working sizes at which larger ones ran out of memory."""

    def __str__(self) -> str:
        precision = describe_precision(self.dtype)
        return f"{describe_device(self.device)}, {precision}, short side {self.short_side}"

    @property
    def settings(self) -> str:
        """Text that differs where mattes may differ: weights, working size, precision, and how
        they come back to the picture's size."""
        return f"{self._fingerprint} {self.short_side} {describe_precision(self.dtype)} guided"

    @cached_property
    def _fingerprint(self) -> str:
        """Of the weights."""
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.float().cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def network_size(self, image: NDArray[Any]) -> tuple[int, int]:
        """The working size (h, w) of an image; those that share one can run together."""
        return network_size(image.shape[0], image.shape[1], self.short_side)

    def predict(self, image: NDArray[Any]) -> Matte:
        """One picture to its matte."""
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[NDArray[Any]]) -> list[Matte]:
        """Pictures of any sizes to their mattes, in order.

        All that share a working size run as one batch; if the device has no memory for it, in
        halves, quarters and so on.
        """
        pictures = [as_rgb(image) for image in images]
        sizes = [self.network_size(picture) for picture in pictures]
        mattes: dict[int, Matte] = {}
        for size in dict.fromkeys(sizes):
            members = [i for i, other in enumerate(sizes) if other == size]
            batch = torch.stack([to_tensor(pictures[i], size) for i in members])
            alphas, trimaps = (maps.cpu().numpy() for maps in self._network(batch))
            for i, alpha, trimap in zip(members, alphas[:, 0], trimaps, strict=True):
                mattes[i] = _matte(pictures[i], alpha, trimap)
        return [mattes[i] for i in range(len(pictures))]

    def predict_tensor(self, images: Tensor) -> Tensor:
        """Float RGB Bx3xHxW in [0, 1] to float32 mattes Bx1xHxW in [0, 1], on the model's device.

        `predict` in PyTorch from end to end, without gradients. Its mattes are the same for float
        pictures (1e-4); integers are rounded once more by `predict`, at the working size.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            shape = "x".join(map(str, images.shape))
            raise PortraitmattingError(f"expected RGB pictures Bx3xHxW, got {shape}")
        if not images.is_floating_point() or not _in_unit_range(images):
            raise PortraitmattingError(
                f"expected float pictures in [0, 1], got {images.dtype} in "
                f"{images.min():.4g}..{images.max():.4g}: divide by the largest possible value"
            )
        height, width = images.shape[-2:]
        size = network_size(height, width, self.short_side)
        pictures = images.detach().to(self.device, torch.float32).clamp(0, 1)
        matte, _ = self._network(resize_tensor(pictures, size))
        return refine_tensor(pictures, matte)

    def _network(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Bx3xhxw at working size, on any device, to mattes Bx1xhxw float32 and trimap classes
        Bxhxw uint8, in as many parts as the device's memory asks for."""
        size = (batch.shape[-2], batch.shape[-1])
        mattes: list[Tensor] = []
        trimaps: list[Tensor] = []
        while len(batch):
            count = min(len(batch), self._largest_batch.get(size, len(batch)))
            found = self._forward(batch[:count])
            if found is not None:
                mattes.append(found[0])
                trimaps.append(found[1])
                batch = batch[count:]
            elif count > 1:
                self._largest_batch[size] = count // 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            else:
                smaller = max(MULTIPLE, self.short_side * 3 // 4 // MULTIPLE * MULTIPLE)
                raise PortraitmattingError(
                    f"out of memory on {self.device} for a single picture at {size[0]}x{size[1]}: "
                    f"try a short side of {smaller}"
                )
        return torch.cat(mattes), torch.cat(trimaps)

    @torch.inference_mode()
    def _forward(self, batch: Tensor) -> tuple[Tensor, Tensor] | None:
        """One pass of the network; None if there is no memory for it.

        The error does not leave this function: it would keep alive what filled the memory.
        """
        mixed = self.dtype != torch.float32
        try:
            batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed):
                alpha, trimap_logits = self.model(batch)
            return fuse(alpha, trimap_logits), trimap_logits.argmax(dim=1).to(torch.uint8)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None


def _matte(picture: NDArray[Any], alpha: NDArray[np.float32], classes: NDArray[np.uint8]) -> Matte:
    height, width = picture.shape[:2]
    how = cv2.INTER_NEAREST_EXACT
    trimap: NDArray[Any] = cv2.resize(_TRIMAP_VALUES[classes], (width, height), interpolation=how)
    return Matte(picture, refine(picture, alpha), trimap)


def _in_unit_range(images: Tensor) -> bool:
    return bool(images.min() >= -FLOAT_SLACK and images.max() <= 1 + FLOAT_SLACK)
