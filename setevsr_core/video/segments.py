"""Which frames are restored together: a pure plan, and the same plan over a stream.

A video is cut into shots (scene cuts), a shot into spans of `length` frames that overlap by `overlap`. The plan is a
function of the number of frames, the settings and the cuts alone, so a resumed run, or one spread over machines,
works on the very same spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
    borders = [0, *sorted({cut for cut in cuts if 0 < cut < num_frames}), num_frames]
    return tuple(
        span
        for begin, end in zip(borders, borders[1:], strict=False)
        for span in _plan_shot(begin, end, length, length - overlap)
    )


def _plan_shot(begin: int, end: int, length: int, step: int) -> Iterator[Span]:
    if begin == end:
        return
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


def iter_spans(
    frames: Iterable[Tensor],
    length: int = 5,
    overlap: int = 2,
    cut_detector: CutDetector | Iterable[int] | None = None,
) -> Iterator[tuple[Span, Tensor]]:
    """The plan of `plan_spans` over a stream: yields (span, frames (T,H,W,C)).

    `frames` are (H,W,C), all of one size. `cut_detector` is a detector, or the cuts themselves. Only about
    2 * length frames, plus those the detector looks ahead, are held at a time.
    Errors: SettingsError for an impossible layout, InputError when a frame differs in shape from the first.
    """
    check_layout(length, overlap)
    detector = _as_detector(cut_detector)
    planner = _StreamPlanner(length, length - overlap)
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

    def __init__(self, length: int, step: int) -> None:
        self._length = length
        self._step = step
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

    def ready(self, decided: int) -> Iterator[tuple[Span, Tensor]]:
        """All spans that are certain when the cuts below `decided` are known."""
        while True:
            end = self._cuts[0] if self._cuts else None
            if end is not None and self._next + self._length > end:
                yield from self.close_shot(end)
                self._cuts.pop(0)
            elif self._next + self._length <= decided:
                yield self._emit(Span(self._next, self._next + self._length))
                self._next += self._step
            else:
                return

    def close_shot(self, end: int) -> Iterator[tuple[Span, Tensor]]:
        """The last span of the shot that ends before `end`, if frames are left over; the next shot begins at `end`."""
        if self._covered < end:
            yield self._emit(Span(max(self._shot, end - self._length), end))
        self._drop_before(end)
        self._shot = self._next = end

    def _emit(self, span: Span) -> tuple[Span, Tensor]:
        stacked = torch.stack(self._frames[span.start - self._base : span.stop - self._base])
        # A later span of this shot starts at least one frame further on.
        self._drop_before(span.start + 1)
        self._covered = span.stop
        return span, stacked

    def _drop_before(self, index: int) -> None:
        del self._frames[: index - self._base]
        self._base = index
