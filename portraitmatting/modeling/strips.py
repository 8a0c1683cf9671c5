"""Maps in strips of rows, so that what is between two layers stays in the processor's cache.

For inference on a CPU. Generators chain into a network: each takes the strips of a map, (1, C,
rows, W) from top to bottom, and yields those of its own map, which cover the same parts of the
image. The rows that a strip needs of its neighbours are kept for it, so that nothing is computed
twice.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portraitmatting.modeling.decoder import upsample2


def with_neighbours(
    strips: Iterable[Tensor],
) -> Iterator[tuple[Tensor | None, Tensor, Tensor | None]]:
    """Each strip between the row above it and the row below it; None outside of the map."""
    above, strip = None, None
    for below in strips:
        if strip is not None:
            yield above, strip, below[:, :, :1]
            above = strip[:, :, -1:]
        strip = below
    if strip is not None:
        yield above, strip, None


def join(strips: Iterable[Tensor]) -> Tensor:
    """One below the other, channels_last."""
    return torch.cat([strip.permute(0, 2, 3, 1) for strip in strips], dim=1).permute(0, 3, 1, 2)


def repeat_border(above: Tensor | None, strip: Tensor, below: Tensor | None) -> Tensor:
    """A strip with one more row on either side: outside of the map, its border row again."""
    above = strip[:, :, :1] if above is None else above
    below = strip[:, :, -1:] if below is None else below
    return join([above, strip, below])


def zero_border(above: Tensor | None, strip: Tensor, below: Tensor | None) -> Tensor:
    """A strip with one more row on either side: outside of the map, zeros."""
    outside = torch.zeros_like(strip[:, :, :1])
    return join([outside if above is None else above, strip, outside if below is None else below])


def convolve(strips: Iterable[Tensor], layer: nn.Conv2d) -> Iterator[Tensor]:
    """A 3x3 convolution, padded with zeros."""
    for neighbours in with_neighbours(strips):
        x = zero_border(*neighbours)
        yield F.conv2d(x, layer.weight, layer.bias, padding=(0, 1))


def run(strips: Iterable[Tensor], layers: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Convolutions, 3x3, and layers that treat each place by itself, one after the other."""
    for layer in layers:
        strips = convolve(strips, layer) if isinstance(layer, nn.Conv2d) else map(layer, strips)
    yield from strips


def convolve_beside_upsampled(
    strips: Iterable[Tensor], halves: Iterable[Tensor], layer: nn.Conv2d, channels: int
) -> Iterator[Tensor]:
    """A 3x3 convolution, padded with zeros, of a map (`channels`, 2H, 2W) and beside it another
    (D, H, W) that is upsampled for it: without upsampling it.

    Bilinear upsampling is repeating all values twice in both directions and smoothing what comes of
    it by (1 2 1) / 4. Convolution may go before smoothing, and on repeated values a 3x3 kernel has
    but 2x2 different ones under it: so four kernels of 2x2, for the four places that one value
    becomes, do with 16 multiplications what takes 36.
    """
    for_fine, for_coarse = layer.weight.tensor_split([channels], dim=1)
    kernels = _fold(for_coarse)
    for fine, coarse in zip(with_neighbours(strips), with_neighbours(halves), strict=True):
        y = F.conv2d(zero_border(*fine), for_fine, layer.bias, padding=(0, 1))
        yield y.add_(_convolve_upsampled(*coarse, for_coarse, kernels))


def _fold(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) to (4 O, I, 2, 2): for two neighbours a and b, repeated, the kernels of the last
    place of a and the first one of b, in both directions."""
    fold = weight.new_tensor([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]])  # a a b, a b b
    kernels = torch.einsum("ptr,quc,oirc->pqoitu", fold, fold, weight).flatten(0, 2)
    return kernels.contiguous(memory_format=torch.channels_last)


def _convolve_upsampled(
    above: Tensor | None, strip: Tensor, below: Tensor | None, weight: Tensor, kernels: Tensor
) -> Tensor:
    x = repeat_border(above, strip, below)
    framed = x.permute(0, 2, 3, 1)
    framed = torch.cat([framed[:, :, :1], framed, framed[:, :, -1:]], dim=2)
    y = F.conv2d(framed.permute(0, 3, 1, 2), kernels).permute(0, 2, 3, 1).squeeze(0)
    rows, columns, _ = y.shape
    y = y.view(rows, columns, 2, 2, -1).transpose(1, 2).reshape(1, 2 * rows, 2 * columns, -1)
    smooth = x.new_tensor([1, 2, 1]) / 4
    smooth = torch.outer(smooth, smooth).expand(len(weight), 1, 3, 3)
    y = F.conv2d(y.permute(0, 3, 1, 2), smooth, groups=len(weight))

    # At the map's border convolution takes zeros from outside, but smoothing what is repeated
    # there: the two may not change places.
    def as_written(part: Tensor) -> Tensor:
        return F.conv2d(upsample2(part), weight, padding=1)

    y[..., 0] = as_written(x[..., :2])[:, :, 2:-2, 0]
    y[..., -1] = as_written(x[..., -2:])[:, :, 2:-2, -1]
    if above is None:
        y[:, :, 0] = as_written(x[:, :, 1:3])[:, :, 0]
    if below is None:
        y[:, :, -1] = as_written(x[:, :, -3:-1])[:, :, -1]
    return y
