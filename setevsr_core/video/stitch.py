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
    The ramp always spans the real overlap with what is held, however far the last segment of a shot was moved
    back. Holds one segment; only its overlap with the next one after `release`.

    `first_frame`: only frames from there on are given back. Every one of them is right as long as all segments that
    reach beyond `first_frame` are pushed; what the earlier segments would have changed lies before it. With `held`,
    the frames from `first_frame` on that an earlier stitcher held there, only the segments that start there or later
    are needed.
    """

    def __init__(self, first_frame: int = 0, held: Tensor | None = None) -> None:
        self._first = first_frame
        self._held = held
        self._start = first_frame if held is not None else 0  # video index of the first frame held

    @property
    def held(self) -> Tensor:
        """The frames (k,H,W,C) that a coming segment may still change."""
        return torch.zeros(0, 0, 0, 3) if self._held is None else self._held

    def release(self, start: int) -> Tensor:
        """The frames (k,H,W,C), k >= 0, that are final once the next segment is known to start at `start`."""
        if self._held is None:
            return self.held
        finished = self._held[max(0, self._first - self._start) : max(0, start - self._start)]
        self._held = self._held[max(0, start - self._start) :]
        self._start = max(self._start, start)
        return finished

    def push(self, span: Span, frames: Tensor) -> Tensor:
        """Adds frames (T,H,W,C) of `span`; returns the frames (k,H,W,C), k >= 0, that became final and were not
        released before.

        Errors: InputError when frames and span differ in length, sizes change, or segments leave a gap or run
        backwards.
        """
        if len(frames) != len(span):
            raise InputError(f"segment {span.start}..{span.stop} needs {len(span)} frames and got {len(frames)}")
        if self._held is None:
            self._held, self._start = frames, span.start
            return frames[:0]
        end = self._start + len(self._held)
        if self._held.shape[1:] != frames.shape[1:]:
            raise InputError(
                f"segment {span.start}..{span.stop} has frames {tuple(frames.shape[1:])}, "
                f"not {tuple(self._held.shape[1:])}"
            )
        if not self._start <= span.start <= end <= span.stop:
            raise InputError(
                f"segment {span.start}..{span.stop} does not continue {self._start}..{end}; "
                "push segments in order and without gaps"
            )
        finished = self.release(span.start)
        overlap = end - span.start
        if overlap:
            frames = torch.cat([_crossfade(self._held, frames[:overlap]), frames[overlap:]])
        self._held = frames
        return finished

    def finish(self) -> Tensor:
        """The frames that are still held, (k,H,W,C); the stitcher is then empty and can be used again."""
        rest = self.held[max(0, self._first - self._start) :]
        self._held = None
        return rest


def _crossfade(old: Tensor, new: Tensor) -> Tensor:
    weights = crossfade_weights(len(old)).to(old.device).view(-1, 1, 1, 1)
    # In float32 whatever the frames are: half precision would band in dark gradients.
    return torch.lerp(old.float(), new.float(), weights).to(old.dtype)
