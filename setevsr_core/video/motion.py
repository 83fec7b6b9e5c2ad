"""Motion between frames: dense optical flow (DIS, Kroeger et al. 2016, by OpenCV), and pixels moved along it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import require

Search = Literal["ULTRAFAST", "FAST", "MEDIUM"]
"""OpenCV's presets: how thoroughly motion is searched."""

_LEAST_SIDE = 32
"""OpenCV chooses how often to halve lower pictures by their width alone: it refuses them, or reads past their end."""
_MISMATCH = 0.05  # mean difference of the channels (0..1) from which a moved pixel shows something else


def dense_flow(first: Any, second: Any, search: Search, purpose: str) -> Any:
    """Grey pictures (H,W) uint8 of any size -> (H,W,2) float32: where `second` shows each pixel of `first`, as x and y
    to add.

    Errors: MissingPackageError without OpenCV, naming the `purpose`.
    """
    cv2 = require("cv2", "opencv-python-headless", purpose)
    preset = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{search}")
    height, width = first.shape
    below, beside = (max(_LEAST_SIDE - side, 0) for side in (height, width))
    if below or beside:
        first, second = (
            cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_REPLICATE) for picture in (first, second)
        )
    return cv2.DISOpticalFlow_create(preset).calc(first, second, None)[:height, :width]


def warp(pixels: Tensor, flow: Tensor) -> Tensor:
    """Sample (N, C, H, W) at every pixel's position + flow (N, 2, H, W) in pixels (x, y); borders repeat."""
    height, width = pixels.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=flow.device), torch.arange(width, device=flow.device),
                          indexing="ij")
    grid_x = (x + flow[:, 0]) * 2 / max(width - 1, 1) - 1
    grid_y = (y + flow[:, 1]) * 2 / max(height - 1, 1) - 1
    grid = torch.stack([grid_x, grid_y], dim=-1).to(pixels.dtype)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=True)


@torch.no_grad()
def motion_back(before: Tensor, after: Tensor, search: Search, purpose: str) -> tuple[Tensor, Tensor]:
    """For frames (N, 3, H, W) in 0..1 and the ones after them: the flow (N, 2, H, W) from each pixel of the later frame
    to where the earlier one shows it, and the mask (N, 1, H, W) of pixels that are visible in both.

    Errors: as `dense_flow`.
    """
    first, second = ((frames.float().mean(1) * 255).round().clamp(0, 255).byte().cpu().numpy()
                     for frames in (after, before))
    flows = [torch.from_numpy(dense_flow(*pair, search, purpose)) for pair in zip(first, second, strict=True)]
    flow = torch.stack(flows).permute(0, 3, 1, 2).to(before.device)
    mismatch = (warp(before.float(), flow) - after.float()).abs().mean(1, keepdim=True)
    return flow, mismatch < _MISMATCH
