"""Stitched segments give each frame back once, and change nothing where the segments agree."""

from __future__ import annotations

import pytest
import torch

from setevsr_core.errors import InputError
from setevsr_core.video.segments import Span, plan_spans
from setevsr_core.video.stitch import Stitcher, crossfade_weights


def stitch(video: torch.Tensor, length: int, overlap: int, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    """Cuts a video into segments and puts them together again."""
    stitcher = Stitcher()
    blocks = [
        stitcher.push(span, video[span.start : span.stop]) for span in plan_spans(len(video), length, overlap, cuts)
    ]
    return torch.cat([*blocks, stitcher.finish()])


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 6, 9, 100])
@pytest.mark.parametrize(("length", "overlap"), [(5, 2), (5, 0), (5, 4), (8, 3)])
@pytest.mark.parametrize("cuts", [(), (3,), (5, 6)])
def test_a_moving_pattern_comes_back_unchanged(
    num_frames: int, length: int, overlap: int, cuts: tuple[int, ...]
) -> None:
    row = torch.rand(1, 6, 7, 3, generator=torch.Generator().manual_seed(1))
    video = torch.cat([row.roll(index, 2) for index in range(num_frames)])
    assert torch.equal(stitch(video, length, overlap, cuts), video)


def test_constant_video_stays_constant() -> None:
    video = torch.full((23, 4, 4, 3), 1 / 3)
    assert (stitch(video, 5, 2) - 1 / 3).abs().max() <= 1e-6


@pytest.mark.parametrize("overlap", [1, 2, 3, 4, 31])
def test_weights_rise_and_sum_to_one(overlap: int) -> None:
    weights = crossfade_weights(overlap)
    assert weights.shape == (overlap,)
    assert torch.allclose(weights + weights.flip(0), torch.ones(overlap), atol=1e-6)
    assert bool((weights > 0).all()) and bool((weights < 1).all()) and bool((weights.diff() > 0).all())


def test_overlap_fades_from_old_to_new() -> None:
    stitcher = Stitcher()
    assert len(stitcher.push(Span(0, 5), torch.zeros(5, 1, 1, 3))) == 0
    first = stitcher.push(Span(3, 8), torch.ones(5, 1, 1, 3))
    values = torch.cat([first, stitcher.finish()])[:, 0, 0, 0]
    assert values.tolist() == pytest.approx([0, 0, 0, 0.25, 0.75, 1, 1, 1], abs=1e-6)


def test_a_last_segment_that_was_moved_back_fades_over_its_whole_overlap() -> None:
    stitcher = Stitcher()
    stitcher.push(Span(0, 5), torch.zeros(5, 1, 1, 3))
    first = stitcher.push(Span(1, 6), torch.ones(5, 1, 1, 3))
    values = torch.cat([first, stitcher.finish()])[:, 0, 0, 0]
    expected = [0, *crossfade_weights(4).tolist(), 1]
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


def test_no_fade_across_a_cut() -> None:
    video = torch.cat([torch.zeros(7, 1, 1, 3), torch.ones(4, 1, 1, 3)])
    assert torch.equal(stitch(video, 5, 2, cuts=(7,)), video)


def test_inputs_are_not_changed() -> None:
    stitcher, old, new = Stitcher(), torch.zeros(5, 1, 1, 3), torch.ones(5, 1, 1, 3)
    stitcher.push(Span(0, 5), old)
    stitcher.push(Span(3, 8), new)
    assert old.max() == 0 and new.min() == 1


def test_half_precision_keeps_its_type() -> None:
    stitcher = Stitcher()
    stitcher.push(Span(0, 3), torch.zeros(3, 1, 1, 3, dtype=torch.float16))
    assert stitcher.push(Span(2, 5), torch.ones(3, 1, 1, 3, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    ("span", "shape", "message"),
    [
        (Span(3, 8), (4, 2, 2, 3), "needs 5 frames"),
        (Span(6, 11), (5, 2, 2, 3), "does not continue"),
        (Span(3, 8), (5, 2, 3, 3), "has frames"),
        (Span(1, 4), (3, 2, 2, 3), "does not continue"),
    ],
)
def test_segments_that_do_not_fit_are_refused(span: Span, shape: tuple[int, ...], message: str) -> None:
    stitcher = Stitcher()
    stitcher.push(Span(0, 5), torch.zeros(5, 2, 2, 3))
    with pytest.raises(InputError, match=message):
        stitcher.push(span, torch.zeros(shape))


def test_finish_empties_the_stitcher() -> None:
    stitcher = Stitcher()
    stitcher.push(Span(0, 2), torch.zeros(2, 1, 1, 3))
    assert len(stitcher.finish()) == 2
    assert len(stitcher.finish()) == 0
