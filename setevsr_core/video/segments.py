"""Which frames are restored together: a pure plan, and the same plan over a stream.

A video is cut into shots (scene cuts), a shot into spans of `length` frames that overlap by `overlap`. The plan is a
function of the number of frames, the settings and the cuts alone, so a resumed run, or one spread over machines,
works on the very same spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError, SettingsError


@dataclass(frozen=True, order=True)
class Span:
    """Frames `start` (included) to `stop` (excluded) of the whole video."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def indices(self) -> range:
        return range(self.start, self.stop)


Window = tuple[Span, Span, Tensor]
"""A span, the span with the frames around it, and those frames (T,H,W,C)."""


class CutDetector(Protocol):
    """Finds cuts while frames arrive. A cut `c` means that a new shot begins with frame `c`."""

    @property
    def decided(self) -> int:
        """For every frame below this index it is final whether a shot begins there."""
        ...

    def push(self, frame: Tensor) -> Sequence[int]:
        """Takes the next frame (H,W,C) in 0..1 and returns the cuts that became certain, rising."""
        ...

    def finish(self) -> Sequence[int]:
        """No frame follows: returns the remaining cuts and decides all frames."""
        ...


def check_layout(length: int, overlap: int) -> None:
    """Raises SettingsError unless 1 <= length and 0 <= overlap < length."""
    if length < 1:
        raise SettingsError(f"length is {length}; a segment needs at least 1 frame")
    if not 0 <= overlap < length:
        raise SettingsError(f"overlap is {overlap}; it must be at least 0 and smaller than length ({length})")


def plan_spans(num_frames: int, length: int = 5, overlap: int = 2, cuts: Iterable[int] = ()) -> tuple[Span, ...]:
    """Spans that cover frames 0..num_frames-1 in rising order and never cross a cut.

    Inside a shot they advance by length - overlap; the last one is moved back so that it is full length (it then
    overlaps more).
    A shot shorter than `length` is one shorter span: the networks take any number of frames, so nothing is padded.
    Cuts at 0, at or beyond `num_frames`, and repeated ones change nothing. Errors: SettingsError for an impossible
    layout.
    """
    check_layout(length, overlap)
    if num_frames < 0:
        raise SettingsError(f"num_frames is {num_frames}; it cannot be negative")
    return tuple(
        span
        for shot in shots(num_frames, cuts)
        for span in _plan_shot(shot.start, shot.stop, length, length - overlap)
    )


def shots(num_frames: int, cuts: Iterable[int] = ()) -> tuple[Span, ...]:
    """The shots of a video, in order; cuts at 0, at or beyond `num_frames`, and repeated ones change nothing."""
    borders = [0, *sorted({cut for cut in cuts if 0 < cut < num_frames}), num_frames]
    return tuple(Span(begin, end) for begin, end in pairwise(borders) if begin < end)


def _plan_shot(begin: int, end: int, length: int, step: int) -> Iterator[Span]:
    if end - begin <= length:
        yield Span(begin, end)
        return
    start = begin
    while start + length <= end:
        yield Span(start, start + length)
        start += step
    covered = start - step + length
    if covered < end:
        yield Span(end - length, end)


class KnownCuts:
    """A `CutDetector` for cuts that are known beforehand."""

    def __init__(self, cuts: Iterable[int] = ()) -> None:
        self._waiting = sorted({cut for cut in cuts if cut > 0}, reverse=True)
        self.decided = 0

    def push(self, frame: Tensor) -> Sequence[int]:
        self.decided += 1
        if self._waiting and self._waiting[-1] == self.decided - 1:
            return (self._waiting.pop(),)
        return ()

    def finish(self) -> Sequence[int]:
        return ()


def iter_windows(
    frames: Iterable[Tensor],
    length: int = 5,
    overlap: int = 2,
    cut_detector: CutDetector | Iterable[int] | None = None,
    context: int = 0,
) -> Iterator[Window]:
    """The plan of `plan_spans` over a stream, with the frames around: yields (span, window, frames of the window).

    The window is the span and up to `context` frames before and after it, as far as its shot goes. `frames` are
    (H,W,C), all of one size. `cut_detector` is a detector, or the cuts themselves. Only about 2 * (length + context)
    frames, plus those the detector looks ahead, are held at a time.
    Errors: SettingsError for an impossible layout, InputError when a frame differs in shape from the first.
    """
    check_layout(length, overlap)
    detector = _as_detector(cut_detector)
    planner = _StreamPlanner(length, length - overlap, context)
    for frame in frames:
        planner.add_frame(frame)
        planner.add_cuts(detector.push(frame))
        yield from planner.ready(detector.decided)
    planner.add_cuts(detector.finish())
    yield from planner.ready(planner.received)
    yield from planner.close_shot(planner.received)


def _as_detector(cuts: CutDetector | Iterable[int] | None) -> CutDetector:
    if cuts is None:
        return KnownCuts()
    if hasattr(cuts, "push"):
        return cuts  # type: ignore[return-value]
    return KnownCuts(cuts)  # type: ignore[arg-type]


class _StreamPlanner:
    """Holds the frames that a later span may still need, and emits spans as soon as they are certain."""

    def __init__(self, length: int, step: int, context: int = 0) -> None:
        self._length = length
        self._step = step
        self._context = context
        self._frames: list[Tensor] = []
        self._shape: torch.Size | None = None
        self._base = 0  # index of self._frames[0] in the video
        self._shot = 0  # first frame of the shot in work
        self._next = 0  # start of the next regular span
        self._covered = 0  # every frame below is part of an emitted span
        self._cuts: list[int] = []

    @property
    def received(self) -> int:
        return self._base + len(self._frames)

    def add_frame(self, frame: Tensor) -> None:
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            raise InputError(
                f"frame {self.received} has shape {tuple(frame.shape)}, the first one {tuple(self._shape)}; "
                "all frames need one size"
            )
        self._frames.append(frame)

    def add_cuts(self, cuts: Iterable[int]) -> None:
        self._cuts.extend(cut for cut in cuts if cut > self._shot)

    def ready(self, decided: int) -> Iterator[Window]:
        """All spans that are certain, with what is around them, when the cuts below `decided` are known."""
        while self._cuts:
            yield from self.close_shot(self._cuts.pop(0))
        while self._next + self._length + self._context <= decided:
            yield self._emit(Span(self._next, self._next + self._length), decided)
            self._next += self._step

    def close_shot(self, end: int) -> Iterator[Window]:
        """The spans that are left of the shot that ends before `end`; the next shot begins at `end`."""
        while self._next + self._length <= end:
            yield self._emit(Span(self._next, self._next + self._length), end)
            self._next += self._step
        if self._covered < end:
            yield self._emit(Span(max(self._shot, end - self._length), end), end)
        self._drop_before(end)
        self._shot = self._next = end

    def _emit(self, span: Span, end: int) -> Window:
        """`end`: frames from there on are not, or not yet known to be, of this shot."""
        window = Span(max(span.start - self._context, self._shot), min(span.stop + self._context, end))
        stacked = torch.stack(self._frames[window.start - self._base : window.stop - self._base])
        # A later span of this shot starts at least one frame further on.
        self._drop_before(max(span.start + 1 - self._context, self._shot))
        self._covered = span.stop
        return span, window, stacked

    def _drop_before(self, index: int) -> None:
        del self._frames[: max(index - self._base, 0)]
        self._base = max(index, self._base)
