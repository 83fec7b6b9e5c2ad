"""Noise is a pure function of (seed, frame, step)."""

from __future__ import annotations

import itertools

import pytest
import torch

from setevsr_core.errors import SettingsError
from setevsr_core.sampling.noise import START, frame_noise, frames_noise

SHAPE = (4, 16, 24)


def test_same_arguments_same_noise_whatever_was_drawn_before() -> None:
    first = frame_noise(7, 3, 2, SHAPE)
    torch.randn(100)
    frame_noise(7, 4, 2, SHAPE)
    assert torch.equal(first, frame_noise(7, 3, 2, SHAPE))
    assert first.shape == SHAPE and first.dtype == torch.float32


def test_a_frame_keeps_its_noise_in_another_segment() -> None:
    segments = frames_noise(1, [0, 1, 2, 3, 4], 5, SHAPE), frames_noise(1, [3, 4, 5, 6, 7], 5, SHAPE)
    assert torch.equal(segments[0][3:], segments[1][:2])


def test_noise_leaves_torch_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    frame_noise(0, 0, START, SHAPE)
    assert torch.equal(before, torch.random.get_rng_state())


def test_neighbouring_ids_share_no_numbers_and_no_correlation() -> None:
    ids = list(itertools.product((0, 1, 2**32, 2**64 - 1), (0, 1, 2), (START, 0, 1, 2)))
    streams = torch.stack([frame_noise(s, f, k, (4, 32, 32)).flatten() for s, f, k in ids])
    correlation = torch.corrcoef(streams) - torch.eye(len(ids))
    assert correlation.abs().max() < 5.5 / 64  # 4096 numbers each: a standard deviation of 1/64
    # no stream is a shifted part of another either (a counter that overlapped would show it)
    seen = torch.cat([stream[:512] for stream in streams])
    assert seen.unique().numel() > 0.999 * seen.numel()


def test_swapping_frame_and_step_gives_other_noise() -> None:
    assert not torch.equal(frame_noise(0, 1, 2, SHAPE), frame_noise(0, 2, 1, SHAPE))


def test_standard_normal() -> None:
    noise = frames_noise(11, range(4), 0, (4, 64, 64))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.01


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 0, -2)])
def test_out_of_range_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(SettingsError):
        frame_noise(*arguments, SHAPE)
