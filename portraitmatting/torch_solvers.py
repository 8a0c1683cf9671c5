"""Methods for foreground colours in PyTorch, for any device: the multi-level method ("ml"), blur
fusion ("fast"), and the fit of colours estimated on a smaller copy to the pixels of the image.

Images and alphas are float32 in 0..1. Each method returns the colours of the foreground and of the
background as one tensor 6xHxW: RGB of the foreground, then RGB of the background.
"""

import math

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

FIT_STEPS = 2
"""Steps of `fit_colors`. Each reads the neighbours of a pixel, so that a fitted colour depends on
pixels at most this far away."""
_REGULARIZATION = 1e-5


@torch.no_grad()
def fit_colors(pixels: Tensor, alpha: Tensor, colors: Tensor, index: Tensor) -> Tensor:
    """Estimated colours -> Nx6, fitted to N pixels of the image: `FIT_STEPS` steps of the finest
    level of the multi-level method.

    Args:
        pixels: Nx3, the image at `index`.
        alpha: HxW.
        colors: 6xHxW, the estimates, enlarged from a smaller copy of the image.
        index: N flat indices of the pixels to fit, none of them at the border.
    """
    width = alpha.shape[1]
    state, alphas = colors.flatten(1).T.contiguous(), alpha.flatten()
    own = alphas[index, None]
    neighbours = [index + step for step in (-1, 1, -width, width)]
    weights = [_REGULARIZATION + (own - alphas[pixel, None]).abs() for pixel in neighbours]
    total = torch.stack(weights).sum(dim=0)
    shares, divisor = torch.stack([own, 1 - own], dim=1), _divisor(own, total)
    for _ in range(FIT_STEPS):
        means = sum(w * state[p] for w, p in zip(weights, neighbours, strict=True)) / total
        state[index] = _unmix(pixels, shares, means.view(-1, 2, 3), divisor, 1).flatten(1)
    return state[index]


def _divisor(alpha: Tensor, total: Tensor) -> Tensor:
    """The denominator in `_unmix`, from alpha and the sum of the weights of the neighbours."""
    return alpha**2 + (1 - alpha) ** 2 + total


def _unmix(image: Tensor, shares: Tensor, means: Tensor, divisor: Tensor, dim: int) -> Tensor:
    """Foreground and background colours, clamped to 0..1, that mix to the image as well as possible
    while they stay near those of their neighbours: equation 4 of the multi-level paper (Germer et
    al., 2020), solved for each pixel by itself.

    Args:
        image: the image's colours.
        shares: of the mixture: alpha for the foreground, 1 - alpha for the background.
        means: the neighbours' weighted mean colours in foreground and background.
        divisor: as `_divisor` gives it.
        dim: the dimension of `shares` and `means`, of size 2, with foreground and background.
    """
    front, back = (shares * means).unbind(dim)
    rest = (image - front - back) / divisor
    return torch.addcmul(means, shares, rest.unsqueeze(dim)).clamp(0, 1)


@torch.no_grad()
def multi_level(image: Tensor, alpha: Tensor) -> Tensor:
    """The multi-level method: image 3xHxW and alpha HxW -> colours 6xHxW.

    For GPUs; on the CPU, pymatting is used. The algorithm is that of
    `pymatting.estimate_foreground_ml`, except for the order in which a sweep updates the pixels:
    pymatting takes one after another, this function all white squares of a checkerboard at once,
    then all black ones.
    """
    height, width = alpha.shape
    # Start with the mean colours of the certain foreground and background, go on from 1x1 pixel to
    # the size of the image, and improve the colours of the level before at each level.
    masks = (alpha > 0.9).float(), (alpha < 0.1).float()
    colors = [(image * mask).sum(dim=(1, 2)) / (mask.sum() + 1e-5) for mask in masks]
    state = torch.cat(colors)[:, None, None]
    levels = max(1, math.ceil(math.log2(max(height, width))))
    for level in range(levels + 1):
        size = tuple(round(side ** (level / levels)) for side in (height, width))
        pixels, matte = _nearest(image, size), _nearest(alpha[None], size)
        state = _nearest(state, size)
        weights = [_REGULARIZATION + (matte - other).abs() for other in _neighbours(matte)]
        total = torch.stack(weights).sum(dim=0)
        weights = [weight / total for weight in weights]
        shares, divisor = torch.stack([matte, 1 - matte]), _divisor(matte, total)
        rows, columns = (torch.arange(side, device=image.device) for side in size)
        odd = ((rows[:, None] + columns) % 2).bool()
        turns = odd, ~odd  # each keeps these pixels as they are
        for turn in range(2 * (10 if max(size) <= 32 else 2)):
            # As few kernels as possible: at small levels their launches take most of the time.
            first, *others = zip(weights, _neighbours(state), strict=True)
            means = first[0] * first[1]
            for weight, other in others:
                means = torch.addcmul(means, weight, other)
            both = _unmix(pixels, shares, means.view(2, 3, *size), divisor, 0)
            state = torch.where(turns[turn % 2], state, both.flatten(0, 1))
    return state


