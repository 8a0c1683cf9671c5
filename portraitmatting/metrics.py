"""Errors of a matte against the ground truth, as the matting literature defines them.

Every function takes `(alpha, ground_truth, mask=None)`. alpha and ground_truth are HxW float in
[0, 1] and have one size; mask is HxW bool and selects the pixels that are scored, often the unknown
region of a trimap (`trimap.unknown_region`); None selects all. The result is a float, and smaller
is better, except for `iou`. Different sizes, other dtypes, values outside [0, 1] and a mask that
selects nothing raise ImageError. Arithmetic is in the inputs' precision, sums are in float64.

SAD, MSE, Grad and Conn are from Rhemann et al., "A Perceptually Motivated Online Benchmark for
Image Matting", CVPR 2009. Details that the article leaves open are as in the evaluation code in
common use (Xu et al., "Deep Image Matting", CVPR 2017), so that scores can be compared with
published ones; each function names its choices. Sums (SAD, Grad, Conn) are in thousands and grow
with the image; means (MSE, MAD) are not scaled, while papers often print them times 1000.
"""

import math
from collections.abc import Callable, Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from portraitmatting.errors import ImageError

Alpha = NDArray[np.floating]
Mask = NDArray[np.bool_]

GRADIENT_SIGMA = 1.4
GRADIENT_EPSILON = 1e-2
CONNECTIVITY_STEPS = 10
CONNECTIVITY_THETA = 0.15


def sad(alpha: Alpha, ground_truth: Alpha, mask: Mask | None = None) -> float:
    """Sum of absolute differences, in thousands."""
    _check(alpha, ground_truth, mask)
    return _sum(np.abs(alpha - ground_truth), mask) / 1000


def mse(alpha: Alpha, ground_truth: Alpha, mask: Mask | None = None) -> float:
    """Mean squared difference over the scored pixels, not scaled."""
    _check(alpha, ground_truth, mask)
    return _sum(np.square(alpha - ground_truth), mask) / _count(ground_truth, mask)


def mad(alpha: Alpha, ground_truth: Alpha, mask: Mask | None = None) -> float:
    """Mean absolute difference over the scored pixels, not scaled."""
    _check(alpha, ground_truth, mask)
    return _sum(np.abs(alpha - ground_truth), mask) / _count(ground_truth, mask)


def grad(alpha: Alpha, ground_truth: Alpha, mask: Mask | None = None) -> float:
    """Sum of squared differences of the two gradient magnitudes, in thousands.

    Gradients come from first-order Gaussian derivative filters of sigma 1.4, cut off where the
    Gaussian falls below 1e-2 (9x9), scaled to unit L2 norm, with replicated borders. They are
    computed for the whole image and masked afterwards. The common code first stretches both mattes
    to the full range. This function does not: of an empty matte, stretching would make noise count
    as a person.
    """
    _check(alpha, ground_truth, mask)
    difference = _gradient_magnitude(alpha) - _gradient_magnitude(ground_truth)
    return _sum(np.square(difference), mask) / 1000


def conn(alpha: Alpha, ground_truth: Alpha, mask: Mask | None = None) -> float:
    """Connectivity error in thousands: the sum of |phi(alpha) - phi(ground_truth)|, theta .15, p 1.

    For a pixel of value a and level l, and d = a - l, phi is 1 - d if d reaches theta, else 1. The
    level is the last of the thresholds 0, .1, ... 1 up to which the pixel belongs to the largest
    4-connected region where both mattes reach the threshold. The article connects pixels to one
    source region instead (the largest that is opaque in both); this function, like the common code,
    finds the largest region again at each threshold. Among equally large regions the first in
    reading order counts. Thresholds are k/10, so that a value of k/10 in 8 bits reaches them.
    """
    _check(alpha, ground_truth, mask)
    level = _connected_level(np.minimum(alpha, ground_truth))
    difference = _connectivity(alpha, level) - _connectivity(ground_truth, level)
    return _sum(np.abs(difference), mask) / 1000


