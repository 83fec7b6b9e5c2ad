"""Input checks that give one clear sentence before any work starts."""

from __future__ import annotations

from torch import Tensor

from ..setevsr_core.errors import InputError
from ..setevsr_core.stages import check_frames

GIGABYTE = 1024**3
HEADROOM = 0.9
"""Share of the free memory that a result may take."""


def require_frames(frames: Tensor, name: str = "images") -> None:
    """`InputError` naming the input, unless `frames` is a batch (N >= 1, H, W, 3 or 4) of finite numbers in 0..1."""
    try:
        check_frames(frames, channels=(3, 4))
    except InputError as error:
        raise InputError(f"Input '{name}': {error}.") from None


def result_bytes(num_frames: int, size: tuple[int, int], channels: int) -> int:
    """Bytes of a float32 result of `num_frames` frames of `size` (height, width)."""
    return num_frames * size[0] * size[1] * channels * 4


def require_memory(num_frames: int, size: tuple[int, int], channels: int, available: int | None = None) -> None:
    """`InputError` with an estimate if the result does not fit into `available` bytes (None: what the system has)."""
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