def _nearest(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    """CxHxW -> Cxhxw of `size` by nearest neighbours, as in pymatting."""
    rows, columns = (
        torch.arange(new, device=planes.device) * old // new
        for new, old in zip(size, planes.shape[1:], strict=True)
    )
    return planes[:, rows][:, :, columns]


def _neighbours(planes: Tensor) -> list[Tensor]:
    """For each pixel of CxHxW its neighbours to the left, right, above and below, four of CxHxW.
    Outside the border a pixel is its own neighbour."""
    padded = F.pad(planes[None], (1, 1, 1, 1), mode="replicate")[0]
    rows, columns = padded[:, 1:-1], padded[:, :, 1:-1]
    return [rows[..., :-2], rows[..., 2:], columns[:, :-2], columns[:, 2:]]


@torch.no_grad()
def blur_fusion(image: Tensor, alpha: Tensor, windows: tuple[int, int]) -> Tensor:
    """Blur fusion: image 3xHxW and alpha HxW, any size from 1x1 -> colours 6xHxW.

    (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021.) The mean colours of
    foreground and background in a window, corrected so that they mix to the image again; first with
    a wide window, then with a narrow one, as in `fusion_windows`.
    """
    image, alpha = image[None], alpha[None, None]
    front = back = image
    for window in windows:
        front_mean = _weighted_mean(front, alpha, window)
        back = _weighted_mean(back, 1 - alpha, window)
        # F^ + a (I - a F^ - (1 - a) B^)
        mixed = torch.lerp(back, front_mean, alpha)
        front = torch.addcmul(front_mean, alpha, image - mixed).clamp_(0, 1)
    return torch.cat([front, back], dim=1)[0]


def fusion_windows(height: int, width: int) -> tuple[int, int]:
    """The wide and the narrow window for an image of this size: the sides in pixels, both odd.

    The paper uses 90 and 6 for images of any size. Windows that grow with the image do better: on
    10 cut-outs with known colours, 420 pixels high, the mean error at the edges falls from 8.6 grey
    levels to 8.1, and from 11.0 to 9.2 if the edges are out of focus ("ml": 8.5 and 7.1).
    """
    short = min(height, width)
    return max(7, short // 8 // 2 * 2 + 1), max(3, short // 56 // 2 * 2 + 1)


def _weighted_mean(colors: Tensor, weight: Tensor, window: int) -> Tensor:
    """Weighted mean colours in the window around each pixel: colours Bx3xHxW and weight Bx1xHxW ->
    Bx3xHxW. Where nothing in the window has weight, the pixel's own colour."""
    tiny = 1e-5
    total = _box(colors * weight, window)
    return total.add_(colors, alpha=tiny).div_(_box(weight, window).add_(tiny))


def _box(planes: Tensor, window: int) -> Tensor:
    """BxCxHxW -> the same size, the mean of the window x window pixels around each pixel, with
    zeros outside the image."""
    if planes.device.type == "cpu":
        # OpenCV's running sums are four times as fast as anything PyTorch has for the CPU.
        means = torch.empty_like(planes, memory_format=torch.contiguous_format)
        for source, target in zip(planes.flatten(0, 1), means.flatten(0, 1), strict=True):
            cv2.blur(
                source.numpy(), (window, window), target.numpy(), borderType=cv2.BORDER_CONSTANT
            )
        return means
    return _box_by_pooling(planes, window)


def _box_by_pooling(planes: Tensor, window: int) -> Tensor:
    """`_box` along one axis after the other: few kernels, and no large sums that lose digits."""
    rows = F.avg_pool2d(planes, (window, 1), stride=1, padding=(window // 2, 0))
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, window // 2))
