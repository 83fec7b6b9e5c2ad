"""Descreening: takes away the pattern that a network leaves which unfolds several pixels from one feature."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .sharpening import detail

_DETAIL, _NEIGHBOURHOOD = 2.0, 2.0  # sigma of the detail that is looked at, in pixels, and of a neighbourhood, in folds


def descreen(pixels: Tensor, fold: int) -> Tensor:
    """Pixels (N, C, H, W) without the detail that all folds of a neighbourhood have in common.

    The pixels of a fold come from different channels of one convolution (`pixel_shuffle`), and where that is unsure of
    detail it repeats one tile, which shows as a weave. The detail of what was filmed hardly ever has the fold's period
    and place: of it, little goes. H and W are multiples of `fold` and more than six folds long.
    Errors: MissingPackageError without torchvision.
    """
    places = F.pixel_unshuffle(detail(pixels, _DETAIL), fold)
    return pixels - F.pixel_shuffle(places - detail(places, _NEIGHBOURHOOD), fold)
