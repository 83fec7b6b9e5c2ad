"""Overlapping restored segments become one sequence: each overlap is crossfaded from the older to the newer segment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from .segments import Span


def crossfade_weights(overlap: int) -> Tensor:
    """Weights (overlap,) of the newer segment over the overlap, rising inside (0, 1); the older one gets 1 - weight.

    A raised cosine, sampled between its ends: w_k = (1 - cos(pi k / (overlap + 1))) / 2 for k = 1..overlap. Its slope
    is zero at both ends, so the change from one segment's rendering to the next one's starts and stops softly, where
    a linear ramp has two kinks that show in motion. It is symmetric: w_k + w_(overlap+1-k) = 1.
    """
    steps = torch.arange(1, overlap + 1, dtype=torch.float64) / (overlap + 1)
    return (0.5 - 0.5 * torch.cos(math.pi * steps)).to(torch.float32)


class Stitcher:
    """Takes segments in rising order and gives every frame back once, as soon as no later segment can change it.

    Blending is `old + weight * (new - old)`, so where two segments agree the result is that very value, bit for bit.
    The ramp always spans the real overlap with what is pending, however far the last segment of a shot was moved
    back. Holds one segment.

    `first_frame`: only frames from there on are given back. Every one of them is right as long as all segments that
    reach beyond `first_frame` are pushed; what the earlier segments would have changed lies before it.
    """

    def __init__(self, first_frame: int = 0) -> None:
        self._first = first_frame
        self._pending: Tensor | None = None
        self._start = 0  # video index of the first pending frame

    def push(self, span: Span, frames: Tensor) -> Tensor:
        """Adds frames (T,H,W,C) of `span`; returns the frames (k,H,W,C), k >= 0, that are now final.

        Errors: InputError when frames and span differ in length, sizes change, or segments leave a gap or run
        backwards.
        """
        if len(frames) != len(span):
            raise InputError(f"segment {span.start}..{span.stop} needs {len(span)} frames and got {len(frames)}")
        if self._pending is None:
            self._pending, self._start = frames, span.start
            return frames[:0]
        pending, end = self._pending, self._start + len(self._pending)
        if pending.shape[1:] != frames.shape[1:]:
            raise InputError(
                f"segment {span.start}..{span.stop} has frames {tuple(frames.shape[1:])}, "
                f"not {tuple(pending.shape[1:])}"
            )
        if not self._start <= span.start <= end <= span.stop:
            raise InputError(
                f"segment {span.start}..{span.stop} does not continue {self._start}..{end}; "
                "push segments in order and without gaps"
            )
        finished = pending[max(0, self._first - self._start) : span.start - self._start]
        overlap = end - span.start
        if overlap:
            frames = torch.cat([_crossfade(pending[-overlap:], frames[:overlap]), frames[overlap:]])
        self._pending, self._start = frames, span.start
        return finished

    def finish(self) -> Tensor:
        """The frames that are still held, (k,H,W,C); the stitcher is then empty and can be used again."""
        rest = self._pending if self._pending is not None else torch.zeros(0, 0, 0, 3)
        self._pending = None
        return rest[max(0, self._first - self._start) :]


def _crossfade(old: Tensor, new: Tensor) -> Tensor:
    weights = crossfade_weights(len(old)).to(old.device).view(-1, 1, 1, 1)
    # In float32 whatever the frames are: half precision would band in dark gradients.
    return torch.lerp(old.float(), new.float(), weights).to(old.dtype)
