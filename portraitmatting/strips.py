"""Maps in strips of rows, so that what is between two layers stays in the processor's cache.

For inference on a CPU. Generators chain into a network: each takes the strips of a map, (1, C,
rows, W) from top to bottom, and yields those of its own map, which cover the same parts of the
picture. The rows that a strip needs of its neighbours are kept for it, so that nothing is computed
twice.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portraitmatting.decoder import upsample2


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


def join(strips: Sequence[Tensor]) -> Tensor:
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
    strips: Iterable[Tensor], halves: Iterable[Tensor], layer: nn.Conv2d
) -> Iterator[Tensor]:
    """A 3x3 convolution, padded with zeros, of a map (C, 2H, 2W) beside another one (D, H, W) that
    is upsampled for it, without upsampling it.

    Bilinear upsampling is repeating all values twice in both directions and smoothing what comes of
    it by (1 2 1) / 4. Convolution may go before smoothing, and on repeated values a 3x3 kernel has
    but 2x2 different ones under it: so four kernels of 2x2, for the four places that one value
    becomes, do with 16 multiplications what takes 36. Only at the border they may not change
    places, since a convolution takes zeros for what is outside and smoothing repeats what is
    inside; there all is computed as it is written.
    """
    channels = None
    pairs = zip(with_neighbours(strips), with_neighbours(halves), strict=True)
    for fine, (above, half, below) in pairs:
        if channels is None:
            channels = fine[1].shape[1]
            folded = _folded(layer.weight[:, channels:])
        y = F.conv2d(zero_border(*fine), layer.weight[:, :channels], layer.bias, padding=(0, 1))

        x = repeat_border(above, half, below)
        upsampled = _convolve_upsampled(x, *folded)
        weight = layer.weight[:, channels:]

        def as_written(part: Tensor) -> Tensor:
            return F.conv2d(upsample2(part), weight, padding=1)

        upsampled[..., 0] = as_written(x[..., :2])[:, :, 2:-2, 0]
        upsampled[..., -1] = as_written(x[..., -2:])[:, :, 2:-2, -1]
        if above is None:
            upsampled[:, :, 0] = as_written(x[:, :, 1:3])[:, :, 0]
        if below is None:
            upsampled[:, :, -1] = as_written(x[:, :, -3:-1])[:, :, -1]
        yield y.add_(upsampled)


def _folded(weight: Tensor) -> tuple[Tensor, Tensor]:
    # Between two values a, b of the smaller map are the places -1 and 0 of b's pair: under three
    # taps there are, repeated, (a a b) and (a b b).
    fold = weight.new_tensor([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]])
    folded = torch.einsum("ptr,quc,oirc->pqoitu", fold, fold, weight).flatten(0, 2)
    smooth = weight.new_tensor([1, 2, 1]) / 4
    smooth = torch.outer(smooth, smooth).expand(len(weight), 1, 3, 3)
    return (
        folded.contiguous(memory_format=torch.channels_last),
        smooth.contiguous(memory_format=torch.channels_last),
    )


def _convolve_upsampled(x: Tensor, folded: Tensor, smooth: Tensor) -> Tensor:
    columns = x.permute(0, 2, 3, 1)
    columns = torch.cat([columns[:, :, :1], columns, columns[:, :, -1:]], dim=2)
    y = F.conv2d(columns.permute(0, 3, 1, 2), folded).permute(0, 2, 3, 1).squeeze(0)
    rows, width, _ = y.shape
    y = y.view(rows, width, 2, 2, -1).transpose(1, 2).reshape(1, 2 * rows, 2 * width, -1)
    return F.conv2d(y.permute(0, 3, 1, 2), smooth, groups=len(smooth))
