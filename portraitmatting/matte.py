"""An image's alpha matte, and what can be made of it."""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from portraitmatting.choices import KINDS, METHODS, Method, check_number, check_word
from portraitmatting.compositing import Background, Blur, as_background, composite, paint, rgba
from portraitmatting.device import attempt, has_cuda, without_autocast
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import estimate_foreground, foreground_pixels
from portraitmatting.images.encode import encode_image
from portraitmatting.images.files import write_image
from portraitmatting.images.metadata import Metadata
from portraitmatting.images.pixels import to_dtype
from portraitmatting.on_gpu import ONE_IMAGE, blend, blurred, cut_out, download, upload
from portraitmatting.transforms import shrunk

_PREVIEW_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Matte:
    """An image's alpha matte, and what can be made of it; everything has the image's size."""

    image: NDArray[Any]
    """HxWx3 RGB, as given to the predictor: uint8, uint16, or float32 in [0, 1]. RGB integers are
    not copied: do not write to that array while this matte is in use."""
    alpha: NDArray[np.float32]
    """HxW float32 in [0, 1]: the share of each pixel that is the person."""
    trimap: NDArray[np.uint8]
    """HxW uint8: 0 background, 128 unknown, 255 foreground."""
    device: str = "cpu"
    """The device that computes the results; the CPU does if this process cannot use that GPU."""
    icc_profile: bytes | None = None
    """The ICC profile of the image and its results; None stands for sRGB."""
    metadata: Metadata | None = None
    """The image's EXIF, XMP and resolution, as far as files of results keep them."""
    _foregrounds: dict[tuple[str, str], NDArray[Any]] = field(
        default_factory=dict, init=False, repr=False
    )

    def result(
        self,
        kind: str = "rgba",
        background: Background | NDArray[Any] | str = "white",
        method: Method = "ml",
        dtype: DTypeLike | None = None,
    ) -> NDArray[Any]:
        """The pixels of one kind of result.

        Args:
            kind: "alpha" (HxW), "rgba" (HxWx4, the cut-out with straight alpha), "composite"
                (HxWx3, the person over `background`) or "foreground" (HxWx3, the person's colours
                without those of the background).
            background: for "composite", as `portraitmatting.composite` takes it: a colour, an image
                of any size, "blur", ...
            method: the method of `estimate_foreground`. On the CPU, its colours are kept for later
                results of the same method and dtype.
            dtype: uint8, uint16 or floating point; the image's own by default.

        Raises PortraitmattingError for anything else.
        """
        check_word("kind of result", kind, KINDS)
        check_word("foreground method", method, METHODS)
        try:
            dtype = np.dtype(self.image.dtype if dtype is None else dtype)
        except TypeError:
            raise PortraitmattingError(
                f"results of type {dtype!r}: use uint8, uint16 or floating point"
            ) from None
        if kind == "alpha":
            return to_dtype(self.alpha, dtype)
        image = to_dtype(self.image, dtype)
        if has_cuda(self.device) and method != "cf":
            result = attempt(self._on_gpu, kind, image, background, method)
            if result is not None:  # None: the GPU's memory is too small
                return result.astype(dtype, copy=False)
        key = method, dtype.str
        if key not in self._foregrounds:
            self._foregrounds[key] = estimate_foreground(image, self.alpha, method)
        foreground = self._foregrounds[key]
        if kind == "foreground":
            return foreground
        if kind == "rgba":
            return rgba(foreground, self.alpha)
        return composite(foreground, self.alpha, background, image, self.icc_profile)

    @without_autocast()
    def _on_gpu(
        self,
        kind: str,
        image: NDArray[Any],
        background: Background | NDArray[Any] | str,
        method: Method,
    ) -> NDArray[Any]:
        """`result` on CUDA: image and alpha are copied there, and only the result comes back.

        Nothing stays there between two calls: a list of mattes would fill the GPU's memory.
        """
        blur, behind = None, image
        if kind == "composite":
            if not isinstance(background, np.ndarray):
                background = as_background(background)
            if isinstance(background, Blur):
                blur = background
            else:
                behind = paint(background, image, self.alpha, self.icc_profile)
                if behind.strides[:2] == (0, 0):
                    behind = behind[:1, :1]  # one colour: `blend` expands one pixel of it
        with ONE_IMAGE:
            pixels, alpha = upload(image, self.device), upload(self.alpha, self.device)
            foreground = pixels
            if method != "none" and alpha.numel() > 1:
                foreground = foreground_pixels(pixels, alpha, self.alpha, method)
            if kind == "foreground":
                return download(foreground)
            if kind == "rgba":
                return download(cut_out(foreground, alpha))
            back = blurred(pixels, alpha, blur) if blur else upload(behind, self.device)
            return download(blend(foreground, alpha, back))

    def save(
        self,
        path: str | os.PathLike[str],
        kind: str = "rgba",
        background: Background | NDArray[Any] | str = "white",
        method: Method = "ml",
    ) -> None:
        """Write a result as .png, .webp, .tif or .jpg, with the image's profile and metadata.

        Raises PortraitmattingError, also for "rgba" as .jpg, which has no transparency.

        Args:
            path: the file; one that exists is replaced.
            kind: as in `result`.
            background: as in `result`.
            method: as in `result`.
        """
        write_image(path, self.result(kind, background, method), self.icc_profile, self.metadata)

    def to_pil(
        self,
        kind: str = "rgba",
        background: Background | NDArray[Any] | str = "white",
        method: Method = "ml",
    ) -> Image.Image:
        """A result, as `result` makes it, as a PIL image of 8 bits: L, RGB or RGBA, with the
        image's profile. Raises PortraitmattingError."""
        image = Image.fromarray(self.result(kind, background, method, np.uint8))
        if self.icc_profile and kind != "alpha":
            image.info["icc_profile"] = self.icc_profile
        return image

    @property
    def is_empty(self) -> bool:
        """Whether the image shows no person: alpha exceeds 0.5 in fewer than 1 of 10,000 pixels."""
        return bool(np.count_nonzero(self.alpha > 0.5) < 1e-4 * self.alpha.size)

    def crop(self, margin: float = 0.0) -> "Matte":
        """The part of image and matte with the person in it: all pixels whose alpha is not 0 when
        rounded to 8 bits, and around them a margin inside the image. `margin` is a share (0 or
        more) of the longer side of these pixels' bounding box. A matte without such pixels stays
        as it is."""
        check_number("crop margin", margin, 0, 100)
        left, top, width, height = cv2.boundingRect((self.alpha > 0.5 / 255).view(np.uint8))
        if not width:
            return self
        border = round(margin * max(width, height))
        box = (
            slice(max(0, top - border), top + height + border),
            slice(max(0, left - border), left + width + border),
        )
        return replace(self, image=self.image[box], alpha=self.alpha[box], trimap=self.trimap[box])

    @property
    def foreground(self) -> NDArray[Any]:
        """The person's colours without those of the background, HxWx3 of the image's dtype."""
        return self.result("foreground")

    def rgba(self) -> NDArray[Any]:
        """The cut-out, HxWx4 of the image's dtype, with straight (not premultiplied) alpha."""
        return self.result("rgba")

    def composite(self, background: Background | NDArray[Any] | str) -> NDArray[Any]:
        """The person over a background, HxWx3 of the image's dtype."""
        return self.result("composite", background)

    def _repr_png_(self) -> bytes:
        """The cut-out as a notebook shows it, at most 1024 pixels a side."""
        # Shrunk first: estimating the colours of 12 megapixels takes seconds.
        image = shrunk(self.image, _PREVIEW_SIDE)
        alpha = shrunk(self.alpha, _PREVIEW_SIDE).clip(0, 1)
        cut_out = rgba(to_dtype(estimate_foreground(image, alpha), np.uint8), alpha)
        return encode_image(cut_out, ".png", self.icc_profile)
