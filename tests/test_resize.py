"""Scaling by any factor, and padding that is undone exactly from 1x1 up."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from setevsr_core.errors import InputError, SettingsError
from setevsr_core.video.resize import crop, pad_to_multiple, target_size, upscale_bicubic


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((16, 16), 4, (64, 64)),
        ((17, 31), 1, (17, 31)),
        ((17, 31), 1.5, (26, 47)),
        ((5, 3), 2.3, (12, 7)),
        ((1, 1), 8, (8, 8)),
    ],
)
def test_target_size_rounds_halves_up(size: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    assert target_size(*size, scale) == expected
    frames = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert upscale_bicubic(frames, scale).shape == (2, 3, *expected)


@pytest.mark.parametrize("scale", [0.5, 8.01, float("nan"), 0, -2])
def test_scales_outside_the_range_are_refused(scale: float) -> None:
    with pytest.raises(SettingsError, match="scale"):
        target_size(16, 16, scale)


def test_exactly_one_of_scale_and_size() -> None:
    with pytest.raises(SettingsError):
        upscale_bicubic(torch.zeros(1, 3, 4, 4))
    with pytest.raises(SettingsError):
        upscale_bicubic(torch.zeros(1, 3, 4, 4), 2, size=(8, 8))


def test_overshoot_is_clamped() -> None:
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    raw = functional.interpolate(step, scale_factor=4, mode="bicubic", align_corners=False)
    assert raw.max() > 1 and raw.min() < 0
    assert torch.equal(upscale_bicubic(step, 4), raw.clamp(0, 1))


def test_scale_one_is_the_picture_itself() -> None:
    frames = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upscale_bicubic(frames, 1), frames)


def test_shrinking_to_a_size_is_antialiased() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    small = upscale_bicubic(stripes, size=(16, 16))
    assert (small[..., 2:-2] - 0.5).abs().max() < 0.1


def test_half_precision_keeps_its_type() -> None:
    assert upscale_bicubic(torch.zeros(1, 3, 4, 4, dtype=torch.float16), 2).dtype == torch.float16


@pytest.mark.parametrize("height", [1, 2, 3, 16, 33, 63, 64, 65, 130])
@pytest.mark.parametrize("width", [1, 2, 31, 64, 100])
def test_padding_is_undone_exactly(height: int, width: int) -> None:
    frames = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    padded, size = pad_to_multiple(frames, 64)
    assert padded.shape[-2] % 64 == 0 and padded.shape[-2] - height < 64
    assert padded.shape[-1] % 64 == 0 and padded.shape[-1] - width < 64
    assert size == (height, width)
    assert torch.equal(crop(padded, size), frames)


def test_padding_reflects_as_torch_does_where_torch_can() -> None:
    frames = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    padded, _ = pad_to_multiple(frames, 64)
    assert torch.equal(padded, functional.pad(frames, (0, 14, 0, 24), mode="reflect"))


def test_small_pictures_are_reflected_again_and_again() -> None:
    padded, _ = pad_to_multiple(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 8)
    assert padded[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2]
    assert torch.equal(padded[0, 0], padded[0, 0, :1].expand(8, 8))


def test_fitting_frames_are_not_copied() -> None:
    frames = torch.zeros(1, 3, 64, 128)
    assert pad_to_multiple(frames, 64)[0] is frames


def test_impossible_pictures_are_refused() -> None:
    with pytest.raises(InputError):
        pad_to_multiple(torch.zeros(1, 3, 0, 4))
    with pytest.raises(InputError, match="cropped"):
        crop(torch.zeros(1, 3, 4, 4), (5, 4))
