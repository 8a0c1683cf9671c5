"""An image's alpha matte, and what can be made of it."""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from portraitmatting.choices import KINDS, METHODS, check_number, check_word
from portraitmatting.compositing import Background, Blur, as_background, composite, paint, rgba
from portraitmatting.device import attempt
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import Method, estimate_foreground, foreground_pixels
from portraitmatting.images.encode import encode_image
from portraitmatting.images.files import write_image
from portraitmatting.images.metadata import Metadata
from portraitmatting.images.pixels import to_dtype
from portraitmatting.on_gpu import blend, blurred, cut_out, download, upload
from portraitmatting.transforms import shrunk

_PREVIEW_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Matte:
    """An image's alpha matte, and what can be made of it; everything has the image's size."""

    image: NDArray[Any]
    """HxWx3 RGB, as given to the predictor: uint8, uint16, or float32 in [0, 1]. Not a copy, if it
    came as RGB integers: leave it alone as long as the foreground may still be asked for."""
    alpha: NDArray[np.float32]
    """HxW float32 in [0, 1]: the share of each pixel that is the person."""
    trimap: NDArray[np.uint8]
    """HxW uint8: 0 background, 128 unknown, 255 foreground."""
    device: str = "cpu"
    """Where results are made."""
    icc_profile: bytes | None = None
    """What the image's colours mean, and those of its results; None stands for sRGB."""
    metadata: Metadata | None = None
    """What files of results keep of the image's: EXIF, XMP and resolution."""
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
                (HxWx3, the person over `background`) or "foreground" (HxWx3, her own colours).
            background: as `portraitmatting.composite` takes it: a colour, an image of any size,
                "blur", ...
            method: how foreground colours are estimated, as in `estimate_foreground`. This happens
                once for all results of one method and dtype.
            dtype: uint8, uint16 or floating point; the image's own by default.

        Raises PortraitmattingError for anything else.
        """
        if kind not in KINDS:
            raise PortraitmattingError(f"unknown kind of result {kind!r}: use {', '.join(KINDS)}")
        check_word("foreground method", method, METHODS)
        kept = np.dtype(self.image.dtype if dtype is None else dtype)
        if kind == "alpha":
            return to_dtype(self.alpha, kept)
        image = to_dtype(self.image, kept)
        if torch.device(self.device).type == "cuda" and method != "cf":
            result = attempt(self._on_gpu, kind, image, background, method)
            if result is not None:  # else there is no memory for it there
                return result
        if (method, kept.str) not in self._foregrounds:
            colors = estimate_foreground(image, self.alpha, method)
            self._foregrounds[method, kept.str] = colors
        foreground = self._foregrounds[method, kept.str]
        if kind == "foreground":
            return foreground
        if kind == "rgba":
            return rgba(foreground, self.alpha)
        return composite(foreground, self.alpha, background, image, self.icc_profile)

    def _on_gpu(
        self,
        kind: str,
        image: NDArray[Any],
        background: Background | NDArray[Any] | str,
        method: Method,
    ) -> NDArray[Any]:
        """`result` on CUDA: image and alpha go there, and nothing but the result comes back.

        They are not kept there in between, or else a list of mattes would fill the GPU.
        """
        pixels, level = upload(image, self.device), upload(self.alpha, self.device)
        foreground = pixels
        if method != "none" and level.numel() > 1:
            foreground = foreground_pixels(pixels, level, self.alpha, method)
        if kind == "foreground":
            return download(foreground)
        if kind == "rgba":
            return download(cut_out(foreground, level))
        behind = background if isinstance(background, np.ndarray) else as_background(background)
        if isinstance(behind, Blur):
            back = blurred(pixels, level, behind)
        else:
            back = upload(paint(behind, image, self.alpha, self.icc_profile), self.device)
        return download(blend(foreground, level, back))

    def save(
        self,
        path: str | os.PathLike[str],
        kind: str = "rgba",
        background: Background | NDArray[Any] | str = "white",
        method: Method = "ml",
    ) -> None:
        """Write one kind of result, as `result` makes it, to .png, .webp, .tif or .jpg (which holds
        no "rgba"), with the image's profile and metadata. Raises PortraitmattingError."""
        write_image(path, self.result(kind, background, method), self.icc_profile, self.metadata)

    def to_pil(
        self,
        kind: str = "rgba",
        background: Background | NDArray[Any] | str = "white",
        method: Method = "ml",
    ) -> Image.Image:
        """One kind of result, as `result` makes it, as a PIL image of 8 bits: L, RGB or RGBA, with
        the image's profile. Raises PortraitmattingError."""
        image = Image.fromarray(self.result(kind, background, method, np.uint8))
        if self.icc_profile and kind != "alpha":
            image.info["icc_profile"] = self.icc_profile
        return image

    @property
    def is_empty(self) -> bool:
        """Whether nobody is there: less than one pixel in 10,000 is more person than not."""
        return bool(np.count_nonzero(self.alpha > 0.5) < 1e-4 * self.alpha.size)

    def crop(self, margin: float = 0.0) -> "Matte":
        """The part of image and matte that holds the person: everything that 8 bits of alpha can
        tell from 0, and around it `margin` (0 or more) of the longer side, as far as the image
        goes. An empty matte stays as it is."""
        check_number("crop margin", margin, 0, 100)
        left, top, width, height = cv2.boundingRect((self.alpha > 0.5 / 255).view(np.uint8))
        if not width:
            return self
        around = round(margin * max(width, height))
        box = (
            slice(max(0, top - around), top + height + around),
            slice(max(0, left - around), left + width + around),
        )
        return replace(self, image=self.image[box], alpha=self.alpha[box], trimap=self.trimap[box])

    @property
    def foreground(self) -> NDArray[Any]:
        """The person's own colours, HxWx3 of the image's dtype; estimated on first use."""
        return self.result("foreground")

    def rgba(self) -> NDArray[Any]:
        """The cut-out, HxWx4 of the image's dtype, with straight (not premultiplied) alpha."""
        return self.result("rgba")

    def composite(self, background: Background | NDArray[Any] | str) -> NDArray[Any]:
        """The person over a background, HxWx3 of the image's dtype."""
        return self.result("composite", background)

    def _repr_png_(self) -> bytes:
        """The cut-out as a notebook shows it, at most 1024 pixels a side."""
        # Shrunk first: colours of a preview take no time, those of 12 megapixels take seconds.
        image = shrunk(self.image, _PREVIEW_SIDE)
        alpha = shrunk(self.alpha, _PREVIEW_SIDE).clip(0, 1)
        cut_out = rgba(to_dtype(estimate_foreground(image, alpha), np.uint8), alpha)
        return encode_image(cut_out, ".png", self.icc_profile)
