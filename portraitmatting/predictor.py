"""Images in, mattes out."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import IO, Any, NamedTuple, TypeAlias, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from portraitmatting.checkpoint.load import load_model
from portraitmatting.choices import preset_short_side
from portraitmatting.device import (
    attempt,
    check_compiler,
    check_process,
    choose_device,
    choose_precision,
    describe_device,
    describe_precision,
    explain_memory,
    limit_threads,
)
from portraitmatting.errors import ImageError, PortraitmattingError, one_line
from portraitmatting.guided_filter import guided_upsample, guided_upsample_tensor
from portraitmatting.images.decode import DecodedImage, decode, from_pillow
from portraitmatting.images.files import read_image
from portraitmatting.images.pixels import FLOAT_SLACK, to_unit
from portraitmatting.matte import Matte
from portraitmatting.modeling.heads import fuse
from portraitmatting.modeling.model import PortraitMatting, Prediction
from portraitmatting.on_gpu import download, guided_matte, shrink_pixels
from portraitmatting.onnx_model import OnnxModel
from portraitmatting.transforms import (
    MULTIPLE,
    as_rgb,
    network_size,
    resize_tensor,
    split_alpha,
    to_tensor,
)
from portraitmatting.trimap import BACKGROUND, FOREGROUND, UNKNOWN, VALUES

_Network = Callable[[Tensor], Prediction]


class Prepared(NamedTuple):
    """An image, and what the network reads of it."""

    image: DecodedImage
    size: tuple[int, int]
    """The working size (h, w)."""
    tensor: Tensor
    """3xhxw float32 in [0, 1] at working size, on the CPU; if the network is on CUDA, which then
    does the rest, the image's own pixels HxWx3, pinned."""


class Estimate(NamedTuple):
    """An image, and what the network says of it."""

    image: DecodedImage
    alpha: Tensor
    """1xhxw float32 in [0, 1] at working size, on the CPU once `arrived` is."""
    trimap: Tensor
    """hxw uint8 classes, alike."""
    arrived: torch.cuda.Event | None
    """When both are copied from a CUDA device; None elsewhere, where copies wait."""
    on_gpu: tuple[Tensor, Tensor, Tensor] | None = None
    """What a CUDA device holds of the image: its pixels HxWx3; the same and the matte at working
    size."""


Source: TypeAlias = (
    str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[Any] | DecodedImage
)
"""What `predict` takes for an image."""


