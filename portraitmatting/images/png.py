"""PNG files chunk by chunk: checked for damage, and without the chunks that decoders fail on."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from portraitmatting.errors import ImageError
from portraitmatting.images.colour import profile_of_codes, profile_of_png, rgb_profile

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_LARGEST_TEXT = 64 << 20  # bytes that a compressed profile or XMP may unpack to


@dataclass
class Png:
    """A PNG file that is whole, as its checksums say."""

    width: int
    height: int
    bits: int
    color_type: int
    """0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    interlaced: bool
    pixels: bytes
    """A PNG file with nothing but the chunks that tell the pixels."""
    opaque: bytes
    """The same without tRNS."""
    transparent: bytes
    """The content of tRNS."""
    chunks: dict[bytes, bytes] = field(repr=False)
    """The last of every other kind."""

    @property
    def icc_profile(self) -> bytes | None:
        """Its own, or one made from its other notes about colours; PNG (third edition), section
        4.3, says which counts."""
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
    """Raises ImageError where a checksum tells damage, or the end is missing."""
    if not data.startswith(_SIGNATURE):
        raise ImageError("damaged (its signature is altered): copy or export it again")
    kept, others = [_SIGNATURE], {}
    for kind, chunk in _chunks(data):
        if kind in _PIXELS:
            kept.append(chunk)
        # Of texts only XMP counts.
        elif kind != b"iTXt" or chunk.startswith(b"XML:com.adobe.xmp\0", 8):
            others[kind] = chunk[8:-4]
    header = kept[1] if len(kept) > 1 else b""
    if header[4:8] != b"IHDR" or len(header) != 25:
        raise ImageError("damaged (its header is missing): copy or export it again")
    width, height, bits, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", header[8:21])
    transparent = next((chunk[8:-4] for chunk in kept[1:] if chunk[4:8] == b"tRNS"), b"")
    opaque = b"".join(chunk for chunk in kept if chunk[4:8] != b"tRNS")
    return Png(
        width,
        height,
        bits,
        color_type,
        interlaced == 1,
        b"".join(kept),
        opaque,
        transparent,
        others,
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every chunk's kind, and the chunk with its length and checksum."""
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
    """Empty where it is damaged or far too large."""
    try:
        inflater = zlib.decompressobj()
        inflated = inflater.decompress(data, _LARGEST_TEXT)
        return inflated if inflater.eof else b""
    except zlib.error:
        return b""
