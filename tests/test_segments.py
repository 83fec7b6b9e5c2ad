"""Segments cover every frame once in order, respect cuts, and stream with the same plan in bounded memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from setevsr_core.errors import InputError, SettingsError
from setevsr_core.video.segments import Span, iter_windows, plan_spans


def spans(*pairs: tuple[int, int]) -> tuple[Span, ...]:
    return tuple(Span(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (0, ()),
        (1, spans((0, 1))),
        (2, spans((0, 2))),
        (4, spans((0, 4))),
        (5, spans((0, 5))),
        (6, spans((0, 5), (1, 6))),
        (8, spans((0, 5), (3, 8))),
        (9, spans((0, 5), (3, 8), (4, 9))),
    ],
)
def test_plan_of_one_shot(num_frames: int, expected: tuple[Span, ...]) -> None:
    assert plan_spans(num_frames, length=5, overlap=2) == expected


def test_plan_restarts_at_every_cut() -> None:
    assert plan_spans(12, 5, 2, cuts=[7, 8]) == spans((0, 5), (2, 7), (7, 8), (8, 12))


def test_cuts_outside_the_video_and_repeated_ones_change_nothing() -> None:
    assert plan_spans(12, 5, 2, cuts=[0, 7, 7, 12, 99]) == plan_spans(12, 5, 2, cuts=[7])


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 6, 23, 1000])
@pytest.mark.parametrize(("length", "overlap"), [(5, 2), (5, 0), (5, 4), (1, 0), (8, 3)])
@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 17), (500, 504, 999)])
def test_every_frame_is_covered_without_gaps(num_frames: int, length: int, overlap: int, cuts: tuple[int, ...]) -> None:
    plan = plan_spans(num_frames, length, overlap, cuts)
    assert {index for span in plan for index in span.indices} == set(range(num_frames))
    assert list(plan) == sorted(plan) and len(set(plan)) == len(plan)
    borders = sorted({0, num_frames, *(cut for cut in cuts if cut < num_frames)})
    for span in plan:
        shot_start = max(border for border in borders if border <= span.start)
        shot_stop = min(border for border in borders if border > span.start)
        assert span.stop <= shot_stop
        assert len(span) == min(length, shot_stop - shot_start)
    for before, after in zip(plan, plan[1:], strict=False):
        assert after.start in borders or before.stop - after.start >= overlap


@pytest.mark.parametrize("num_frames", [0, 1, 2, 4, 5, 6, 23, 100])
@pytest.mark.parametrize(("length", "overlap"), [(5, 2), (5, 0), (5, 4), (1, 0), (8, 3)])
@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 17), (5, 10, 22)])
def test_streaming_gives_the_same_plan_and_the_right_frames(
    num_frames: int, length: int, overlap: int, cuts: tuple[int, ...]
) -> None:
    frames = torch.arange(num_frames, dtype=torch.float32).view(-1, 1, 1, 1)
    streamed = list(iter_windows(iter(frames), length, overlap, cuts))
    assert tuple(span for span, _, _ in streamed) == plan_spans(num_frames, length, overlap, cuts)
    for span, _, stacked in streamed:
        assert stacked.flatten().tolist() == list(span.indices)


class LateDetector:
    """Says a cut only `delay` frames after it, as a detector that looks ahead does."""

    def __init__(self, cuts: tuple[int, ...], delay: int) -> None:
        self._cuts, self._delay, self._seen, self.decided = list(cuts), delay, 0, 0

    def _upto(self, index: int) -> list[int]:
        self.decided = max(0, index)
        ready = [cut for cut in self._cuts if cut < index]
        self._cuts = [cut for cut in self._cuts if cut >= index]
        return ready

    def push(self, frame: torch.Tensor) -> list[int]:
        self._seen += 1
        return self._upto(self._seen - self._delay)

    def finish(self) -> list[int]:
        return self._upto(self._seen)


@pytest.mark.parametrize("delay", [0, 1, 2, 7, 50])
def test_a_detector_that_looks_ahead_changes_nothing(delay: int) -> None:
    cuts = (1, 6, 7, 20, 31)
    streamed = iter_windows(torch.zeros(33, 1, 1, 3), 5, 2, LateDetector(cuts, delay))
    assert tuple(span for span, _, _ in streamed) == plan_spans(33, 5, 2, cuts)


def test_a_thousand_frames_keep_few_alive() -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def source() -> Iterator[torch.Tensor]:
        nonlocal most
        for _ in range(1000):
            frame = torch.zeros(1, 1, 3)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    gc.collect()
    count = sum(1 for _ in iter_windows(source(), 5, 2, LateDetector((400,), 2)))
    assert count == len(plan_spans(1000, 5, 2, (400,)))
    assert 5 <= most <= 2 * 5 + 2


@pytest.mark.parametrize(("length", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_impossible_layouts_are_refused(length: int, overlap: int) -> None:
    with pytest.raises(SettingsError, match="length|overlap"):
        plan_spans(10, length, overlap)


def test_frames_of_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="frame 1 "):
        list(iter_windows([torch.zeros(2, 2, 3), torch.zeros(2, 3, 3)]))
