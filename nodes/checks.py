"""Input checks that give one clear sentence before any work starts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..setevsr_core.errors import InputError

GIGABYTE = 1024**3
HEADROOM = 0.9
"""Share of the free memory that a result may take."""


def require_frames(frames: Tensor, name: str = "images") -> None:
    """`InputError` unless `frames` is a batch (N >= 1, H, W, 3 or 4) of finite numbers."""
    if not isinstance(frames, Tensor) or frames.ndim != 4 or frames.shape[-1] not in (3, 4):
        shape = tuple(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
        raise InputError(f"'{name}' must be a batch of RGB or RGBA pictures (frames, height, width, 3 or 4), got {shape}.")
    if 0 in frames.shape:
        raise InputError(f"'{name}' is empty (shape {tuple(frames.shape)}); connect at least one frame.")
    for index, frame in enumerate(frames):
        # Frame by frame, because a mask over the whole batch would cost a quarter of its memory again.
        if not torch.isfinite(frame).all():
            raise InputError(f"'{name}' contains NaN or infinite values in frame {index}; check the node before this one.")


def result_bytes(num_frames: int, size: tuple[int, int], channels: int) -> int:
    """Bytes of a float32 result of `num_frames` frames of `size` (height, width)."""
    return num_frames * size[0] * size[1] * channels * 4


def require_memory(num_frames: int, size: tuple[int, int], channels: int, available: int | None = None) -> None:
    """`InputError` with an estimate if the result cannot fit into the free system memory (bytes; None: ask the system)."""
    if available is None:
        import psutil

        available = psutil.virtual_memory().available
    needed = result_bytes(num_frames, size, channels)
    if needed > available * HEADROOM:
        raise InputError(
            f"The result ({num_frames} frames of {size[1]}x{size[0]}) needs {needed / GIGABYTE:.1f} GB of memory and "
            f"{available / GIGABYTE:.1f} GB are free; use 'Upscale Video', which writes to disk as it goes, "
            "or fewer frames or a smaller scale."
        )
