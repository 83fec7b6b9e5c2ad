"""Frames in, finished blocks out: the plan of segments, who computes them, and how they are put together.

Where a segment is computed - here, or on one of many machines - is a function from spans to pictures, so that every way
of computing gives the same plan, the same blending and the same resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import stages
from .errors import InputError
from .settings import RestoreSettings
from .video.segments import Span, Window, iter_windows
from .video.steadying import steady_spans
from .video.stitch import Stitcher

Segments = Iterator[tuple[Span, Tensor]]
Compute = Callable[[Segments], Iterator[tuple[Span, Callable[[], Tensor]]]]
"""Spans with their frames (T,H,W,C) -> the same spans in the same order, each with a function that waits for its
restored pictures (T,sH,sW,C). The function is called once, before the next span is asked for."""


@dataclass(frozen=True)
class Resume:
    """Where a stream goes on: with frame `first_frame`, and the restored frames (k,sH,sW,C) from there on that the
    segment before has left for the next one to blend with. carried None: they are lost, and restored again.
    """

    first_frame: int = 0
    carried: Tensor | None = None


FROM_START = Resume()


def restored_blocks(
    frames: Iterable[Tensor],
    settings: RestoreSettings,
    compute: Compute,
    resume: Resume,
    on_carry: Callable[[Resume], None] | None,
) -> Iterator[Tensor]:
    """Finished blocks (k,sH,sW,C), k >= 1, in order.

    on_carry(state) is called when a segment is done and before its finished frames are yielded: whoever keeps both can
    go on from there with nothing to compute again.
    """
    stitcher = Stitcher(resume.first_frame, resume.carried)
    for span, pictures in compute(_due(frames, settings, resume)):
        finished = stitcher.release(span.start)
        if len(finished):
            if on_carry is not None:
                on_carry(Resume(span.start, stitcher.held))
            yield finished
        stitcher.push(span, pictures())
    finished = stitcher.finish()
    if len(finished):
        yield finished


def fill(result: Tensor, blocks: Iterable[Tensor]) -> None:
    """Put the blocks (k,sH,sW,C) one after the other into `result` (N,sH,sW,C), in its type and on its device."""
    filled = 0
    for block in blocks:
        result[filled : filled + len(block)] = block
        filled += len(block)


def _due(frames: Iterable[Tensor], settings: RestoreSettings, resume: Resume) -> Segments:
    """The segments that are still to be computed, their frames steadied if the settings say so."""
    return steady_spans(_due_windows(frames, settings, resume), settings.steady)


def _due_windows(frames: Iterable[Tensor], settings: RestoreSettings, resume: Resume) -> Iterator[Window]:
    windows = iter_windows(
        _checked(frames), settings.length, settings.overlap, _detector(settings), context=settings.steady
    )
    empty = True
    for span, window, segment in windows:
        empty = False
        first = resume.first_frame
        if span.stop > first if resume.carried is None else span.start >= first:
            yield span, window, segment
    if empty:
        raise InputError("there are no frames to restore: the video is empty")


def _checked(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Frames one by one as they come, each with the right shape, type and values; `InputError` names the frame."""
    for index, frame in enumerate(frames):
        if not isinstance(frame, Tensor) or frame.ndim != 3:
            shape = tuple(frame.shape) if isinstance(frame, Tensor) else type(frame).__name__
            raise InputError(f"frame {index} must be a tensor (H,W,3) or (H,W,4), got {shape}")
        stages.check_frames(frame[None], channels=(3, 4), first_index=index)
        yield frame


def _detector(settings: RestoreSettings) -> Any:
    if settings.cuts == "auto":
        from .video.scenes import SceneCutDetector

        return SceneCutDetector()
    return settings.cuts
