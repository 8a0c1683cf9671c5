"""Decoders for files that Pillow reads wrongly or slowly.

They are PNG, and files with more than 8 bits per colour, which Pillow reduces to 8. Sizes that
Pillow reads too late or not at all come from the headers.
"""

import io
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

from portraitmatting.errors import ImageError
from portraitmatting.images.colour import profile_of_codes, profile_of_png, rgb_profile
from portraitmatting.images.pixels import from_levels, peak

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_LARGEST_TEXT = 64 << 20  # bytes that a compressed profile or XMP may unpack to
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM_HEADER = re.compile(rb"P([2356])" + (_GAP + rb"(\d{1,9})") * 3 + rb"(?=\s)")


@dataclass
class Png:
    """A PNG file that is complete, by its checksums."""

    width: int
    height: int
    bits: int
    color_type: int
    """0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    interlaced: bool
    pixels: bytes
    """A PNG file of the chunks that define the pixels; others make some decoders fail."""
    opaque: bytes
    """The same without tRNS."""
    transparent: bytes
    """The content of tRNS."""
    chunks: dict[bytes, bytes] = field(repr=False)
    """The other chunks, of several of one kind the last."""

    @property
    def icc_profile(self) -> bytes | None:
        """The profile in the file, or one made from its other chunks about colours, in the order
        of PNG (third edition), section 4.3."""
        if cicp := self.chunks.get(b"cICP"):
            return profile_of_codes(cicp[0], cicp[1]) if len(cicp) == 4 else None
        if profile := self.chunks.get(b"iCCP"):
            inflated = _inflate(profile.partition(b"\0")[2][1:])
            if inflated and (self.color_type in (0, 4) or rgb_profile(inflated)):
                return inflated
        if b"sRGB" in self.chunks:
            return None
        gamma, white_and_primaries = self.chunks.get(b"gAMA", b""), self.chunks.get(b"cHRM", b"")
        return profile_of_png(
            struct.unpack(">I", gamma)[0] / 1e5 if len(gamma) == 4 else None,
            [value / 1e5 for value in struct.unpack(">8I", white_and_primaries)]
            if len(white_and_primaries) == 32
            else None,
        )

    @property
    def exif(self) -> bytes:
        return self.chunks.get(b"eXIf", b"")

    @property
    def xmp(self) -> bytes:
        parts = self.chunks.get(b"iTXt", b"").split(b"\0", 1)
        if len(parts) < 2 or len(parts[1]) < 2:
            return b""
        text = parts[1][2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
        return _inflate(text) if parts[1][0] else text

    @property
    def dpi(self) -> tuple[float, float] | None:
        content = self.chunks.get(b"pHYs", b"")
        if len(content) != 9 or content[8] != 1:
            return None
        x, y = struct.unpack(">II", content[:8])
        return x * 0.0254, y * 0.0254


def split_png(data: bytes) -> Png:
    """Check and split a PNG file; raises ImageError for a wrong checksum or a missing end."""
    if not data.startswith(_SIGNATURE):
        raise ImageError("damaged (its signature is altered): copy or export it again")
    kept, others = [_SIGNATURE], {}
    for kind, chunk in _chunks(data):
        if kind in _PIXELS:
            kept.append(chunk)
        # XMP is the only text that is used.
        elif kind != b"iTXt" or chunk.startswith(b"XML:com.adobe.xmp\0", 8):
            others[kind] = chunk[8:-4]
    header = kept[1] if len(kept) > 1 else b""
    if header[4:8] != b"IHDR" or len(header) != 25:
        raise ImageError("damaged (its header is missing): copy or export it again")
    width, height, bits, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", header[8:21])
    transparent = next((chunk[8:-4] for chunk in kept[1:] if chunk[4:8] == b"tRNS"), b"")
    pixels = b"".join(kept)
    opaque = b"".join(chunk for chunk in kept if chunk[4:8] != b"tRNS")
    return Png(
        width, height, bits, color_type, interlaced == 1, pixels, opaque, transparent, others
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk's kind, and the chunk with its length and checksum."""
    position, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise ImageError("damaged or incomplete (it ends early): copy or export it again")
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        kind = data[position + 4 : position + 8]
        if end > len(data):
            raise ImageError("damaged or incomplete (it ends early): copy or export it again")
        checksum = zlib.crc32(memoryview(data)[position + 4 : end - 4])
        if checksum != int.from_bytes(data[end - 4 : end], "big"):
            name = kind.decode("ascii", "replace")
            name = name if name.isalpha() else "a chunk"
            raise ImageError(
                f"damaged (the checksum of {name} does not match): copy or export it again"
            )
        yield kind, data[position:end]
        position = end


