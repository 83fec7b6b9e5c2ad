"""Bicubic scaling of frames, and padding to the multiple of pixels that the networks need."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, SettingsError

MIN_SCALE, MAX_SCALE = 1.0, 8.0


def target_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) after scaling by any real factor in 1..8, halves rounded up.

    Errors: SettingsError outside the range.
    """
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise SettingsError(f"scale is {scale}; it must be a number from {MIN_SCALE:g} to {MAX_SCALE:g}")
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)


def upscale_bicubic(frames: Tensor, scale: float | None = None, *, size: tuple[int, int] | None = None) -> Tensor:
    """Frames (N,C,h,w) in 0..1 resized by `scale` (1..8) or to `size` (H, W), clamped to 0..1 (bicubic overshoots at
    edges).

    Antialiasing works only along with shrinking (it would blur an enlargement). The same type comes back; the
    arithmetic is float32.
    Errors: SettingsError unless exactly one of scale and size is given and in range.
    """
    if (scale is None) == (size is None):
        raise SettingsError("upscale_bicubic needs either scale or size")
    height, width = frames.shape[-2:]
    new_size = size if size is not None else target_size(height, width, scale)  # type: ignore[arg-type]
    if min(new_size) < 1:
        raise SettingsError(f"size is {new_size}; both sides must be at least 1 pixel")
    if tuple(new_size) == (height, width):
        return frames.clamp(0, 1)
    shrinks = new_size[0] < height or new_size[1] < width
    resized = functional.interpolate(
        frames.float(), size=new_size, mode="bicubic", align_corners=False, antialias=shrinks
    )
    return resized.clamp_(0, 1).to(frames.dtype)


def pad_to_multiple(frames: Tensor, multiple: int = 64) -> tuple[Tensor, tuple[int, int]]:
    """(..., H, W) extended right and below to multiples of `multiple` -> (padded, (H, W)); `crop` takes the size back.

    The picture is reflected (without repeating its border pixel) as often as needed, so any size from 1x1 works. A
    side that already fits stays as it is. Errors: InputError for a picture without pixels.
    """
    height, width = frames.shape[-2:]
    if height < 1 or width < 1:
        raise InputError(f"the frames are {width}x{height}; they need at least one pixel")
    rows = _reflected_indices(height, multiple, frames.device)
    columns = _reflected_indices(width, multiple, frames.device)
    if len(rows) > height:
        frames = frames.index_select(-2, rows)
    if len(columns) > width:
        frames = frames.index_select(-1, columns)
    return frames, (height, width)


def crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left (..., H, W) of padded frames: the exact inverse of `pad_to_multiple`.

    Errors: InputError if they are smaller.
    """
    height, width = size
    if frames.shape[-2] < height or frames.shape[-1] < width:
        raise InputError(f"frames of {frames.shape[-1]}x{frames.shape[-2]} cannot be cropped to {width}x{height}")
    return frames[..., :height, :width]


def _reflected_indices(size: int, multiple: int, device: torch.device) -> Tensor:
    """0..size-1, then back and forth, up to the next multiple: a triangle wave of period 2 (size - 1)."""
    padded = math.ceil(size / multiple) * multiple
    positions = torch.arange(padded, device=device)
    if size == 1:
        return torch.zeros_like(positions)
    period = 2 * (size - 1)
    positions = positions % period
    return torch.where(positions < size, positions, period - positions)
