"""Swin's first patch convolution, rewritten exactly into our convolutional stem."""

import torch
from torch import Tensor

from portraitmatting.errors import PortraitmattingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ROW_OF_PATCH = ((0, 1), (0, 2), (1, 1), (1, 2))
"""Row 0-3 of a patch as (stem site below the strided kernel's centre, row of that site's 3x3)."""


def stem_from_patch_convolution(
    weight: Tensor,
    bias: Tensor,
    stem: dict[str, Tensor],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> dict[str, Tensor]:
    """The encoder's stem and patch embedding that equal a 4x4 stride-4 convolution, exactly.

    In: `weight` (D, 3, 4, 4) and `bias` (D,), which read RGB less `mean` over `std`; `stem`, the
    entries `stem.0.*`, `stem.2.*` of a freshly initialised encoder with at least 27 stem channels.
    Out: the entries `stem.0`, `stem.2` and `patch_embed.proj` that give the same D values per site
    from RGB in [0, 1] at any size whose sides are multiples of 4.

    The first convolution hands on the 27 raw values under its 3x3 window, one per channel; pixels
    are not negative, so both PReLUs let them pass, and the second convolution copies them. The
    strided 3x3 around stem site (2I, 2J) finds all 16 pixels of patch (I, J) at offsets 0 and 1,
    away from every border, so zero padding never enters. Mean and deviation go into its weights.
    Stem channels beyond 27 keep what they had and are read with weight 0: free to learn.
    """
    channels = stem["stem.0.weight"].shape[0]
    if channels < 27 or weight.shape[1:] != (3, 4, 4):
        found = "x".join(map(str, weight.shape))
        raise PortraitmattingError(
            f"a {found} patch convolution does not fit a stem of {channels} channels: it must be "
            "Dx3x4x4, and the stem needs 27 channels to carry its pixels"
        )
    out = {name: value.clone() for name, value in stem.items()}
    out["stem.0.weight"][:27] = torch.eye(27).view(27, 3, 3, 3).to(weight)
    out["stem.0.bias"][:27] = 0
    out["stem.2.weight"][:27] = 0
    out["stem.2.weight"][range(27), range(27), 1, 1] = 1
    out["stem.2.bias"][:27] = 0

    scale = weight / weight.new_tensor(std).view(1, 3, 1, 1)
    taps = weight.new_zeros(
        weight.shape[0], 3, 3, 3, 3, 3
    )  # D, colour, row, column, site y, site x
    for y, (site_y, row) in enumerate(_ROW_OF_PATCH):
        for x, (site_x, column) in enumerate(_ROW_OF_PATCH):
            taps[:, :, row, column, 1 + site_y, 1 + site_x] = scale[:, :, y, x]
    strided = weight.new_zeros(weight.shape[0], channels, 3, 3)
    strided[:, :27] = taps.flatten(1, 3)
    out["patch_embed.proj.weight"] = strided
    shift = (scale * weight.new_tensor(mean).view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    out["patch_embed.proj.bias"] = bias - shift
    return out
