"""Hard cuts are found, wherever they are; motion and brightness drifts are none."""

from __future__ import annotations

import pytest
import torch

from setevsr_core.video.scenes import SceneCutDetector, detect_cuts
from setevsr_core.video.segments import iter_windows, plan_spans

pytest.importorskip("scenedetect")


def shot(seed: int, frames: int) -> torch.Tensor:
    """(N,H,W,3): a coarse random picture that moves one pixel a frame."""
    blocks = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(blocks, size=(48, 72), mode="bilinear")[0].permute(1, 2, 0)
    return torch.stack([picture.roll(index, 1) for index in range(frames)])


def test_no_cut_in_one_moving_shot() -> None:
    assert detect_cuts(shot(1, 30)) == ()


@pytest.mark.parametrize("first", [1, 2, 3, 10, 19])
def test_a_cut_is_found_also_beside_the_borders(first: int) -> None:
    video = torch.cat([shot(1, first), shot(2, 20 - first)])
    assert detect_cuts(video) == (first,)


def test_several_cuts_and_a_minimum_shot() -> None:
    video = torch.cat([shot(1, 10), shot(2, 9), shot(3, 12)])
    assert detect_cuts(video) == (10, 19)
    assert detect_cuts(video, min_shot=10) == (10,)


def test_a_flash_makes_no_shot_of_one_frame() -> None:
    video = shot(1, 20)
    video[9] = 1.0
    assert len(detect_cuts(video)) <= 1


def test_streaming_gives_the_plan_of_the_found_cuts() -> None:
    video = torch.cat([shot(1, 8), shot(2, 13)])
    streamed = tuple(span for span, _, _ in iter_windows(video, 5, 2, SceneCutDetector()))
    assert streamed == plan_spans(21, 5, 2, (8,))


def test_nothing_is_decided_before_the_detector_has_looked_ahead() -> None:
    detector = SceneCutDetector(window=2)
    for frame in shot(1, 4):
        detector.push(frame)
    assert detector.decided == 2
    detector.finish()
    assert detector.decided == 4


def test_big_frames_and_four_channels_are_taken() -> None:
    video = torch.cat([torch.zeros(6, 40, 700, 4), torch.ones(6, 40, 700, 4)])
    assert detect_cuts(video) == (6,)
    assert detect_cuts([]) == ()
