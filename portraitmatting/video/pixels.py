"""Frames as FFmpeg has them <-> arrays: full colour resolution, HDR, transparency, orientation.

Everything goes through FFmpeg's `scale` filter, with its flags for colour planes of lower
resolution: by default it repeats each of their pixels, which leaves dots along coloured edges.
"""

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portraitmatting.video.container import import_av

_HD_HEIGHT = 720
"""Images from this height on that do not say their colour matrix are taken for BT.709, smaller
ones for BT.601, as players do."""
_RGB, _BT709, _UNSPECIFIED, _BT601 = 0, 1, 2, 6  # AVCOL_SPC_...
_WIDE_PRIMARIES = 9, 11, 12  # AVCOL_PRI_BT2020, DCI-P3, Display P3
_HDR_TRANSFERS = 16, 18  # AVCOL_TRC_SMPTE2084 (PQ), AVCOL_TRC_ARIB_STD_B67 (HLG)
_FLAGS = "flags=bilinear+full_chroma_int+full_chroma_inp+accurate_rnd"


class Converter:
    """Converts frames by FFmpeg's `scale` filter, which is set up anew when their kind changes."""

    def __init__(self) -> None:
        self._kind: Any = None
        self._graph: Any = None

    def to_arrays(
        self, frame: Any, size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """A decoded frame -> HxWx3 RGB uint8 in BT.709's colours, upright, and its own alpha, HxW
        uint8, None if it is opaque; where it is transparent, the colours are laid on white.

        `size` is (width, height) before it is turned upright: a stream may change its own on the
        way. HDR (PQ and HLG) is tone-mapped and wide colours are fitted in perceptually, as
        libswscale does it.
        """
        transparent = any(component.is_alpha for component in frame.format.components)
        matrix = frame.colorspace
        if matrix == _UNSPECIFIED:
            matrix = _BT709 if frame.height >= _HD_HEIGHT else _BT601
        options = f"{size[0]}:{size[1]}:{_FLAGS}"
        if matrix != _RGB and not frame.format.is_rgb:
            options += f":in_color_matrix={matrix}"
        if frame.color_trc in _HDR_TRANSFERS or frame.color_primaries in _WIDE_PRIMARIES:
            options += ":out_primaries=bt709:out_transfer=bt709:intent=perceptual"
        pixels = self._scaled(frame, options, "rgba" if transparent else "rgb24").to_ndarray()
        pixels = _upright(pixels, frame)
        if not transparent:
            return pixels, None
        alpha = np.ascontiguousarray(pixels[..., 3])
        if alpha.min() == 255:
            return np.ascontiguousarray(pixels[..., :3]), None
        weight = alpha[..., None].astype(np.float32) / 255
        return np.rint(255 + weight * (pixels[..., :3] - 255.0)).astype(np.uint8), alpha

    def to_frame(self, pixels: NDArray[np.uint8], size: tuple[int, int], pixel_format: str) -> Any:
        """HxW grey, HxWx3 RGB or HxWx4 RGBA uint8 -> a frame of `size` (width, height), BT.709,
        limited range unless `pixel_format` is an RGB one."""
        kind = "gray" if pixels.ndim == 2 else "rgba" if pixels.shape[2] == 4 else "rgb24"
        frame = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), kind)
        options = f"{size[0]}:{size[1]}:{_FLAGS}:out_color_matrix=bt709:out_range=limited"
        return self._scaled(frame, options, pixel_format)

    def _scaled(self, frame: Any, options: str, pixel_format: str) -> Any:
        kind = (
            *(frame.width, frame.height, frame.format.name, options, pixel_format),
            *(frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries),
        )
        if kind != self._kind:
            self._kind, self._graph = kind, import_av().filter.Graph()
            source = self._graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 25),
            )
            self._graph.link_nodes(
                source,
                self._graph.add("scale", options),
                self._graph.add("format", pixel_format),
                self._graph.add("buffersink"),
            ).configure()
        self._graph.push(frame)
        return self._graph.pull()


def _upright(pixels: NDArray[np.uint8], frame: Any) -> NDArray[np.uint8]:
    """Turned and mirrored as the file's display matrix says: with its entries a b c d (ISO/IEC
    14496-12, 8.2.2.3), pixel (x, y) is shown at (ax + cy, bx + dy)."""
    sides = display_matrix(frame)
    if sides is None:
        return pixels
    a, b, c, d = sides
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of a frame's display matrix, None if it has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])
