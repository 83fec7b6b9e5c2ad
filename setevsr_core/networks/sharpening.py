"""Unsharp mask: what training may ask of its targets, and what a small decoder may do last."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_REACH = 3  # of the Gaussian of sigma 1 pixel, in pixels


def unsharp_mask(pixels: Tensor, amount: float) -> Tensor:
    """Pixels (N, C, H, W), sides above 3, with their detail strengthened: + amount * what a Gaussian of sigma 1 takes
    away. Nothing is clamped; amount 0 gives the pixels themselves.
    """
    if amount == 0:
        return pixels
    channels = pixels.shape[1]
    taps = torch.arange(-_REACH, _REACH + 1, device=pixels.device, dtype=torch.float32).square().mul(-0.5).exp()
    taps = (taps / taps.sum()).to(pixels.dtype).expand(channels, 1, 1, -1)
    soft = F.pad(pixels, [_REACH] * 4, mode="reflect")
    soft = F.conv2d(F.conv2d(soft, taps, groups=channels), taps.transpose(2, 3), groups=channels)
    return pixels + amount * (pixels - soft)
