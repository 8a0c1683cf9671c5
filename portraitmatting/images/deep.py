"""Decoders for what Pillow reads wrongly or slowly, above all more than 8 bits per colour, which it
cuts down to 8; and sizes from headers, where Pillow is too late or silent."""

import io
import mmap
import re
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

from portraitmatting.errors import ImageError
from portraitmatting.images.pixels import peak
from portraitmatting.images.png import Png

_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM_HEADER = re.compile(rb"P([2356])" + (_GAP + rb"(\d{1,9})") * 3 + rb"(?=\s)")


def decode_png(png: Png) -> NDArray[Any]:
    """PNG without palette -> HxWx1 to HxWx4 uint8 | uint16, alpha last.

    In half of Pillow's time, and with an error where pixels are missing.
    """
    if png.interlaced:  # in full silence only by OpenCV
        pixels = cv2.imdecode(np.frombuffer(png.opaque, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ImageError("damaged or incomplete (pixels are missing): copy or export it again")
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    else:
        pixels = np.asarray(imagecodecs.png_decode(png.opaque))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if len(png.transparent) == 2 * pixels.shape[2]:  # one colour stands for transparency
        key = np.frombuffer(png.transparent, ">u2").astype(int)
        if png.bits < 8:
            key = key * 255 // ((1 << png.bits) - 1)
        visible = (pixels != key).any(axis=2)
        alpha = np.where(visible, peak(pixels.dtype), 0).astype(pixels.dtype)
        pixels = np.dstack([pixels, alpha])
    return pixels


def decode_pnm(data: bytes) -> NDArray[np.uint16] | None:
    """Portable anymaps with maxima above 255 -> HxWx1 or HxWx3; None for all others."""
    if not (header := _PNM_HEADER.match(data)):
        return None
    kind, width, height, largest = (int(number) for number in header.groups())
    if not 255 < largest < 65536:
        return None
    check_size(width, height)
    channels = 3 if kind in (3, 6) else 1
    count, start = width * height * channels, header.end()
    if kind < 4:
        numbers = re.sub(rb"#[^\n]*", b"", data[start:]).split(None, count)[:count]
        samples = np.array(numbers, dtype=np.int64)
    else:
        samples = np.frombuffer(data, ">u2", min(count, (len(data) - start - 1) // 2), start + 1)
    if len(samples) < count or not count:
        raise ImageError("damaged or incomplete (it ends early): copy or export it again")
    return scale(samples.reshape(height, width, channels), largest)


def decode_avif(data: bytes) -> NDArray[np.uint16] | None:
    """AVIF with 10 or 12 bits -> HxWx1 to HxWx4, not yet turned; None if it has 8."""
    configuration = data.find(b"av1C")
    if configuration < 0 or not (flags := data[configuration + 6]) & 0x40:
        return None
    pixels = np.asarray(imagecodecs.avif_decode(data, index=0))
    if pixels.dtype != np.uint16:
        return None
    largest = 4095 if flags & 0x20 else 1023
    return scale(pixels if pixels.ndim == 3 else pixels[..., None], largest)


def decode_heic(data: bytes, bits: int) -> NDArray[np.uint16]:
    """HEIC with more than 8 bits -> HxWx3 or HxWx4, upright."""
    stored = np.asarray(pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False))
    if stored.dtype != np.uint16 or not 8 < bits <= 16:
        raise ImageError("HEIC of an unusual depth: export it with 8 bits")
    return scale(stored >> (16 - bits), (1 << bits) - 1)


def scale(samples: NDArray[Any], largest: int) -> NDArray[np.uint16]:
    """0..`largest` -> 0..65535."""
    steps = np.arange(largest + 1, dtype=np.int64)
    table = ((steps * 65535 + largest // 2) // largest).astype(np.uint16)
    return table[samples.clip(0, largest)]


def check_size(width: int, height: int) -> None:
    """Raises ImageError above Pillow's limit, which guards against decompression bombs."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise ImageError(f"above {2 * limit // 10**6} megapixels: scale the image down")


def check_memory(width: int, height: int) -> None:
    """Raises MemoryError where there is none for so many pixels: no decoder takes more than 12
    bytes for each."""
    try:
        mmap.mmap(-1, max(1, 12 * width * height)).close()  # asked for, not touched
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError from error


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height, by the header (RFC 9649, sections 2.5 to 2.7)."""

    def number(start: int, end: int) -> int:
        return int.from_bytes(data[start:end], "little")

    if data[12:16] == b"VP8X":
        return number(24, 27) + 1, number(27, 30) + 1
    if data[12:16] == b"VP8L":
        both = number(21, 25)
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF


class JxlHeader:
    """The size and depth of a JPEG XL file, for which Pillow's plugin decodes all of it
    (ISO/IEC 18181-1, annex D)."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(_jxl_codestream(data)[2:66], "little")
        self.width, self.height = self._size()
        self.depth = 8
        if not self._take(1):  # not everything as usual
            unusual = self._take(1) and (self._take(3), self._take(3))[1]  # a preview, say
            is_float = not unusual and self._take(1)
            self.depth = 8 if unusual or is_float else self._choice(8, 10, 12, (6, 1))

    def _size(self) -> tuple[int, int]:
        sizes = (9, 1), (13, 1), (18, 1), (30, 1)
        small = self._take(1)
        height = 8 * (self._take(5) + 1) if small else self._choice(*sizes)
        if ratio := self._take(3):
            wide, high = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
            return height * wide // high, height
        return 8 * (self._take(5) + 1) if small else self._choice(*sizes), height

    def _take(self, count: int) -> int:
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        return value

    def _choice(self, *choices: int | tuple[int, int]) -> int:
        chosen = choices[self._take(2)]
        return chosen if isinstance(chosen, int) else self._take(chosen[0]) + chosen[1]


def _jxl_codestream(data: bytes) -> bytes:
    """Where its header stands; in a container, in the first of one or more boxes."""
    position = 0
    while not data.startswith(b"\xff\x0a", position):
        size, start = int.from_bytes(data[position : position + 4], "big"), 8
        kind = data[position + 4 : position + 8]
        if size == 1:
            size, start = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            position += start + 4 * (kind == b"jxlp")
            break
        if size < start or position + size >= len(data):
            raise ImageError("damaged or incomplete (it ends early): copy or export it again")
        position += size
    return data[position : position + 66]
