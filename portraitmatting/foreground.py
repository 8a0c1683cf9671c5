"""The person's own colours: what a soft edge looks like without the old background in it.

Where alpha lies between 0 and 1 a pixel mixes foreground and background; pasting it elsewhere
shows the old background as a halo. Every method here finds F of image = alpha F + (1 - alpha) B.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portraitmatting.choices import METHODS
from portraitmatting.compositing import check_alpha
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.pixels import to_dtype, to_unit

Method = Literal["ml", "cf", "fast", "none"]

_ZEROS = cv2.BORDER_CONSTANT

_Solver = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]

_PATIENCE = 3.0  # seconds; once compiled, pymatting is there within two
_solvers: dict[str, _Solver] = {}
_loading = threading.Lock()
_solving = threading.Lock()


def estimate_foreground(
    image: NDArray[Any],
    alpha: NDArray[Any],
    method: Method = "ml",
    device: torch.device | str = "cpu",
) -> NDArray[Any]:
    """image HxWx3 RGB, uint8 | uint16 | float in 0..1, and alpha HxW float in 0..1 -> HxWx3
    foreground colours of the image's dtype and range, any size from 1x1.

    "ml": multi-level (Germer et al., "Fast Multi-Level Foreground Estimation", ICPR 2020).
    "cf": closed form (Levin et al., 2008); slow, and takes memory: for small images.
    "fast": `blur_fusion`. "none": the image itself. Pixels with alpha 1 keep their very values;
    those with alpha 0 get some smooth colour. `device` is where "fast" is computed. Safe to call
    from several threads at once. Raises PortraitmattingError on wrong shapes, ranges or methods.
    """
    weight = check_alpha(image, alpha)
    unit = to_unit(image, "image")
    if method not in METHODS:
        raise PortraitmattingError(f"foreground method {method!r}: use {', '.join(METHODS)}")
    # One pixel has no neighbours to tell foreground from background (and pymatting no levels).
    if method == "none" or weight.size <= 1:
        return image
    is_fast = method == "fast"
    colours = _fast(unit, weight, device) if is_fast else _pymatting(method)(unit, weight)
    return np.where(weight[..., None] == 1, image, to_dtype(colours, image.dtype))


def _fast(
    image: NDArray[np.float32], alpha: NDArray[np.float32], device: torch.device | str
) -> NDArray[np.float32]:
    scene = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
    colours = blur_fusion(scene, torch.from_numpy(alpha).to(device)[None, None])
    return colours[0].permute(1, 2, 0).cpu().numpy()


@torch.no_grad()
def blur_fusion(image: Tensor, alpha: Tensor) -> Tensor:
    """image BCHW and alpha B1HW, float in [0, 1] -> foreground colours BCHW of the image's dtype,
    device and size, any size from 1x1; without gradients.

    Blur fusion (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021): the mean
    colours of foreground and background in a window, corrected so that they mix to the image
    again; once with a wide window, then with a narrow one. Computed in float32 whatever comes in.
    """
    scene, matte = image.float(), alpha.float()
    front = back = scene
    for window in fusion_windows(*image.shape[-2:]):
        front_mean = _weighted_mean(front, matte, window)
        back = _weighted_mean(back, 1 - matte, window)
        # F^ + a (I - a F^ - (1 - a) B^)
        mixed = torch.lerp(back, front_mean, matte)
        front = torch.addcmul(front_mean, matte, scene - mixed).clamp_(0, 1)
    return front.to(image.dtype)


def fusion_windows(height: int, width: int) -> tuple[int, int]:
    """The wide and the narrow window for an image of this size: odd, in pixels.

    The paper has 90 and 6 at any size. Windows that grow with the image do better: on 10
    cut-outs with known colours, 420 pixels high, the mean error at the edges falls from 8.6 grey
    levels to 8.1, and from 11.0 to 9.2 if these edges are out of focus ("ml": 8.5 and 7.1).
    """
    short = min(height, width)
    return max(7, short // 8 // 2 * 2 + 1), max(3, short // 56 // 2 * 2 + 1)


def _weighted_mean(colours: Tensor, weight: Tensor, window: int) -> Tensor:
    """Where nothing in the window has weight, the colour itself."""
    tiny = 1e-5
    total = _box(colours * weight, window)
    return total.add_(colours, alpha=tiny).div_(_box(weight, window).add_(tiny))


def _box(planes: Tensor, window: int) -> Tensor:
    """BCHW float32 -> means over window x window pixels, zeros outside."""
    if planes.device.type == "cpu":
        # OpenCV's running sums: four times as fast as anything torch has for the CPU.
        means = torch.empty_like(planes, memory_format=torch.contiguous_format)
        for source, target in zip(planes.flatten(0, 1), means.flatten(0, 1), strict=True):
            cv2.blur(source.numpy(), (window, window), target.numpy(), borderType=_ZEROS)
        return means
    return _box_by_sums(planes, window)


def _box_by_sums(planes: Tensor, window: int) -> Tensor:
    return _window_sums(_window_sums(planes, window, 3), window, 2) / window**2


def _window_sums(planes: Tensor, window: int, axis: int) -> Tensor:
    """Sums of `window` neighbours along an axis, by adding sums of 1, 2, 4, ... of them: few
    steps, and without the rounding errors of differences of cumulative sums."""
    before = window // 2
    pad = (before, before, 0, 0) if axis == 3 else (0, 0, before, before)
    run, length = F.pad(planes, pad), planes.shape[axis]
    sums, done, width = torch.zeros_like(planes), 0, 1
    while width <= window:
        if window & width:
            sums = sums + run.narrow(axis, done, length)
            done += width
        rest = run.shape[axis] - width
        if rest > 0:
            run = run.narrow(axis, 0, rest) + run.narrow(axis, width, rest)
        width *= 2
    return sums


def _pymatting(method: str) -> _Solver:
    """pymatting's solver, loaded on first use; it may be called from several threads at once."""
    with _loading:
        if method not in _solvers:
            notice = threading.Timer(_PATIENCE, _say_why_it_takes_long)
            notice.daemon = True
            notice.start()
            threads = torch.get_num_threads()
            try:
                _solvers[method] = _load_solver(method)
            finally:
                notice.cancel()
                torch.set_num_threads(threads)  # numba leaves its own number in their OpenMP
        return _solvers[method]


