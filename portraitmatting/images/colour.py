"""ICC profiles: converted to and from, and made from other information about colours."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from portraitmatting.images.pixels import to_dtype

_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])
_D65 = (0.3127, 0.329)
_SRGB: tuple[float, ...] = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

# ITU-T H.273, table 2: x and y of the white point and of the primaries. Other codes are taken as
# sRGB.
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
# Table 3. For photographs marked as video (1, 6, 14, 15) sRGB's curve is used, as in browsers; for
# HDR (16, 18) only the primaries are used.
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}

_FEW = 300  # values: 100 colours
_EXACT = 0x100  # cmsFLAGS_NOOPTIMIZE: a table would be off by up to 4 of 255 near black


def rgb_profile(profile: bytes | None) -> bytes | None:
    """The profile if it is one of RGB values, else None."""
    sound = profile and profile[36:40] == b"acsp" and profile[16:20] == b"RGB "
    return profile if sound else None


def to_rgb(colours: NDArray[Any], profile: bytes | None) -> tuple[NDArray[Any], bytes | None]:
    """HxW grey, HxWx3 RGB or HxWx4 CMYK (0 for no ink), uint8 | uint16 -> HxWx3 RGB, and its
    profile, None for sRGB. A profile that does not fit the colours is ignored."""
    if colours.ndim == 3 and colours.shape[2] == 3:
        return colours, rgb_profile(profile)
    space = "gray" if colours.ndim == 2 else "cmyk"
    if profile and profile[36:40] == b"acsp" and profile[16:20] == space.upper().encode():
        with suppress(imagecodecs.CmsError, ValueError):  # the profile is broken
            converted = imagecodecs.cms_transform(
                np.ascontiguousarray(colours), profile, _srgb(),
                colorspace=space, outcolorspace="rgb", intent=0,
                flags=_EXACT if colours.dtype == np.uint16 else None,
            )  # fmt: skip
            return np.asarray(converted), None
    if space == "gray":
        return np.repeat(colours[..., None], 3, axis=2), rgb_profile(profile)
    eight = np.ascontiguousarray(to_dtype(colours, np.uint8))
    image = Image.frombuffer("CMYK", (eight.shape[1], len(eight)), eight, "raw", "CMYK", 0, 1)
    return np.asarray(image.convert("RGB")), None


def convert_rgb(
    pixels: NDArray[Any], source: bytes | None = None, target: bytes | None = None
) -> NDArray[Any]:
    """HxWx3 RGB, uint8 | uint16 | float32 in [0, 1], converted from profile `source` to `target`
    (None: sRGB); same shape and dtype.

    A profile of other than RGB values counts as sRGB; colours that cannot be converted stay as
    they are.
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
    """Convert flat colours: of the eight values around each exact result, the one closest to it
    when converted back. Near black, one step of a wide profile in 8 bits may be 9 levels of sRGB.
    """
    exact = pixels.astype(np.float32) / 255
    below = np.floor(convert_rgb(exact, source, target) * 255)
    corners = np.indices((2, 2, 2)).reshape(3, 8).T
    values = np.clip(below[None] + corners[:, None, None], 0, 255).astype(np.float32)
    back = np.stack([convert_rgb(value / 255, target, source) for value in values])
    best = np.abs(back - exact).max(axis=-1).argmin(axis=0)
    return np.take_along_axis(values, best[None, ..., None], axis=0)[0].astype(np.uint8)


def profile_of_codes(primaries: int, transfer: int) -> bytes | None:
    """The profile of codes of ITU-T H.273 (cICP in PNG, nclx in AVIF and HEIC); None for sRGB."""
    white, xy = _PRIMARIES.get(primaries, (_D65, _SRGB))
    gamma = _GAMMAS.get(transfer)
    if xy == _SRGB and gamma is None:
        return None
    return make_profile(white, xy, gamma)


def adobe_rgb() -> bytes:
    """Adobe RGB (1998), which cameras record in EXIF."""
    return make_profile(_D65, (0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 563 / 256)


def profile_of_png(gamma: float | None, chromaticities: Sequence[float] | None) -> bytes | None:
    """The profile of PNG's gAMA (the exponent of encoding, about 0.45) and cHRM (white, red, green,
    blue); None if they are close to sRGB, or impossible."""
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
    """As signed fixed-point numbers, 16 bits before and 16 after the point."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return struct.pack(">4sIII4sII", b"mluc", 0, 1, 12, b"enUS", len(data), 28) + data


@cache
def _srgb() -> bytes:
    return make_profile(_D65, _SRGB, None)
