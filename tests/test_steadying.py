"""Frames averaged along their motion: noise goes, motion is followed, nothing trails, and every way gives the same."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from setevsr_core import Restorer
from setevsr_core.errors import SettingsError
from setevsr_core.training.packing import steady_frames
from setevsr_core.video.motion import Search, dense_flow
from setevsr_core.video.segments import iter_windows, plan_spans
from setevsr_core.video.steadying import steady, steady_spans, steady_video

from .tiny_networks import tiny_vae

pytest.importorskip("cv2")


def moving(frames: int, speed: float = 1.0, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """(N,H,W,3): smooth random texture that moves `speed` pixels a frame to the left."""
    blocks = torch.rand(1, 3, 8, 24, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.linspace(-0.9, 0.9, height), torch.arange(width) / 96 - 0.9, indexing="ij")
    grids = torch.stack([torch.stack([x + index * speed / 96, y], dim=-1) for index in range(frames)])
    pictures = torch.nn.functional.grid_sample(blocks.expand(frames, -1, -1, -1), grids, mode="bicubic",
                                               align_corners=True)
    return pictures.clamp(0.1, 0.9).movedim(1, -1).contiguous()


def noisy(frames: Tensor, sigma: float = 0.04, seed: int = 1) -> Tensor:
    return frames + sigma * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))


def error(result: Tensor, truth: Tensor) -> float:
    """Root mean square, away from the borders, where nothing can be known of what comes in."""
    return float((result - truth)[:, 6:-6, 6:-6].square().mean().sqrt())


@pytest.mark.parametrize("speed", [0.0, 0.7, 2.0])
def test_noise_goes_and_motion_is_followed(speed: float) -> None:
    truth = moving(5, speed)
    frames = noisy(truth)
    assert error(steady(frames, 2)[2:3], truth[2:3]) < 0.65 * error(frames[2:3], truth[2:3])
    assert error(steady(truth, 2), truth) < 0.01


@pytest.mark.parametrize("size", [(1, 1), (9, 9), (10, 100), (100, 10), (40, 12), (8, 48), (9, 192), (15, 640),
                                  (48, 1920), (1, 2000), (2000, 1), (1, 4000)])  # fmt: skip
def test_pictures_of_any_shape_are_searched(size: tuple[int, int]) -> None:
    """OpenCV refuses small pictures, and in low and wide ones it crashes the process or finds NaN."""
    result = steady(torch.rand(3, *size, 3), 1)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1
    frames = noisy(moving(2, 0.0, *size))
    assert (steady(frames, 1) - frames).abs().mean() < 0.04
    grey = frames[..., 0].mul(255).byte().numpy()
    for search in get_args(Search):
        assert np.isfinite(dense_flow(grey[0], grey[1], search, "a test")).all()


def test_motion_is_found_in_low_pictures() -> None:
    truth = moving(5, 2.0, 24, 200)
    frames = noisy(truth)
    assert error(steady(frames, 2)[2:3], truth[2:3]) < 0.75 * error(frames[2:3], truth[2:3])


def test_nothing_trails_behind_what_appears_for_a_moment() -> None:
    frames = moving(5, 0.0)
    flash = frames.clone()
    flash[2, 20:28, 30:38] = 1.0
    flash[2, 20:28, 30:38, 1:] = 0.0
    result = steady(flash, 2)
    assert (result[2, 21:27, 31:37] - flash[2, 21:27, 31:37]).abs().max() < 0.02
    assert (result[[1, 3]] - frames[[1, 3]]).abs().max() < 0.05


def test_clean_frames_stay_as_they_are() -> None:
    """Each frame of a pan over fine stripes, where a neighbour moved by parts of a pixel can only be less sharp."""
    x = torch.arange(64.0)
    clean = torch.stack([0.5 + 0.3 * torch.sin((x + 0.5 * index) * 1.2) for index in range(5)])
    clean = clean[:, None, :, None].expand(5, 48, 64, 3) * moving(1)
    assert error(steady(clean, 2), clean) < 0.5 * error(steady(noisy(clean), 2), clean) < error(noisy(clean), clean)
    still = moving(1).expand(5, -1, -1, -1)
    assert (steady(still, 2) - still).abs().max() < 1e-6


@pytest.mark.parametrize("other", [0.0, 0.55, 1.0])
def test_a_flash_or_an_unknown_cut_is_not_averaged(other: float) -> None:
    frames = noisy(moving(5, 0.0) * 0.1 + 0.4, 0.01)
    frames[2] = torch.full_like(frames[2], other)
    result = steady(frames, 2)
    assert torch.equal(result[2], frames[2])
    without = steady(torch.cat([frames[:2], frames[3:]]), 2)
    assert torch.equal(result[0], steady(frames[:2], 1)[0]) and error(result[1:2], without[1:2]) < 0.01


def test_radius_0_changes_nothing_and_alpha_stays() -> None:
    frames = torch.cat([noisy(moving(4, 0.0, 20, 24)), torch.rand(4, 20, 24, 1)], dim=-1)
    assert torch.equal(steady(frames, 0), frames) and steady_video(frames, 0) is frames
    result = steady(frames, 1)
    assert torch.equal(result[..., 3], frames[..., 3]) and not torch.equal(result[..., :3], frames[..., :3])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 9), (17, 5), (12, 700)])
def test_frames_of_any_size(size: tuple[int, int]) -> None:
    frames = torch.rand(3, *size, 3)
    result = steady(frames, 2)
    assert result.shape == frames.shape and bool(result.isfinite().all())


def test_a_frame_depends_on_its_radius_alone() -> None:
    frames = noisy(moving(9))
    whole = steady(frames, 2)
    assert torch.equal(steady(frames[2:7], 2, range(2, 3))[0], whole[4])
    assert torch.equal(steady(frames, 2, range(3, 6)), whole[3:6])


@pytest.mark.parametrize("radius", [-1, 5])
def test_an_impossible_radius_is_refused(radius: int) -> None:
    with pytest.raises(SettingsError, match="steady must be a whole number from 0 to 4"):
        steady(torch.rand(3, 16, 16, 3), radius)
    with pytest.raises(SettingsError, match="steady"):
        Restorer(None, tiny_vae()).settings(steps=0, steady=radius)


@pytest.mark.parametrize("cuts", [(), (4,), (1, 3, 11)])
@pytest.mark.parametrize("radius", [0, 1, 2, 4])
def test_spans_of_a_stream_are_those_of_the_whole_video(radius: int, cuts: tuple[int, ...]) -> None:
    frames = noisy(moving(13, height=24, width=32))
    whole = steady_video(frames, radius, cuts)
    spans = list(steady_spans(iter_windows(frames, 5, 2, cuts, context=radius), radius))
    assert tuple(span for span, _ in spans) == plan_spans(len(frames), 5, 2, cuts)
    for span, segment in spans:
        assert torch.equal(segment, whole[span.start : span.stop])


def test_no_frame_is_mixed_with_another_scene() -> None:
    frames = torch.cat([torch.full((3, 32, 32, 3), 0.50), torch.full((3, 32, 32, 3), 0.52)])  # alike, but a cut
    assert torch.equal(steady_video(frames, 2, cuts=(3,)), frames)
    assert not torch.equal(steady_video(frames, 2), frames)


def test_the_work_can_be_watched_and_stopped() -> None:
    seen: list[tuple[int, int]] = []
    steady_video(moving(4, height=24, width=32), 1, (2,), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steady_video(moving(4, height=24, width=32), 1, (), stop)


@torch.inference_mode()
def test_restoring_steadied_frames_is_restoring_with_steady() -> None:
    restorer = Restorer(None, tiny_vae())
    frames = noisy(moving(8, height=16, width=24)).clamp(0, 1)
    settings: dict[str, Any] = {"scale": 2.0, "steps": 0, "cuts": (3,)}
    expected = restorer.restore(steady_video(frames, 2, (3,)), **settings)
    assert torch.equal(restorer.restore(frames, steady=2, **settings), expected)
    assert torch.equal(torch.cat(list(restorer.stream(iter(frames), steady=2, **settings))), expected)
    assert not torch.equal(restorer.restore(frames, **settings), expected)


@torch.inference_mode()
def test_results_are_steadied_within_each_segment() -> None:
    restorer = Restorer(None, tiny_vae())
    frames = noisy(moving(8, 0.0, height=16, width=24), 0.001)
    settings: dict[str, Any] = {"scale": 2.0, "steps": 0, "length": 4, "overlap": 0}
    plain = restorer.restore(frames, **settings)
    expected = torch.cat([steady(part, 1) for part in plain.split(4)])
    assert torch.equal(restorer.restore(frames, steady_result=1, **settings), expected)
    assert torch.equal(torch.cat(list(restorer.stream(iter(frames), steady_result=1, **settings))), expected)
    assert not torch.equal(plain, expected)


def test_training_sees_what_restoring_sees() -> None:
    frames = (noisy(moving(5)).clamp(0, 1) * 255).round().byte()
    expected = (steady(frames.float() / 255, 2) * 255).round().byte()
    assert np.array_equal(steady_frames(frames.numpy(), 2), expected.numpy())
    assert np.array_equal(steady_frames(frames.numpy(), 0), frames.numpy())
