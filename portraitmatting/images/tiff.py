"""TIFF files. Only layouts that are known to be read correctly are read."""

import io
import logging
import math
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from portraitmatting.errors import ImageError
from portraitmatting.images.pixels import FLOAT_SLACK, from_levels, to_dtype

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it would print about oddities

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_JPEG = 7
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MOST_SAMPLES = 16
_EXPORT = "export it as plain RGB with 8 or 16 bits"


class TiffImage:
    """The first image in a file; `read` has its pixels. Raises ImageError for files that are not
    read, and nearly any error for damaged files."""

    def __init__(self, data: bytes) -> None:
        self._size = len(data)
        self._page: Any = tifffile.TiffFile(io.BytesIO(data)).pages.first
        self.height, self.width = self._page.imagelength, self._page.imagewidth
        self._photometric = int(self._page.photometric)
        tags = self._page.tags
        if 50706 in tags or self._page.subfiletype & 1:
            raise ImageError(f"a camera's raw file, or a preview first: {_EXPORT}")
        self.orientation = tags.valueof(274, 1)
        profile = tags.valueof(34675)
        self.icc_profile = profile if isinstance(profile, bytes) else None

    @property
    def is_for_pillow(self) -> bool:
        """Whether Pillow must convert the colours: Lab, or luma and chroma, unless they are
        compressed as JPEG, whose decoder converts them."""
        page = self._page
        if self._photometric == _YCBCR:
            return bool(page.compression != _JPEG)
        return self._photometric in (8, 9) and page.bitspersample == 8 and page.planarconfig == 1

    def read(self) -> tuple[NDArray[Any], NDArray[Any] | None, bool]:
        """Colours HxW (grey), HxWx3 (RGB) or HxWx4 (CMYK), uint8 | uint16; alpha HxW of that
        dtype, if there is any; and whether the colours are multiplied by it."""
        colours, extras = self._layout()
        samples = self._samples()
        alpha, multiplied = None, False
        for index, meaning in enumerate(extras):
            if meaning in (_ASSOCIATED, _UNASSOCIATED):
                alpha, multiplied = samples[..., colours + index], meaning == _ASSOCIATED
                break
        pixels = samples[..., 0] if colours == 1 else samples[..., :colours]
        bits = self._page.bitspersample
        if alpha is not None:
            alpha = self._scaled(alpha, bits)
            if not self._page.extrasamples and not alpha.any():
                alpha = None
        if self._photometric == _PALETTE:
            return self._through_palette(pixels), alpha, multiplied
        pixels = self._scaled(pixels, bits)
        if self._photometric == _WHITE_IS_ZERO:
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels, alpha, multiplied

    def _layout(self) -> tuple[int, tuple[int, ...]]:
        """The number of samples that are colours, and the meanings of the others."""
        page, photometric = self._page, self._photometric
        colours = _COLOURS.get(photometric)
        if colours is None:
            raise ImageError(
                f"colours stored as kind {photometric} of TIFF are not read: {_EXPORT}"
            )
        kind = page.dtype.kind if page.dtype is not None else "?"
        bits = page.bitspersample
        if kind not in "ubf" or not isinstance(bits, int) or (kind != "f" and bits > 16):
            names = {"i": "signed integers", "u": "32-bit integers", "c": "complex numbers"}
            raise ImageError(f"holds {names.get(kind, 'an odd number of bits')}: {_EXPORT}")
        if kind == "f" and photometric not in (_BLACK_IS_ZERO, _RGB):
            raise ImageError(f"floating point in an unusual layout: {_EXPORT}")
        if page.imagedepth != 1 or page.tags.valueof(332, 1) != 1:  # other inks than CMYK
            raise ImageError(f"a TIFF of an unusual layout: {_EXPORT}")
        if not colours <= page.samplesperpixel <= _MOST_SAMPLES:
            raise ImageError(f"{page.samplesperpixel} samples per pixel: {_EXPORT}")
        extras = tuple(int(meaning) for meaning in page.extrasamples)
        if not extras and page.samplesperpixel == colours + 1:
            extras = (_UNASSOCIATED,)  # older programs do not record it
        return colours, extras[: page.samplesperpixel - colours]

    def _samples(self) -> NDArray[Any]:
        """HxWxC as stored."""
        page = self._page
        segments = math.prod(page.chunked)
        offsets, counts = page.dataoffsets[:segments], page.databytecounts[:segments]
        ends = max(map(sum, zip(offsets, counts, strict=False)), default=0)
        truncated = page.compression != 1 and ends > self._size  # else tifffile notices it
        if len(offsets) < segments or len(counts) < segments or 0 in counts or truncated:
            raise ImageError("damaged or incomplete (pixels are missing): copy or export it again")
        stored = np.zeros(page.shaped, page.dtype)  # for pixels that a decoder leaves out
        stored = page.asarray(out=stored, squeeze=False, maxworkers=1).reshape(page.shaped)
        planes, _, height, width, samples = stored.shape
        if planes == 1:
            return stored.reshape(height, width, samples)
        return np.moveaxis(stored.reshape(planes, height, width), 0, -1)

    def _scaled(self, samples: NDArray[Any], bits: int) -> NDArray[Any]:
        if samples.dtype.kind == "f":
            low, high = samples.min(), samples.max()
            if not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):
                raise ImageError(
                    f"holds floating-point pixels from {low:.4g} to {high:.4g}, expected 0 to 1: "
                    "scale them, or export it with 8 or 16 bits"
                )
            return to_dtype(samples, np.uint16)
        if samples.dtype == bool:
            return samples.astype(np.uint8) * np.uint8(255)
        dtype = np.uint8 if bits <= 8 else np.uint16
        if bits in (8, 16):
            return samples.astype(dtype, copy=False)
        return from_levels(samples, (1 << bits) - 1, dtype)

    def _through_palette(self, indices: NDArray[Any]) -> NDArray[np.uint8]:
        colormap = self._page.colormap
        if colormap is None or colormap.shape[0] != 3 or indices.max() >= colormap.shape[1]:
            raise ImageError("damaged (its palette is incomplete): copy or export it again")
        return (colormap.T[indices.astype(np.intp)] >> 8).astype(np.uint8)
