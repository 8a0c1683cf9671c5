"""Images in, mattes out: `Predictor` runs a network and brings its mattes to the images' size."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple

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
    without_autocast,
)
from portraitmatting.errors import PortraitmattingError
from portraitmatting.guided_filter import guided_upsample, guided_upsample_tensor
from portraitmatting.images.decode import DecodedImage
from portraitmatting.images.pixels import FLOAT_SLACK, to_unit
from portraitmatting.images.source import Source, as_image
from portraitmatting.matte import Matte
from portraitmatting.modeling.heads import fuse
from portraitmatting.modeling.model import PortraitMatting, Prediction
from portraitmatting.on_gpu import ONE_IMAGE, download, guided_matte, shrink_pixels
from portraitmatting.onnx_model import OnnxModel
from portraitmatting.transforms import MULTIPLE, network_size, resize_tensor, to_tensor
from portraitmatting.trimap import BACKGROUND, FOREGROUND, UNKNOWN, VALUES

_Network = Callable[[Tensor], Prediction]


class Prepared(NamedTuple):
    """An image, and the tensor that the network will read."""

    image: DecodedImage
    size: tuple[int, int]
    """The working size (h, w)."""
    tensor: Tensor
    """On the CPU. 3xhxw float32 in [0, 1] at working size; for a network on CUDA, which resizes
    the image itself, the image's own pixels HxWx3 in pinned memory."""


class Estimate(NamedTuple):
    """An image, and the network's outputs for it."""

    image: DecodedImage
    alpha: Tensor
    """1xhxw float32 in [0, 1] at working size, on the CPU; read it after `arrived`."""
    trimap: Tensor
    """hxw uint8, the classes of `trimap` (0, 1, 2), on the CPU; read it after `arrived`."""
    arrived: torch.cuda.Event | None
    """The event that both are copied from CUDA; None on other devices, whose copies are complete
    already."""
    on_gpu: tuple[Tensor, Tensor, Tensor] | None = None
    """What stays on CUDA for `finish`: the image's pixels HxWx3 in their own dtype, and at working
    size the image 3xhxw and the matte 1xhxw, both float32. None if CUDA is not used, or has no
    memory for them."""


