"""Upscaler networks (Real-ESRGAN, SwinIR, ...) as `spandrel` reads them: frame by frame, in tiles with a margin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, require

TILE, TILE_MARGIN = 256, 16
"""Largest side in low-resolution pixels that an upscaler sees at once, and the margin that is cut off again."""


def load_upscaler(path: Path, device: str | None = None) -> Any:
    """spandrel's model of a network file, to be called on (1, 3, h, w) in 0..1; its factor is `scale`.

    Errors: CheckpointError where the file is no network from RGB to RGB, MissingPackageError without spandrel.
    """
    spandrel = require("spandrel", purpose="an upscaler file")
    try:
        model = spandrel.ModelLoader(device=device or "cpu").load_from_file(path)
    except Exception as error:  # noqa: BLE001 - it raises whatever the file makes it stumble over
        raise CheckpointError(f"'{path}' is no upscaler that spandrel can load: {error}") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.input_channels != 3:
        raise CheckpointError(f"'{path}' is no network that takes an RGB picture and gives one")
    return model.eval()


def upscale(model: Any, frames: Tensor) -> Tensor:
    """Frames (N, h, w, 3) in 0..1 -> (N, h * scale, w * scale, 3) in 0..1 on the CPU, one by one."""
    pictures = [tiled(model, frame.movedim(-1, 0)[None], model.scale).clamp(0, 1) for frame in frames]
    return torch.cat(pictures).movedim(1, -1)


@torch.inference_mode()
def tiled(network: Any, picture: Tensor, factor: int, tile: int = TILE, margin: int = TILE_MARGIN) -> Tensor:
    """`network` on (1, 3, h, w), in tiles of at most `tile` pixels with `margin` around each, joined edge to edge."""
    device = getattr(network, "device", picture.device)
    height, width = picture.shape[2:]
    result = torch.empty(0)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(0, top - margin), max(0, left - margin)
            part = picture[:, :, y : min(bottom + margin, height), x : min(right + margin, width)]
            large = network(part.to(device)).float().cpu()
            if not result.numel():
                result = large.new_empty((1, large.shape[1], height * factor, width * factor))
            inner = large[:, :, (top - y) * factor : (bottom - y) * factor, (left - x) * factor : (right - x) * factor]
            result[:, :, top * factor : bottom * factor, left * factor : right * factor] = inner
    return result
