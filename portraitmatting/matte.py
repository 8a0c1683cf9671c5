"""An image's alpha matte, and what can be made of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.compositing import Background, composite, rgba
from portraitmatting.foreground import estimate_foreground
from portraitmatting.images.encode import encode
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

    @cached_property
    def foreground(self) -> NDArray[Any]:
        """The person's own colours, HxWx3 of the image's dtype; estimated on first use."""
        return estimate_foreground(self.image, self.alpha)

    def rgba(self) -> NDArray[Any]:
        """The cut-out, HxWx4 of the image's dtype, with straight (not premultiplied) alpha."""
        return rgba(self.foreground, self.alpha)

    def composite(self, background: Background | NDArray[Any] | str) -> NDArray[Any]:
        """The person over a background as `portraitmatting.composite` takes it: a colour, an image
        of any size, "blur", ...; HxWx3 of the image's dtype."""
        return composite(self.foreground, self.alpha, background, image=self.image)

    def _repr_png_(self) -> bytes:
        """The cut-out as a notebook shows it, at most 1024 pixels a side."""
        height, width = self.alpha.shape
        scale = min(1, _PREVIEW_SIDE / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # Shrunk first: colours of a preview take no time, those of 12 megapixels take seconds.
        image, alpha = resize(self.image, size), to_source_size(self.alpha, size)
        cut_out = rgba(to_dtype(estimate_foreground(image, alpha), np.uint8), alpha)
        return encode(cut_out, ".png", icc_profile=None)