class Predictor:
    """Runs a model on images of any size.

    An image is a path, a file's bytes, an open file, a PIL image, or an array HxW (grey), HxWx3
    (RGB) or HxWx4 (RGBA), uint8, uint16 or float in [0, 1]. Where the image is transparent, its
    matte is as well. One predictor may be used from several threads.

    `predict` and `predict_batch` consist of three steps, which a job can spread over threads:
    `prepare` and `finish` run in any thread, `estimate` between them is the only one that runs the
    network.
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
        """Raises `PortraitmattingError` for anything that cannot be used.

        Args:
            model: moved to `device` and put into eval mode; by default that of the default
                checkpoint, on the best device of this machine.
            short_side: the short side of the working size, a multiple of 32; by default the one
                that the model's checkpoint names.
            precision: "auto", "fp32", "bf16" or "fp16"; by default the checkpoint's.
            device: by default the one that holds the model. An `OnnxModel` has its device and
                precision already, and others are refused.
            preset: one of `PRESETS`: a part of the short side, for more speed.
            compile: run the network through torch.compile. This needs a C++ compiler and takes a
                minute or more at the first image of each working size, so it is for videos,
                cameras and images of one shape.
        """
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
        network_size(1, 1, short_side)  # a wrong one is refused now, not at the first image
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
                model = model.float()  # `precision`, not the checkpoint's dtype, decides below
            with limit_threads(1):  # the process may still fork afterwards
                self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
                if self.dtype != torch.float32:
                    self._network = self.model.at_precision(self.dtype)
            # With its index: in another thread, "cuda" without one may mean another GPU.
            self.device = next(model.parameters()).device
        if compile:
            check_compiler()
            self._network = _compiled(self._network)
        self._largest_batch: dict[tuple[int, int], int] = {}
        """Working size to the largest batch that may fit; only sizes that ran out of memory."""

    def __str__(self) -> str:
        return f"{self.runs_on}, {describe_precision(self.dtype)}, short side {self.short_side}"

    @property
    def runs_on(self) -> str:
        """The device, and onnxruntime if that is used, for people to read."""
        is_onnx = isinstance(self.model, OnnxModel)
        return str(self.model) if is_onnx else describe_device(self.device)

    @property
    def settings(self) -> str:
        """A text that differs between predictors whose mattes may differ: it names the weights, the
        working size, the precision and the way back to the image's size."""
        return f"{self._fingerprint} {self.short_side} {describe_precision(self.dtype)} guided"

    @cached_property
    def _fingerprint(self) -> str:
        """A short hash of the weights."""
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
        """The same network at a preset of this working size; raises `PortraitmattingError` for an
        unknown preset."""
        return self.at_short_side(preset_short_side(self.short_side, preset))

    def network_size(self, image: NDArray[Any]) -> tuple[int, int]:
        """The working size (h, w) of an image HxWx3. Images that share one can form a batch."""
        return network_size(image.shape[0], image.shape[1], self.short_side)

    def predict(self, image: Source) -> Matte:
        """One image to its matte."""
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[Source]) -> list[Matte]:
        """Images of any sizes to their mattes, in order.

        Images that share a working size run as one batch. If the device has no memory for it, the
        batch is halved until it fits.
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
        """Decode the image, if it has no pixels yet, and make the tensor for the device."""
        check_process()
        decoded = as_image(image)
        pixels, size = decoded.pixels, self.network_size(decoded.pixels)
        with _explain_size(decoded):
            if self.device.type == "cuda":
                tensor = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).pin_memory()
            else:
                tensor = to_tensor(pixels, size)
        return Prepared(decoded, size, tensor)

    @without_autocast()
    def estimate(self, batch: Sequence[Prepared]) -> list[Estimate]:
        """Run the network on images of one working size; estimates in order.

        On CUDA this only queues the work: copies to and from pinned memory and the network run
        while the caller goes on, and `finish` waits for them. Images are copied to the GPU as they
        are, at full size, and stay there for `finish`.
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
        """The image on the device: its own pixels HxWx3 (only on CUDA, and None if its memory is
        too small), and the image 3xhxw at working size."""
        if self.device.type != "cuda":
            return None, item.tensor.to(self.device)
        if both := attempt(self._upload_pixels, item):
            return both
        return None, to_tensor(item.image.pixels, item.size).to(self.device)

    def _upload_pixels(self, item: Prepared) -> tuple[Tensor, Tensor]:
        with ONE_IMAGE:
            # From pinned memory the copy runs while this thread goes on.
            pixels = item.tensor.to(self.device, non_blocking=True)
            return pixels, shrink_pixels(pixels, item.size)

    @without_autocast()
    def finish(self, estimate: Estimate) -> Matte:
        """The matte at the image's own size."""
        image, alpha, classes, arrived, on_gpu = estimate
        if arrived is not None:
            arrived.synchronize()
        if alpha.isnan().any():  # `fuse` marks outputs that are not finite
            pixels, small = self._upload(self.prepare(image))
            (alpha,), (classes,) = self._in_fp32([small])
            on_gpu = None if pixels is None else (pixels, small, alpha)
        height, width = image.pixels.shape[:2]
        with _explain_size(image):
            full = None if on_gpu is None else attempt(_guided_on_gpu, *on_gpu)
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

    @without_autocast()
    def predict_tensor(self, images: Tensor) -> Tensor:
        """Float RGB Bx3xHxW in [0, 1] to float32 mattes Bx1xHxW in [0, 1], on the model's device.

        The same as `predict`, but in PyTorch from end to end, without gradients. For float images
        the mattes agree to 1e-4. Of integer images `predict` rounds the smaller copy that the
        network reads to integers, which this method does not.
        """
        if not isinstance(images, Tensor):
            raise PortraitmattingError(
                f"expected a tensor Bx3xHxW, got {type(images).__name__}: arrays are for predict"
            )
        check_process()
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
        """`_in_parts` again, in fp32, for images whose outputs were not finite."""
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
        """Images 3xhxw of one working size to mattes Bx1xhxw float32 and trimap classes Bxhxw
        uint8, all on the model's device. Where its memory is too small for the batch, it runs in
        parts."""
        size = (images[0].shape[-2], images[0].shape[-1])
        mattes: list[Tensor] = []
        trimaps: list[Tensor] = []
        while len(images):
            count = min(len(images), self._largest_batch.get(size, len(images)))
            outputs = attempt(self._forward, images[:count], network)
            if outputs is None and count == 1 and self.device.type == "cuda":
                with ONE_IMAGE:  # without what another image takes at the moment
                    torch.cuda.empty_cache()
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
        """One pass of the network, with the results of `_in_parts`."""
        check_process()
        batch = torch.stack(list(images)).contiguous(memory_format=torch.channels_last)
        alpha, trimap_logits = network(batch)
        return fuse(alpha, trimap_logits), trimap_logits.argmax(dim=1).to(torch.uint8)


def _guided_on_gpu(pixels: Tensor, image: Tensor, coarse: Tensor) -> NDArray[np.uint16]:
    with ONE_IMAGE:
        return download(guided_matte(pixels, image, coarse))


def _explain_size(image: DecodedImage) -> AbstractContextManager[None]:
    """`explain_memory` for work whose memory grows with the image."""
    height, width = image.pixels.shape[:2]
    return explain_memory(f"not enough memory for {width}x{height} pixels: scale the image down")


def _compiled(network: _Network) -> _Network:
    """The network, compiled once per working size, for batches of any length.

    With symbols in place of height and width, one compilation would serve all sizes, but tracing a
    single Swin block with them takes a minute.
    """
    compiled = torch.compile(network)

    def run(images: Tensor) -> Prediction:
        torch._dynamo.maybe_mark_dynamic(images, 0)
        torch._dynamo.mark_static(images, [2, 3])
        return compiled(images)

    return run


def _in_unit_range(images: Tensor) -> bool:
    return bool(images.min() >= -FLOAT_SLACK and images.max() <= 1 + FLOAT_SLACK)
