"""An image's alpha matte, and what can be made of it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from portraitmatting.choices import KINDS
from portraitmatting.compositing import Background, composite, rgba
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import Method, estimate_foreground
from portraitmatting.images.encode import encode_image
from portraitmatting.images.pixels import to_dtype
from portraitmatting.transforms import resize, to_source_size

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
    """Where foreground colours are estimated."""
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
        kept = np.dtype(self.image.dtype if dtype is None else dtype)
        if kind == "alpha":
            return to_dtype(self.alpha, kept)
        image = to_dtype(self.image, kept)
        if (method, kept.str) not in self._foregrounds:
            colors = estimate_foreground(image, self.alpha, method, self.device)
            self._foregrounds[method, kept.str] = colors
        foreground = self._foregrounds[method, kept.str]
        if kind == "foreground":
            return foreground
        if kind == "rgba":
            return rgba(foreground, self.alpha)
        return composite(foreground, self.alpha, background, image=image)

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
        height, width = self.alpha.shape
        scale = min(1, _PREVIEW_SIDE / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # Shrunk first: colours of a preview take no time, those of 12 megapixels take seconds.
        image, alpha = resize(self.image, size), to_source_size(self.alpha, size)
        cut_out = rgba(to_dtype(estimate_foreground(image, alpha), np.uint8), alpha)
        return encode_image(cut_out, ".png")