def _say_why_it_takes_long() -> None:
    print(
        "Foreground estimation: pymatting is still loading. On its first use in an environment it "
        "compiles itself, once, which may take a minute or more.",
        file=sys.stderr,
        flush=True,
    )


def _load_solver(method: str) -> _Solver:
    if importlib.util.find_spec("pymatting") is None:
        raise PortraitmattingError(
            f"foreground method {method!r} needs pymatting: pip install pymatting, or use 'fast'"
        )
    if method == "cf":
        # One at a time, for its memory: about half a GB per megapixel.
        module = importlib.import_module("pymatting.foreground.estimate_foreground_cf")
        return _one_at_a_time(module.estimate_foreground_cf)
    solver: _Solver = _multi_level_module().estimate_foreground_ml
    import numba

    # numba settles on a threading layer at the first call. The simplest one aborts the process
    # when two threads enter it; the others do not mind.
    solver(np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.float32))
    return _one_at_a_time(solver) if numba.threading_layer() == "workqueue" else solver


def _one_at_a_time(solver: _Solver) -> _Solver:
    def locked(image: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
        with _solving:
            return solver(image, alpha)

    return locked


def _multi_level_module() -> ModuleType:
    """The one file of pymatting that "ml" needs. Importing the package compiles all of it on first
    use, 49 s where this file alone takes 11 s."""
    name = "pymatting.foreground.estimate_foreground_ml"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("pymatting")  # which finds it without importing it
    assert package and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0], *name.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Under its own name before it runs, or else numba stores functions that nobody finds again.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