def iou(alpha: Alpha, ground_truth: Alpha, mask: Mask | None = None) -> float:
    """Intersection over union of the pixels that reach 0.5; 1.0 if neither matte has any.

    The Jaccard index of Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge",
    IJCV 2010, with a single class. Larger is better.
    """
    _check(alpha, ground_truth, mask)
    a, b = _solid(alpha), _solid(ground_truth)
    union = _sum(a | b, mask)
    return _sum(a & b, mask) / union if union else 1.0


def boundary_error(alpha: Alpha, ground_truth: Alpha, mask: Mask | None = None) -> float:
    """Average symmetric distance between the two outlines at 0.5, in pixels.

    The mean, over the outline pixels of both mattes, of the Euclidean distance to the other's
    nearest outline pixel: the average symmetric surface distance of Heimann et al., "Comparison and
    Evaluation of Methods for Liver Segmentation from CT Datasets", IEEE TMI 2009. An outline pixel
    reaches 0.5 and has a 4-neighbour that does not; the image's border is not an outline. The mask
    selects the pixels whose distances count, not those that distances are measured to. If a matte
    has no outline, the error is 0 if both mattes reach 0.5 in the same pixels, for instance in
    none, and otherwise the image's diagonal.
    """
    _check(alpha, ground_truth, mask)
    solid = _solid(alpha), _solid(ground_truth)
    outlines = _outline(solid[0]), _outline(solid[1])
    if not (outlines[0].any() and outlines[1].any()):
        return 0.0 if np.array_equal(*solid) else math.hypot(*ground_truth.shape)
    distance, points = 0.0, 0
    for outline, other in (outlines, outlines[::-1]):
        counted = outline if mask is None else outline & mask
        distance += float(_distance_to(other)[counted].sum(dtype=np.float64))
        points += int(np.count_nonzero(counted))
    return distance / points if points else 0.0


def dtssd(
    alphas: Iterable[Alpha], ground_truths: Iterable[Alpha], masks: Iterable[Mask] | None = None
) -> float:
    """Flicker of a clip: the mean of `dtssd_step` over consecutive frames.

    Takes at least two frames (else ImageError), equally many of each kind (else ValueError). Only
    two frames are held at a time: pass iterators for long clips.
    """
    steps: list[float] = []
    previous: tuple[Alpha, Alpha] | None = None
    pairs = zip(alphas, ground_truths, strict=True)
    frames = ((pair, None) for pair in pairs) if masks is None else zip(pairs, masks, strict=True)
    for (alpha, ground_truth), mask in frames:
        if previous is not None:
            steps.append(dtssd_step(previous, (alpha, ground_truth), mask))
        previous = alpha, ground_truth
    if not steps:
        raise ImageError("dtSSD compares consecutive frames: pass at least two")
    return math.fsum(steps) / len(steps)


def dtssd_step(
    previous: tuple[Alpha, Alpha], current: tuple[Alpha, Alpha], mask: Mask | None = None
) -> float:
    """dtSSD of two consecutive frames, each (alpha, ground_truth): the root of the mean squared
    difference between the change of the matte and that of the ground truth. The mask is that of the
    current frame.

    Erofeev et al., "Perceptually Motivated Benchmark for Video Matting", BMVC 2015, with the mean
    over pixels that later tables use (Lin et al., "Robust High-Resolution Video Matting with
    Temporal Guidance", WACV 2022, times 100) in place of the sum.
    """
    for alpha, ground_truth in (previous, current):
        _check(alpha, ground_truth, mask)
    if previous[0].shape != current[0].shape:
        raise ImageError(f"a frame of {_size(previous[0])} is followed by {_size(current[0])}")
    change = (current[0] - previous[0]) - (current[1] - previous[1])
    return math.sqrt(_sum(np.square(change), mask) / _count(change, mask))