def _inflate(data: bytes) -> bytes:
    """Decompressed; empty if it is damaged or far too large."""
    try:
        inflater = zlib.decompressobj()
        inflated = inflater.decompress(data, _LARGEST_TEXT)
        return inflated if inflater.eof else b""
    except zlib.error:
        return b""


def decode_png(png: Png) -> NDArray[Any]:
    """PNG without palette -> HxWx1 to HxWx4 uint8 | uint16, alpha last.

    Takes half of Pillow's time, and fails if pixels are missing.
    """
    if png.interlaced:  # about which imagecodecs prints warnings
        pixels = cv2.imdecode(np.frombuffer(png.opaque, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ImageError("damaged or incomplete (pixels are missing): copy or export it again")
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    else:
        pixels = np.asarray(imagecodecs.png_decode(png.opaque))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if len(png.transparent) == 2 * pixels.shape[2]:  # one colour means transparent
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
    return from_levels(samples.reshape(height, width, channels), largest)


def decode_avif(data: bytes) -> NDArray[np.uint16] | None:
    """AVIF with 10 or 12 bits -> HxW or HxWxC, not yet turned; None if it has 8."""
    configuration = data.find(b"av1C")
    if configuration < 0 or not (flags := data[configuration + 6]) & 0x40:
        return None
    pixels = np.asarray(imagecodecs.avif_decode(data, index=0))
    if pixels.dtype != np.uint16:
        return None
    largest = 4095 if flags & 0x20 else 1023
    return from_levels(pixels, largest)


def decode_heic(data: bytes, bits: int) -> NDArray[np.uint16]:
    """HEIC with more than 8 bits -> HxWx3 or HxWx4, upright."""
    stored = np.asarray(pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False))
    if stored.dtype != np.uint16 or not 8 < bits <= 16:
        raise ImageError("HEIC of an unusual depth: export it with 8 bits")
    return from_levels(stored >> (16 - bits), (1 << bits) - 1)


def check_size(width: int, height: int) -> None:
    """Raise ImageError above Pillow's limit, which protects from decompression bombs."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise ImageError(f"above {2 * limit // 10**6} megapixels: scale the image down")


def check_memory(width: int, height: int) -> None:
    """Raise MemoryError if there is not enough for so many pixels: no decoder takes more than 12
    bytes for each."""
    try:
        mmap.mmap(-1, max(1, 12 * width * height)).close()  # reserved, not used
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError from error


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header (RFC 9649, sections 2.5 to 2.7)."""

    def number(start: int, end: int) -> int:
        return int.from_bytes(data[start:end], "little")

    if data[12:16] == b"VP8X":
        return number(24, 27) + 1, number(27, 30) + 1
    if data[12:16] == b"VP8L":
        sizes = number(21, 25)
        return (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF


class JxlHeader:
    """The size and depth of a JPEG XL file (ISO/IEC 18181-1, annex D); Pillow's plugin would
    decode the whole file for them."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(_jxl_codestream(data)[2:66], "little")
        self.width, self.height = self._size()
        self.depth = 8
        if not self._take(1):  # not all fields have their default
            unusual = self._take(1) and (self._take(3), self._take(3))[1]  # such as a preview
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
    """The beginning of the codestream; in a container, of its first box."""
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
