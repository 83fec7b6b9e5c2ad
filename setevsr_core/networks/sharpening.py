"""Unsharp mask: what training may ask of its targets, and what a small decoder may do last."""

from __future__ import annotations

from torch import Tensor

from ..errors import require


def unsharp_mask(pixels: Tensor, amount: float) -> Tensor:
    """Pixels (N, C, H, W), sides above 3, with their detail strengthened: + amount * what a Gaussian of sigma 1 takes
    away. Nothing is clamped; amount 0 gives the pixels themselves. Errors: MissingPackageError without torchvision.
    """
    if amount == 0:
        return pixels
    functional = require("torchvision.transforms.functional", "torchvision", "sharpening")
    return pixels + amount * (pixels - functional.gaussian_blur(pixels, [7, 7], [1.0, 1.0]))
