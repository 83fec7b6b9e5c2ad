"""Unsharp mask: what training may ask of its targets, and what a small decoder may do last."""

from __future__ import annotations

from torch import Tensor

from ..errors import require


def unsharp_mask(pixels: Tensor, amount: float) -> Tensor:
    """Pixels (N, C, H, W), sides above 3, with their detail strengthened: + amount * `detail`.

    Nothing is clamped; amount 0 gives the pixels themselves. Errors: MissingPackageError without torchvision.
    """
    return pixels + amount * detail(pixels) if amount else pixels


def detail(pixels: Tensor, sigma: float = 1.0) -> Tensor:
    """What a Gaussian of `sigma` pixels takes away from pixels (N, C, H, W), sides above 3 sigma.

    Errors: MissingPackageError without torchvision.
    """
    functional = require("torchvision.transforms.functional", "torchvision", "sharpening")
    side = 2 * round(3 * sigma) + 1
    return pixels - functional.gaussian_blur(pixels, [side, side], [sigma, sigma])