METRICS: dict[str, Callable[[Alpha, Alpha, Mask | None], float]] = {
    "SAD": sad,
    "MSE": mse,
    "MAD": mad,
    "Grad": grad,
    "Conn": conn,
    "IoU": iou,
    "Boundary": boundary_error,
}
"""The metrics of one image, under the names that tables print."""


def _check(alpha: Alpha, ground_truth: Alpha, mask: Mask | None) -> None:
    for name, array in (("alpha", alpha), ("the ground truth", ground_truth)):
        if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.floating):
            raise ImageError(
                f"{name} is {array.dtype} of shape {array.shape}: expected HxW float in [0, 1]"
            )
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ImageError(f"{name} spans {low:.4g} to {high:.4g}: expected values in [0, 1]")
    if alpha.shape != ground_truth.shape:
        raise ImageError(
            f"alpha is {_size(alpha)}, the ground truth {_size(ground_truth)}: resize one of them"
        )
    if mask is None:
        return
    if mask.dtype != np.bool_ or mask.shape != alpha.shape:
        raise ImageError(
            f"mask is {mask.dtype} of shape {mask.shape}: expected bool of shape {alpha.shape}"
        )
    if not mask.any():
        raise ImageError("the mask selects no pixel: score the whole image instead")


def _size(array: Alpha) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _sum(values: NDArray[np.generic], mask: Mask | None) -> float:
    return float((values if mask is None else values[mask]).sum(dtype=np.float64))


def _count(values: NDArray[np.generic], mask: Mask | None) -> int:
    return values.size if mask is None else int(np.count_nonzero(mask))


def _gradient_magnitude(alpha: Alpha) -> Alpha:
    smooth, slope = _gaussian_kernels()
    along_x = cv2.sepFilter2D(alpha, -1, slope, smooth, borderType=cv2.BORDER_REPLICATE)
    along_y = cv2.sepFilter2D(alpha, -1, smooth, slope, borderType=cv2.BORDER_REPLICATE)
    return np.hypot(along_x, along_y)


def _gaussian_kernels() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 1-d Gaussian and its derivative, each of unit L2 norm, as is then their outer product."""
    sigma = GRADIENT_SIGMA
    peak = math.sqrt(2 * math.pi) * sigma
    radius = math.ceil(sigma * math.sqrt(-2 * math.log(peak * GRADIENT_EPSILON)))
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * sigma**2)) / peak
    slope = -x * smooth / sigma**2
    return smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)


def _connected_level(both: Alpha) -> Alpha:
    """Per pixel the threshold up to which it belongs to the largest region where `both` (the
    minimum of the two mattes) reaches the threshold."""
    level = np.ones_like(both)
    belongs = np.ones(both.shape, np.bool_)
    for step in range(1, CONNECTIVITY_STEPS + 1):
        belonged = belongs
        belongs = belonged & _largest_region(both >= step / CONNECTIVITY_STEPS)
        level[belonged & ~belongs] = (step - 1) / CONNECTIVITY_STEPS
    return level


def _largest_region(solid: Mask) -> Mask:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        solid.astype(np.uint8), connectivity=4
    )
    if count < 2:  # label 0 is the background
        return np.zeros_like(solid)
    return np.asarray(labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def _connectivity(alpha: Alpha, level: Alpha) -> Alpha:
    difference = alpha - level
    return 1 - np.where(difference >= CONNECTIVITY_THETA, difference, 0)


def _solid(alpha: Alpha) -> Mask:
    return np.asarray(alpha >= 0.5)


def _outline(solid: Mask) -> Mask:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    # erode() ignores what is outside the image, so that its border is no outline.
    inside = cv2.erode(solid.astype(np.uint8), cross) > 0
    return np.asarray(solid & ~inside)


def _distance_to(outline: Mask) -> NDArray[np.generic]:
    elsewhere = (~outline).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
