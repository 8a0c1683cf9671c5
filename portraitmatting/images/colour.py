"""What RGB values mean: ICC profiles, made from other notes about colours, and conversions."""

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])
_D65 = (0.3127, 0.329)
_SRGB: tuple[float, ...] = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

# ITU-T H.273, table 2: the white point's and the primaries' x and y. Whatever is not listed is
# taken for sRGB.
_PRIMARIES: dict[int, tuple[tuple[float, float], tuple[float, ...]]] = {
    4: ((0.31, 0.316), (0.67, 0.33, 0.21, 0.71, 0.14, 0.08)),
    5: (_D65, (0.64, 0.33, 0.29, 0.6, 0.15, 0.06)),
    6: (_D65, (0.63, 0.34, 0.31, 0.595, 0.155, 0.07)),
    7: (_D65, (0.63, 0.34, 0.31, 0.595, 0.155, 0.07)),
    9: (_D65, (0.708, 0.292, 0.17, 0.797, 0.131, 0.046)),
    11: ((0.314, 0.351), (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)),
    12: (_D65, (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)),
    22: (_D65, (0.63, 0.34, 0.295, 0.605, 0.155, 0.077)),
}
# Table 3. Photographs marked as video (1, 6, 14, 15) are meant for sRGB's curve, as browsers have
# it; of HDR (16, 18) only the primaries are taken.
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}

_FEW = 300  # values, of 100 colours
_EXACT = 0x100  # cmsFLAGS_NOOPTIMIZE: a table would be off by up to 4 of 255 near black


def rgb_profile(profile: bytes | None) -> bytes | None:
    """The profile if it is one of RGB values, else None."""
    sound = profile and profile[36:40] == b"acsp" and profile[16:20] == b"RGB "
    return profile if sound else None


def to_srgb(pixels: NDArray[Any], profile: bytes, space: str) -> NDArray[Any] | None:
    """HxW ("gray") or HxWx4 ("cmyk", 0 for no ink), uint8 | uint16, whose values `profile`
    describes -> HxWx3 sRGB of the same dtype; None if it describes others, or is broken."""
    names = {"gray": b"GRAY", "cmyk": b"CMYK"}
    if profile[36:40] != b"acsp" or profile[16:20] != names[space]:
        return None
    try:
        return np.asarray(
            imagecodecs.cms_transform(
                np.ascontiguousarray(pixels),
                profile,
                _srgb(),
                colorspace=space,
                outcolorspace="rgb",
                intent=0,
                flags=_EXACT if pixels.dtype == np.uint16 else None,
            )
        )
    except (imagecodecs.CmsError, ValueError):
        return None


def convert_rgb(
    pixels: NDArray[Any], source: bytes | None = None, target: bytes | None = None
) -> NDArray[Any]:
    """HxWx3 RGB, uint8 | uint16 | float32 in [0, 1], as values of the profile `target` instead of
    `source`, where None is sRGB; same shape and dtype.

    Unchanged where a profile is not one of RGB values, or colours cannot be converted to it.
    """
    source, target = rgb_profile(source), rgb_profile(target)
    if source == target:
        return pixels
    if pixels.dtype == np.uint8 and pixels.size <= _FEW:  # flat backgrounds
        return _closest(pixels, source, target)
    try:
        converted = imagecodecs.cms_transform(
            np.ascontiguousarray(pixels), source or _srgb(), target or _srgb(),
            colorspace="rgb", outcolorspace="rgb", outdtype=pixels.dtype.name, intent=1,
            flags=_EXACT if pixels.dtype == np.uint16 else None,
        )  # fmt: skip
    except (imagecodecs.CmsError, ValueError):
        return pixels
    return converted.clip(0, 1) if pixels.dtype.kind == "f" else np.asarray(converted)