def as_image(source: Source) -> DecodedImage:
    """HxWx3 RGB over white, as `as_rgb` gives it, with its transparency, profile and metadata.

    Raises PortraitmattingError for what is no image, and for files that cannot be read.
    """
    if isinstance(source, DecodedImage):
        return replace(source, pixels=as_rgb(source.pixels))
    if isinstance(source, str | os.PathLike):
        return read_image(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode(bytes(source))
    if isinstance(source, Image.Image):
        return from_pillow(source)
    if hasattr(source, "read"):
        return decode(_read_open(cast("IO[bytes]", source)))
    try:
        array = np.asarray(source)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, tensors on a GPU
        array = np.empty(0, object)
    if array.dtype.kind not in "uifb" or not array.ndim:
        raise PortraitmattingError(
            "expected an image (a path, a file's bytes, a PIL image or an array HxW, HxWx3 or "
            f"HxWx4), got {type(source).__name__}"
        )
    # Of another byte order where a file's bytes were taken as they are.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    pixels, alpha = split_alpha(array)
    return DecodedImage(as_rgb(pixels), None, alpha)


def _read_open(file: IO[bytes]) -> bytes:
    """What is left of an open file; its name is not known for sure."""
    try:
        data: object = file.read()
    except (OSError, ValueError) as error:  # ValueError: closed, or text that is none
        reason = one_line(str(error)) or type(error).__name__
        raise ImageError(f"the open file cannot be read ({reason}): give its path") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(
            f'the open file gives {type(data).__name__}, not bytes: open it with "rb", or give its '
            "path"
        )
    return bytes(data)


class Predictor:
    """Runs a model on images of any size.

    Without `model` it is the default checkpoint's, on the best device there is. `short_side` (a
    multiple of 32; the working size's short side) and `precision` ("auto", "fp32", "bf16", "fp16")
    default to what the model's checkpoint says, `device` to where the model is; the
    model itself is moved there, but an `OnnxModel` has its device and precision already. `preset`,
    one of `PRESETS`, takes its part of the short side. `compile` runs the network through
    torch.compile, which needs a C++ compiler and takes a minute or more at the first image of each
    working size: for videos, cameras and images of one shape. Whatever cannot be used raises
    `PortraitmattingError`.

    An image is a path, a file's bytes, an open file, a PIL image, or an array HxW (grey), HxWx3
    (RGB) or HxWx4 (RGBA), uint8, uint16 or float in [0, 1]. Where it is transparent itself, so is
    its matte. One predictor may be used from several threads.

    `predict` and `predict_batch` are three steps, which a job may spread over threads: `prepare`
    and `finish`, from any thread, and between them `estimate`, which alone runs the network.
    """

    def __init__(
        self,
        model: PortraitMatting | OnnxModel | None = None,
        short_side: int | None = None,
        precision: str | None = None,
        device: str | torch.device | None = None,
        preset: str | None = None,
        compile: bool = False,
    ) -> None:
        if model is None:
            model, device = load_model(), device or "auto"
        if not isinstance(model, PortraitMatting | OnnxModel):
            raise PortraitmattingError(
                f"expected a model, got {type(model).__name__}: load_model(NAME) makes one of a "
                "checkpoint"
            )
        info = model.checkpoint
        if short_side is None:
            if info is None:
                raise PortraitmattingError(
                    "this model has no checkpoint that says at which size to run: give short_side"
                )
            short_side = info.working_short_side
        network_size(1, 1, short_side)  # raises now what every image would raise
        if precision is None:
            precision = info.precision if info else "auto"
        self.short_side = short_side
        if preset is not None:
            self.short_side = preset_short_side(short_side, preset)
        self.model: PortraitMatting | OnnxModel
        self._network: _Network = model
        if isinstance(model, OnnxModel):
            if compile:
                raise PortraitmattingError("an ONNX file is not compiled: leave compile out")
            model.require(device, precision)
            self.device, self.dtype, self.model = model.device, model.dtype, model
        else:
            self.device = choose_device(str(device)) if device else next(model.parameters()).device
            self.dtype = choose_precision(precision, self.device)
            if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
                model = model.float()  # what is computed in fewer bits is chosen by `precision`
            with limit_threads(1):  # so that a process may still fork
                self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
                if self.dtype != torch.float32:
                    self._network = self.model.at_precision(self.dtype)
            # With its number: in another thread "cuda" alone may be another GPU.
            self.device = next(model.parameters()).device
        if compile:
            check_compiler()
            self._network = _compiled(self._network)
        self._largest_batch: dict[tuple[int, int], int] = {}
        """Of working sizes at which larger ones ran out of memory."""

    def __str__(self) -> str:
        return f"{self.runs_on}, {describe_precision(self.dtype)}, short side {self.short_side}"

    @property
    def runs_on(self) -> str:
        """What computes, for people."""
        onnx = isinstance(self.model, OnnxModel)
        return str(self.model) if onnx else describe_device(self.device)

    @property
    def settings(self) -> str:
        """Text that differs where mattes may differ: weights, working size, precision, and how
        they come back to the image's size."""
        return f"{self._fingerprint} {self.short_side} {describe_precision(self.dtype)} guided"

    @cached_property
    def _fingerprint(self) -> str:
        """Of the weights."""
        if isinstance(self.model, OnnxModel):
            return self.model.fingerprint
        digest = hashlib.sha256()
        with limit_threads(1):
            for tensor in self.model.state_dict().values():
                digest.update(tensor.float().cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def at_short_side(self, short_side: int) -> "Predictor":
        """The same network at another working size; this predictor stays as it is."""
        if self.short_side == short_side:
            return self
        other = copy.copy(self)
        other.short_side = short_side
        return other

    def at_preset(self, preset: str) -> "Predictor":
        """The same network at a preset of this working size; raises `PortraitmattingError`."""
        return self.at_short_side(preset_short_side(self.short_side, preset))

    def network_size(self, image: NDArray[Any]) -> tuple[int, int]:
        """The working size (h, w) of an image; those that share one can run together."""
        return network_size(image.shape[0], image.shape[1], self.short_side)

    def predict(self, image: Source) -> Matte:
        """One image to its matte."""
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[Source]) -> list[Matte]:
        """Images of any sizes to their mattes, in order.

        All that share a working size run as one batch; if the device has no memory for it, in
        halves, quarters and so on.
        """
        single = isinstance(images, str | bytes | os.PathLike | Image.Image | DecodedImage)
        if single or getattr(images, "ndim", 4) != 4 or not isinstance(images, Iterable):
            raise PortraitmattingError(
                f"expected a list of images, got {type(images).__name__}: one image is for predict"
            )
        prepared = [self.prepare(image) for image in images]
        mattes: dict[int, Matte] = {}
        for size in dict.fromkeys(item.size for item in prepared):
            members = [i for i, item in enumerate(prepared) if item.size == size]
            estimates = self.estimate([prepared[i] for i in members])
            mattes.update(zip(members, map(self.finish, estimates), strict=True))
        return [mattes[i] for i in range(len(prepared))]

    def prepare(self, image: Source) -> Prepared:
        """The image at its working size, or on the way to CUDA."""
        check_process()
        decoded = as_image(image)
        pixels, size = decoded.pixels, self.network_size(decoded.pixels)
        with _explain_size(decoded):
            if self.device.type == "cuda":
                tensor = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).pin_memory()
            else:
                tensor = to_tensor(pixels, size)
        return Prepared(decoded, size, tensor)

    def estimate(self, batch: Sequence[Prepared]) -> list[Estimate]:
        """What the network says of images of one working size, in order.

        On CUDA it is only said what is to be done: copies to and from pinned memory and the
        network itself run while the caller goes on, and `finish` waits for them. Pixels go there
        in their own depth, and stay for `finish`.
        """
        is_cuda = self.device.type == "cuda"
        pixels, images = zip(*map(self._upload, batch), strict=True)
        outputs = self._in_parts(images, self._network)
        alphas, trimaps = (output.to("cpu", non_blocking=is_cuda) for output in outputs)
        arrived = torch.cuda.current_stream(self.device).record_event() if is_cuda else None
        kept = zip(pixels, images, outputs[0], strict=True)
        return [
            Estimate(item.image, alpha, trimap, arrived, None if tensors[0] is None else tensors)
            for item, alpha, trimap, tensors in zip(batch, alphas, trimaps, kept, strict=True)
        ]

    def _upload(self, item: Prepared) -> tuple[Tensor | None, Tensor]:
        """On CUDA the image's pixels there, unless they are too many for its memory; and on any
        device the image 3xhxw at working size."""
        if self.device.type != "cuda":
            return None, item.tensor.to(self.device)
        if both := attempt(self._upload_pixels, item):
            return both
        return None, to_tensor(item.image.pixels, item.size).to(self.device)

    def _upload_pixels(self, item: Prepared) -> tuple[Tensor, Tensor]:
        # From pinned memory they come without this thread's help.
        pixels = item.tensor.to(self.device, non_blocking=True)
        return pixels, shrink_pixels(pixels, item.size)

    def finish(self, estimate: Estimate) -> Matte:
        """The matte at the image's own size."""
        image, alpha, classes, arrived, on_gpu = estimate
        if arrived is not None:
            arrived.synchronize()
        if alpha.isnan().any():
            pixels, small = self._upload(self.prepare(image))
            (alpha,), (classes,) = self._in_fp32([small])
            on_gpu = None if pixels is None else (pixels, small, alpha)
        height, width = image.pixels.shape[:2]
        with _explain_size(image):
            full = None if on_gpu is None else attempt(lambda: download(guided_matte(*on_gpu)))
            if full is None:
                matte = guided_upsample(image.pixels, alpha[0].cpu().numpy())
            else:
                matte = to_unit(full)
            values, size = VALUES[classes.cpu().numpy()], (width, height)
            trimap = cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)
            if image.alpha is not None:
                own = to_unit(image.alpha, "the alpha channel")
                matte = np.minimum(matte, own)
                trimap[(own < 1) & (trimap == VALUES[FOREGROUND])] = VALUES[UNKNOWN]
                trimap[own == 0] = VALUES[BACKGROUND]
        return Matte(
            image.pixels, matte, trimap, str(self.device), image.icc_profile, image.metadata
        )

    def predict_tensor(self, images: Tensor) -> Tensor:
        """Float RGB Bx3xHxW in [0, 1] to float32 mattes Bx1xHxW in [0, 1], on the model's device.

        `predict` in PyTorch from end to end, without gradients. Its mattes are the same for float
        images (1e-4); integers are rounded once more by `predict`, at the working size.
        """
        if not isinstance(images, Tensor):
            raise PortraitmattingError(
                f"expected a tensor Bx3xHxW, got {type(images).__name__}: arrays are for predict"
            )
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            shape = "x".join(map(str, images.shape))
            raise PortraitmattingError(f"expected RGB images Bx3xHxW, got {shape}")
        if not images.is_floating_point() or not _in_unit_range(images):
            raise PortraitmattingError(
                f"expected float images in [0, 1], got {images.dtype} in "
                f"{images.min():.4g}..{images.max():.4g}: divide by the largest possible value"
            )
        height, width = images.shape[-2:]
        size = network_size(height, width, self.short_side)
        source = images.detach().to(self.device, torch.float32).clamp(0, 1)
        resized = resize_tensor(source, size)
        matte, _ = self._in_parts(resized, self._network)
        if matte.isnan().any():
            matte, _ = self._in_fp32(resized)
        return guided_upsample_tensor(source, matte)

    def _in_fp32(self, images: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """`_in_parts` again in fp32, for images of which an output was not finite."""
        if isinstance(self.model, PortraitMatting) and self.dtype != torch.float32:
            mattes, trimaps = self._in_parts(images, self.model)
            if mattes.isfinite().all():
                return mattes, trimaps
        raise PortraitmattingError(
            "the network's output is not finite, in fp32 either: see whether its weights are sound "
            "(portraitmatting checkpoint verify)"
        )

    def _in_parts(
        self, images: Sequence[Tensor] | Tensor, network: _Network
    ) -> tuple[Tensor, Tensor]:
        """3xhxw each, at one working size, on the model's device, to mattes Bx1xhxw float32 and
        trimap classes Bxhxw uint8 there, in as many parts as the device's memory asks for."""
        size = (images[0].shape[-2], images[0].shape[-1])
        mattes: list[Tensor] = []
        trimaps: list[Tensor] = []
        while len(images):
            count = min(len(images), self._largest_batch.get(size, len(images)))
            outputs = attempt(self._forward, images[:count], network)
            if outputs is not None:
                mattes.append(outputs[0])
                trimaps.append(outputs[1])
                images = images[count:]
            elif count > 1:
                self._largest_batch[size] = count // 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            else:
                smaller = max(MULTIPLE, self.short_side * 3 // 4 // MULTIPLE * MULTIPLE)
                raise PortraitmattingError(
                    f"out of memory on {self.device} for a single image at {size[0]}x{size[1]}: "
                    f"try a short side of {smaller}"
                )
        return torch.cat(mattes), torch.cat(trimaps)

    @torch.inference_mode()
    def _forward(
        self, images: Sequence[Tensor] | Tensor, network: _Network
    ) -> tuple[Tensor, Tensor]:
        """One pass of the network."""
        check_process()
        batch = torch.stack(list(images)).contiguous(memory_format=torch.channels_last)
        alpha, trimap_logits = network(batch)
        return fuse(alpha, trimap_logits), trimap_logits.argmax(dim=1).to(torch.uint8)


def _explain_size(image: DecodedImage) -> AbstractContextManager[None]:
    """`explain_memory` for what grows with the image."""
    height, width = image.pixels.shape[:2]
    return explain_memory(f"not enough memory for {width}x{height} pixels: scale the image down")


def _compiled(network: _Network) -> _Network:
    """Compiled once per working size, for batches of any length.

    Sizes left open would be symbols, and tracing one block of Swin with them takes a minute.
    """
    compiled = torch.compile(network)

    def run(images: Tensor) -> Prediction:
        torch._dynamo.maybe_mark_dynamic(images, 0)
        torch._dynamo.mark_static(images, [2, 3])
        return compiled(images)

    return run


def _in_unit_range(images: Tensor) -> bool:
    return bool(images.min() >= -FLOAT_SLACK and images.max() <= 1 + FLOAT_SLACK)
