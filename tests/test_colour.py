"""Colour matching: low frequencies or statistics come from the reference, detail stays."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from setevsr_core.errors import InputError, SettingsError
from setevsr_core.video.colour import METHODS, lab_to_rgb, low_band, match_colour, rgb_to_lab


def picture(seed: int = 0, frames: int = 2, height: int = 24, width: int = 32) -> torch.Tensor:
    """(N,3,H,W) noise in 0.3..0.7, so that small shifts do not clip."""
    return 0.3 + 0.4 * torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_a_frame_that_matches_is_left_alone(method: str) -> None:
    frames = picture()
    assert (match_colour(frames, frames, method) - frames).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_a_constant_shift_is_taken_back(method: str) -> None:
    reference = picture()
    shifted = reference + torch.tensor([0.1, -0.05, 0.2]).view(1, 3, 1, 1)
    assert (match_colour(shifted, reference, method) - reference).abs().max() < 1e-5


def test_wavelet_joins_high_bands_of_the_result_and_the_low_band_of_the_reference() -> None:
    result, reference = picture(1), picture(2)
    matched = match_colour(result, reference, "wavelet")
    for index in range(2):
        expected = result[index] - low_band(result[index]) + low_band(reference[index])
        assert torch.allclose(matched[index], expected.clamp(0, 1), atol=1e-5)


def test_low_band_is_the_dilated_binomial_filter() -> None:
    image = picture(3)[0]
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(3, 1, 3, 3)
    expected = image[None]
    for level in range(5):
        step = 2**level
        expected = functional.conv2d(
            functional.pad(expected, (step,) * 4, mode="replicate"), kernel, groups=3, dilation=step
        )
    assert torch.allclose(low_band(image), expected[0], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_the_smallest_frames_work(method: str, size: tuple[int, int]) -> None:
    matched = match_colour(torch.full((1, 3, *size), 0.2), torch.full((1, 3, *size), 0.6), method)
    assert bool(matched.isfinite().all())
    expected = 0.2 if method == "none" else 0.6
    assert (matched - expected).abs().max() < 1e-4


def test_adain_takes_mean_and_deviation_of_each_frame_and_channel() -> None:
    result, reference = picture(1) * 0.5, picture(2)
    matched = match_colour(result, reference, "adain")
    assert torch.allclose(matched.mean((2, 3)), reference.mean((2, 3)), atol=1e-4)
    assert torch.allclose(matched.std((2, 3)), reference.std((2, 3)), atol=1e-3)


def test_lab_takes_the_statistics_in_lab() -> None:
    result, reference = 0.2 + 0.5 * picture(1), picture(2)
    matched = match_colour(result, reference, "lab")
    lab, wanted = rgb_to_lab(matched[0]), rgb_to_lab(reference[0])
    assert torch.allclose(lab.mean((1, 2)), wanted.mean((1, 2)), atol=0.3)
    assert torch.allclose(lab.std((1, 2)), wanted.std((1, 2)), atol=0.3)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.241, 80.092, 67.203)),
        ((0, 1, 0), (87.735, -86.183, 83.179)),
        ((0, 0, 1), (32.297, 79.188, -107.860)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    colour = torch.tensor(rgb, dtype=torch.float32).view(3, 1, 1)
    assert rgb_to_lab(colour).flatten().tolist() == pytest.approx(lab, abs=0.02)
    assert lab_to_rgb(rgb_to_lab(colour)).flatten().tolist() == pytest.approx(rgb, abs=1e-4)


def test_lab_roundtrip() -> None:
    colours = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert (lab_to_rgb(rgb_to_lab(colours)) - colours).abs().max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_clamped_and_keeps_its_type(method: str) -> None:
    matched = match_colour(picture().half() * 3 - 1, picture(1), method)
    assert matched.dtype == torch.float16
    assert matched.min() >= 0 and matched.max() <= 1


def test_frames_do_not_influence_each_other() -> None:
    result, reference = picture(1, frames=3), picture(2, frames=3)
    for method in METHODS:
        alone = match_colour(result[1:2], reference[1:2], method)
        assert torch.equal(match_colour(result, reference, method)[1:2], alone)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(SettingsError, match="'sepia'.*wavelet"):
        match_colour(picture(), picture(), "sepia")
    with pytest.raises(InputError, match="shape"):
        match_colour(picture(), picture(height=20), "wavelet")