def _closest(
    pixels: NDArray[np.uint8], source: bytes | None, target: bytes | None
) -> NDArray[np.uint8]:
    """In 8 bits a wide profile has steps that are seen as up to 9 of sRGB's levels near black:
    of the eight values around each colour the one that is seen as closest to it."""
    wanted = pixels.astype(np.float32) / 255
    below = np.floor(convert_rgb(wanted, source, target) * 255)
    corners = np.indices((2, 2, 2)).reshape(3, 8).T
    values = np.clip(below[None] + corners[:, None, None], 0, 255).astype(np.float32)
    seen = np.stack([convert_rgb(value / 255, target, source) for value in values])
    best = np.abs(seen - wanted).max(axis=-1).argmin(axis=0)
    return np.take_along_axis(values, best[None, ..., None], axis=0)[0].astype(np.uint8)


def profile_of_codes(primaries: int, transfer: int) -> bytes | None:
    """For the codes of ITU-T H.273 (PNG's cICP, nclx in AVIF and HEIC); None for sRGB."""
    white, xy = _PRIMARIES.get(primaries, (_D65, _SRGB))
    gamma = _GAMMAS.get(transfer)
    if xy == _SRGB and gamma is None:
        return None
    return make_profile(white, xy, gamma)


def adobe_rgb() -> bytes:
    """Adobe RGB (1998), which cameras note in EXIF."""
    return make_profile(_D65, (0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 563 / 256)


def profile_of_png(gamma: float | None, chromaticities: Sequence[float] | None) -> bytes | None:
    """For PNG's gAMA (the exponent of encoding, about 0.45) and cHRM (white, red, green, blue);
    None where that is about sRGB, or makes no sense."""
    white, xy = _D65, _SRGB
    if chromaticities and all(0 < value < 1 for value in chromaticities):
        white, xy = (chromaticities[0], chromaticities[1]), tuple(chromaticities[2:])
    exponent = 1 / gamma if gamma and 0.1 <= gamma <= 4 else None
    if exponent is not None and abs(exponent / 2.2 - 1) < 0.05:
        exponent = None
    near = np.allclose((*white, *xy), (*_D65, *_SRGB), atol=0.004)
    if near and exponent is None:
        return None
    try:
        return make_profile(white, xy, exponent)
    except (np.linalg.LinAlgError, struct.error):  # primaries on one line
        return None


@cache
def make_profile(
    white: tuple[float, float], primaries: tuple[float, ...], gamma: float | None
) -> bytes:
    """An ICC profile (version 4.2) of a matrix and one curve for all three colours: a power, or
    sRGB's where `gamma` is None. x and y of the white point, and of red, green and blue."""
    xyz = np.array([_xyz(*primaries[i : i + 2]) for i in (0, 2, 4)]).T
    source = _xyz(*white)
    matrix = xyz * np.linalg.solve(xyz, source)
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ source))
    adaptation = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD
    columns = (adaptation @ matrix).T
    parameters = _SRGB_CURVE if gamma is None else (gamma,)
    curve = struct.pack(">4sIHH", b"para", 0, 3 if gamma is None else 0, 0) + _fixed(parameters)
    tags = [
        (b"desc", _text("RGB")),
        (b"cprt", _text("No copyright, use freely")),
        (b"wtpt", b"XYZ \0\0\0\0" + _fixed(_D50)),
        (b"chad", b"sf32\0\0\0\0" + _fixed(adaptation.ravel())),
        *((name, b"XYZ \0\0\0\0" + _fixed(xyz)) for name, xyz in
          zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)),
        *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")),
    ]  # fmt: skip
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags:
        table += struct.pack(">4sII", name, start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(
        ">I4sI4s4s4s6H4s28s12s48s",
        start + len(content), b"", 0x04200000, b"mntr", b"RGB ", b"XYZ ",
        2024, 1, 1, 0, 0, 0, b"acsp", b"", _fixed(_D50), b"",
    )  # fmt: skip
    return header + table + content


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    return np.array([x / y, 1, (1 - x - y) / y])


def _fixed(values: Any) -> bytes:
    """As signed numbers of 16 and 16 bits."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return struct.pack(">4sIII4sII", b"mluc", 0, 1, 12, b"enUS", len(data), 28) + data


@cache
def _srgb() -> bytes:
    return make_profile(_D65, _SRGB, None)
