"""Arrays in, mattes out."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from portraitmatting.composite import Background, composite, rgba
from portraitmatting.depth import to_depth
from portraitmatting.device import choose_precision, describe_device
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import estimate_foreground
from portraitmatting.heads import fuse
from portraitmatting.model import PortraitMatting
from portraitmatting.transforms import as_rgb, network_size, to_source_size, to_tensor

_PREVIEW_SIDE = 1024


@dataclass(frozen=True)
class Matte:
    """A picture's alpha matte, and what can be made of it; everything has the picture's size."""

    image: np.ndarray
    """HxWx3 RGB, as given to the predictor: uint8, uint16, or float32 in [0, 1]."""
    alpha: np.ndarray
    """HxW float32 in [0, 1]: the share of each pixel that is the person."""
    trimap: np.ndarray
    """HxW uint8: 0 background, 128 unknown, 255 foreground."""

    @cached_property
    def foreground(self) -> np.ndarray:
        """The person's own colours, HxWx3 of the image's dtype; estimated by pymatting on first use."""
        return estimate_foreground(self.image, self.alpha)

    def rgba(self) -> np.ndarray:
        """The cut-out, HxWx4 of the image's dtype, with straight (not premultiplied) alpha."""
        return rgba(self.foreground, self.alpha)

    def composite(self, background: Background | np.ndarray | str) -> np.ndarray:
        """The person over a background, as `portraitmatting.composite` takes it; HxWx3."""
        return composite(self.foreground, self.alpha, background, image=self.image)

    def _repr_png_(self) -> bytes:
        """The cut-out as a notebook shows it, at most 1024 pixels a side."""
        from PIL import Image

        preview = Image.fromarray(to_depth(self.rgba(), np.uint8))
        preview.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        buffer = io.BytesIO()
        preview.save(buffer, "PNG")
        return buffer.getvalue()


class Predictor:
    """Runs a model on pictures of any size.

    `short_side` (a multiple of 32; the working size's short side) and `precision` ("auto", "fp32",
    "bf16", "fp16") default to what the model's checkpoint says, `device` to where the model is.
    Pictures are HxWx3 RGB or HxW grey, uint8, uint16 or float in [0, 1]. Whatever cannot be used
    raises `PortraitmattingError`.
    """

    def __init__(
        self,
        model: PortraitMatting,
        short_side: int | None = None,
        precision: str | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        info = model.checkpoint
        if info is None and short_side is None:
            raise PortraitmattingError("this model has no checkpoint to say at which size: give short_side")
        self.short_side = short_side or (info.working_short_side if info else 0)
        network_size(1, 1, self.short_side)  # raises now what every picture would raise
        self.device = torch.device(device) if device else next(model.parameters()).device
        self.dtype = choose_precision(precision or (info.precision if info else "auto"), self.device)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)

    def __str__(self) -> str:
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        return f"{describe_device(self.device)}, {precision}, short side {self.short_side}"

    @cached_property
    def settings(self) -> str:
        """A text that differs between predictors whose mattes may differ, for keeping track of results."""
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().data)
        return f"{digest.hexdigest()[:16]} {self.short_side} {str(self.dtype).split('.')[-1]}"

    def network_size(self, image: np.ndarray) -> tuple[int, int]:
        """The working size (h, w) of an image; those that share one can run together."""
        return network_size(image.shape[0], image.shape[1], self.short_side)

    def predict(self, image: np.ndarray) -> Matte:
        """One picture to its matte."""
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Matte]:
        """Pictures of any sizes to their mattes, in order; those of one working size run together."""
        pictures = [as_rgb(image) for image in images]
        sizes = [self.network_size(picture) for picture in pictures]
        mattes: list[Matte | None] = [None] * len(pictures)
        for size in dict.fromkeys(sizes):
            members = [i for i, other in enumerate(sizes) if other == size]
            alphas, trimaps = self._run(torch.stack([to_tensor(pictures[i], size) for i in members]))
            for i, alpha, trimap in zip(members, alphas, trimaps, strict=True):
                mattes[i] = _matte(pictures[i], alpha, trimap)
        return [matte for matte in mattes if matte is not None]

    def predict_tensor(self, images: Tensor) -> Tensor:
        """Float RGB Bx3xHxW in [0, 1] to float32 mattes Bx1xHxW in [0, 1], on the model's device."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            shape = "x".join(map(str, images.shape))
            raise PortraitmattingError(
                f"expected float pictures Bx3xHxW in [0, 1], got {images.dtype} {shape}"
            )
        source = images.shape[-2:]
        size = network_size(*source, self.short_side)
        matte, _ = self._network(_resize(images.to(self.device).float(), size))
        return _resize(matte, source).clamp(0, 1)

    def _run(self, batch: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Bx3xhxw on the CPU to mattes Bxhxw float32 and trimap classes Bxhxw uint8, as arrays.

        A batch that a GPU has no memory for is halved until it fits.
        """
        try:
            if self.device.type == "cuda":
                batch = batch.pin_memory()
            matte, trimap = self._network(batch.to(self.device, non_blocking=True))
            return matte[:, 0].cpu().numpy(), trimap.cpu().numpy()
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                size = "x".join(map(str, batch.shape[-2:]))
                smaller = max(32, self.short_side * 3 // 4 // 32 * 32)
                raise PortraitmattingError(
                    f"out of memory on {self.device} for a single picture at {size}: "
                    f"try a short side of {smaller}"
                ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        halves = [self._run(half) for half in batch.chunk(2)]
        return tuple(np.concatenate(parts) for parts in zip(*halves, strict=True))

    @torch.inference_mode()
    def _network(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures at working size to mattes Bx1xhxw float32 and trimap classes Bxhxw uint8."""
        batch = batch.contiguous(memory_format=torch.channels_last)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed):
            alpha, trimap_logits = self.model(batch)
        return fuse(alpha, trimap_logits), trimap_logits.argmax(dim=1).to(torch.uint8)


def _matte(picture: np.ndarray, alpha: np.ndarray, trimap: np.ndarray) -> Matte:
    height, width = picture.shape[:2]
    values = np.array([0, 128, 255], np.uint8)[trimap]
    return Matte(
        picture,
        to_source_size(alpha, (height, width)),
        cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=tuple(size), mode="bicubic", antialias=True).clamp(0, 1)
