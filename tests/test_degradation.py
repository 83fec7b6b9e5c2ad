"""Kernels, codecs and the whole degradation: sums, sizes, ranges, reproducibility."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("av")

from setevsr_core.errors import InputError, SettingsError, VideoError  # noqa: E402
from setevsr_core.training import codecs, degradation, kernels  # noqa: E402
from setevsr_core.training.degradation import Degradation, DegradationConfig, OrderConfig, Walk  # noqa: E402
from setevsr_core.training.pixel_work import INTERPOLATIONS, pixel_work  # noqa: E402


def textured(frames: int, height: int, width: int) -> np.ndarray:
    """A smooth coloured pattern that moves one pixel per frame to the left."""
    y, x = np.mgrid[0:height, 0 : width + frames].astype(float)
    wide = np.stack([128 + 80 * np.sin(x / 5 + y / 9), 128 + 90 * np.cos(y / 7), 60 + 100 * (x > width / 2)], axis=-1)
    return np.stack([wide[:, i : i + width] for i in range(frames)]).astype(np.uint8)


@pytest.mark.parametrize("kind", degradation.KERNEL_PROBABILITIES)
@pytest.mark.parametrize("size", [7, 21])
def test_kernels_sum_to_one_and_are_point_symmetric(kind: str, size: int) -> None:
    kernel = kernels.make_kernel(kind, size, sigma_x=0.2, sigma_y=2.5, angle=0.7, beta=1.5, cutoff=2.0)
    assert kernel.shape == (size, size) and kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-6)


def test_kernel_probabilities_sum_to_one() -> None:
    assert sum(degradation.KERNEL_PROBABILITIES.values()) == pytest.approx(1.0, abs=1e-12)


def test_bessel_j1_matches_tabulated_values() -> None:
    # Abramowitz and Stegun, table 9.1, and the first positive zero
    assert kernels.bessel_j1(np.array([0.0, 1.0, 10.0, 3.8317059702])) == pytest.approx(
        [0.0, 0.4400505857, 0.0434727462, 0.0], abs=1e-9
    )


def test_anisotropic_kernel_turns_with_its_angle() -> None:
    lying = kernels.gaussian_kernel(21, 4.0, 1.0)
    assert lying[10, 14] > 10 * lying[14, 10]
    assert np.allclose(kernels.gaussian_kernel(21, 4.0, 1.0, math.pi / 2), lying.T, atol=1e-6)


def test_beta_one_of_the_generalised_gaussian_is_the_plain_one() -> None:
    plain = kernels.make_kernel("iso", 9, sigma_x=1.3, sigma_y=9.0, angle=1.0, beta=3.0, cutoff=1.0)
    assert np.array_equal(plain, kernels.gaussian_kernel(9, 1.3, 1.3))
    assert not np.array_equal(plain, kernels.gaussian_kernel(9, 1.3, 1.3, beta=2.0))


def test_sinc_with_full_cutoff_passes_low_frequencies_and_rings_at_edges() -> None:
    edge = np.zeros((40, 40), np.float32)
    edge[:, 20:] = 1
    filtered = cv2.filter2D(edge, -1, kernels.sinc_kernel(21, math.pi / 3))
    assert filtered.max() > 1.02 and filtered.min() < -0.02
    flat = cv2.filter2D(np.full((40, 40), 0.5, np.float32), -1, kernels.sinc_kernel(21, math.pi / 3))
    assert np.allclose(flat, 0.5, atol=1e-5)


def test_defaults_are_those_of_realbasicvsr() -> None:
    config = DegradationConfig()
    assert config.first.blur_probability == 1 and config.second.blur_probability == 0.8
    assert config.first.blur_sigma == (0.2, 3.0) and config.second.blur_sigma == (0.2, 1.5)
    assert config.first.resize_scale == (0.15, 1.5) and config.second.resize_scale == (0.3, 1.2)
    assert config.first.gaussian_sigma == (1, 30) and config.second.gaussian_sigma == (1, 25)
    assert config.first.poisson_scale == (0.05, 3) and config.second.poisson_scale == (0.05, 2.5)
    assert config.jpeg_quality == (30, 95) and config.bits_per_frame == (1e4, 1e5)
    for order in (config.first, config.second):
        assert sum(order.resize_probabilities) == pytest.approx(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.jpeg_quality = (1, 2)  # type: ignore[misc]


def test_walk_starts_anywhere_moves_by_at_most_a_step_and_stays_inside() -> None:
    starts = [Walk(np.random.default_rng(seed), (2.0, 4.0), 0.3).take() for seed in range(200)]
    assert min(starts) < 2.1 and max(starts) > 3.9
    walk = Walk(np.random.default_rng(1), (2.0, 4.0), 0.3)
    values = np.array([walk.take() for _ in range(500)])
    steps = np.abs(np.diff(values))
    assert steps.max() <= 0.3 and steps.max() > 0.2
    assert values.min() >= 2.0 and values.max() <= 4.0 and np.ptp(values) > 1.0


def test_to_uint8_clips_and_rounds_instead_of_wrapping() -> None:
    assert codecs.to_uint8(np.array([-3.0, 0.4, 0.6, 254.7, 300.0])).tolist() == [0, 0, 1, 255, 255]


def test_jpeg_keeps_red_red() -> None:
    red = np.zeros((16, 16, 3), np.float32)
    red[..., 0] = 400.0  # out of range on purpose: must clip to 255
    assert codecs.jpeg(red, 95).mean(axis=(0, 1)).tolist() == pytest.approx([254, 0, 0], abs=2)


@pytest.mark.parametrize("codec", ["libx264", "h264", "mpeg4"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (37, 50)])
def test_video_returns_every_frame_in_order_at_any_size(codec: str, size: tuple[int, int]) -> None:
    clip = np.stack([np.full((*size, 3), 40 * i + 10, np.float32) for i in range(6)])
    result = np.stack(list(codecs.video(iter(clip), codec, 100_000)))
    assert result.shape == clip.shape
    assert np.abs(result - clip).max() < 8


def test_video_keeps_colours_and_brings_frames_to_the_first_size() -> None:
    red = np.array([200, 60, 20], np.float32)
    frames = [np.tile(red, (h, w, 1)) for h, w in ((32, 32), (36, 30), (28, 40))]
    result = list(codecs.video(iter(frames), "libx264", 100_000))
    assert [frame.shape for frame in result] == [(32, 32, 3)] * 3
    assert result[2].mean(axis=(0, 1)).tolist() == pytest.approx([200, 60, 20], abs=6)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_lower_bit_rate_loses_more(codec: str) -> None:
    grey = np.random.default_rng(0).integers(60, 200, (4, 64, 64, 1)).astype(np.float32)
    clip = grey.repeat(3, axis=-1)
    few, many = (np.stack(list(codecs.video(iter(clip), codec, bits))) for bits in (2_000, 500_000))
    assert np.abs(few - clip).mean() > 3 * np.abs(many - clip).mean()


def test_planes_are_those_of_bt601_and_turn_back() -> None:
    for rgb, code in (((255, 255, 255), (235, 128, 128)), ((0, 0, 0), (16, 128, 128)), ((255, 0, 0), (81, 90, 240))):
        planes = codecs.rgb_to_planes(np.tile(np.array(rgb, np.float32), (6, 10, 1)))
        assert planes.shape == (9, 10) and planes.dtype == np.uint8
        assert (planes[0, 0], planes[6:].ravel()[0], planes[6:].ravel()[-1]) == code
        assert codecs.planes_to_rgb(planes)[3, 4].tolist() == pytest.approx(rgb, abs=1.5)
    ramp = np.tile(np.linspace(20, 220, 22, dtype=np.float32)[:, None], (14, 1, 3))
    assert np.abs(codecs.planes_to_rgb(codecs.rgb_to_planes(ramp)) - ramp).max() < 1


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_video_does_not_darken(codec: str) -> None:
    ramp = np.linspace(20, 230, 64, dtype=np.float32)
    clip = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[::-1], (64, 1)), np.tile(ramp[:, None], (1, 64))], axis=-1)
    result = np.stack(list(codecs.video(iter([clip] * 3), codec, 500_000)))
    assert (result - clip).mean(axis=(0, 1, 2)).tolist() == pytest.approx([0, 0, 0], abs=0.5)


def test_video_of_no_frames_is_empty_and_an_unknown_codec_is_named() -> None:
    assert list(codecs.video(iter([]), "libx264", 1000)) == []
    with pytest.raises(VideoError, match="'vp8'"):
        list(codecs.video(iter([np.zeros((16, 16, 3), np.float32)]), "vp8", 1000))


@pytest.mark.parametrize("shape", [(3, 64, 48), (2, 37, 53), (1, 5, 3), (2, 1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_degradation_gives_the_target_size_for_any_size(shape: tuple[int, int, int], seed: int) -> None:
    result = Degradation()(textured(*shape), seed)
    frames, height, width = shape
    assert result.shape == (frames, max(1, int(height / 4 + 0.5)), max(1, int(width / 4 + 0.5)), 3)
    assert result.dtype == np.uint8


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    clip = textured(4, 64, 64)
    for seed in range(6):  # several seeds, so that each codec and either final order occurs
        first = Degradation()(clip, seed)
        assert all(np.array_equal(first, Degradation()(clip, seed)) for _ in range(3))
    assert not np.array_equal(Degradation()(clip, 0), Degradation()(clip, 1))


def test_bytes_do_not_depend_on_what_freed_memory_holds() -> None:
    """Encoders have read uninitialised memory: glibc can fill fresh memory with a byte, and no byte may matter."""
    script = (
        "import sys, hashlib, numpy as np\n"
        "from setevsr_core.training.degradation import Degradation\n"
        "clip = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)\n"
        "print([hashlib.md5(Degradation()(clip, s).tobytes()).hexdigest() for s in (0, 2, 10, 14, 15, 22, 30, 36)])\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "MALLOC_PERTURB_": fill},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in ("1", "200")
    }
    assert len(outputs) == 1 and "[" in outputs.pop()


def test_stream_equals_whole_and_scale_is_respected() -> None:
    clip = textured(5, 48, 64)
    streamed = np.stack(list(Degradation().stream(iter(clip), 3, scale=2)))
    assert streamed.shape == (5, 24, 32, 3)
    assert np.array_equal(streamed, Degradation()(clip, 3, scale=2))


def mild() -> DegradationConfig:
    """As little degradation as the ranges can express."""
    order = OrderConfig(
        blur_probability=0.0,
        resize_probabilities=(0.0, 0.0, 1.0),
        gaussian_sigma=(0.0, 0.0),
        poisson_scale=(0.0, 0.0),
    )
    return DegradationConfig(
        first=order,
        second=order,
        gaussian_sigma_step=0.0,
        poisson_scale_step=0.0,
        jpeg_quality=(95, 95),
        bits_per_frame=(1e6, 1e6),
        bits_area=64 * 64,
        last_sinc_probability=0.0,
    )


@pytest.mark.parametrize("seed", range(6))
def test_degraded_frames_stay_aligned_in_space_and_colour(seed: int) -> None:
    clip = textured(4, 64, 64)
    small = Degradation(mild())(clip, seed).astype(float)
    expected = np.stack([cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA) for frame in clip]).astype(float)
    error = np.abs(small - expected).mean()
    for axis in (1, 2):
        for shift in (-1, 1):  # one small pixel off is clearly worse
            assert error < 0.75 * np.abs(small - np.roll(expected, shift, axis)).mean()
    assert error < 0.5 * np.abs(small[..., ::-1] - expected).mean()  # and so is BGR


@pytest.mark.parametrize("seed", range(6))
def test_degraded_frames_keep_their_order_in_time(seed: int) -> None:
    clip = np.stack([np.full((32, 32, 3), 30 + 40 * i, np.uint8) for i in range(5)])
    small = Degradation(mild())(clip, seed).mean(axis=(1, 2, 3))
    assert small == pytest.approx([30, 70, 110, 150, 190], abs=8)


def test_poisson_noise_grows_with_light_and_grey_noise_is_grey() -> None:
    rng = np.random.default_rng(0)
    ramp = np.tile(np.linspace(0, 255, 256, dtype=np.float32)[:, None, None], (1, 64, 3))
    noise = degradation.poisson_noise(ramp, rng, grey=False)
    assert noise.shape == ramp.shape and abs(noise.mean()) < 0.5
    # 256 levels in use: lambda = level, so the variance equals the level
    assert noise[250].std() == pytest.approx(math.sqrt(250), rel=0.25)
    assert noise[0].std() == 0
    assert degradation.poisson_noise(ramp, rng, grey=True).shape == (256, 64, 1)
    assert degradation.gaussian_noise((256, 64), rng, grey=True).shape == (256, 64, 1)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="uint8"):
        Degradation()(np.zeros((2, 8, 8, 3), np.float32), 0)
    with pytest.raises(InputError):
        Degradation()(np.zeros((0, 8, 8, 3), np.uint8), 0)
    with pytest.raises(SettingsError, match="scale is 0"):
        Degradation()(np.zeros((1, 8, 8, 3), np.uint8), 0, scale=0)


# ---- torch in OpenCV's place ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(9, 14), (40, 50), (80, 71), (32, 40)])
def test_torch_resizes_as_opencv_does(interpolation: str, size: tuple[int, int]) -> None:
    frame = textured(1, 64, 60)[0].astype(np.float32)
    opencv, torch = pixel_work(None), pixel_work("cpu")
    found = torch.leave(torch.resize(torch.enter(frame), size, interpolation))
    assert found.shape == (*size, 3) and found.dtype == np.float32
    assert np.abs(found - opencv.resize(frame, size, interpolation)).max() < 0.05


@pytest.mark.parametrize("height", [5, 48])
def test_torch_filters_as_opencv_does(height: int) -> None:
    frame = textured(1, height, 40)[0].astype(np.float32)
    kernel = kernels.make_kernel("aniso", 21, sigma_x=0.7, sigma_y=3.0, angle=0.4, beta=1.0, cutoff=1.0)
    opencv, torch = pixel_work(None), pixel_work("cpu")
    found = torch.leave(torch.filter(torch.enter(frame), kernel))
    assert np.abs(found - opencv.filter(frame, kernel)).max() < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_torch_degrades_the_same_clip_from_the_same_seed(seed: int) -> None:
    """Rounding before a codec moves a few pixels by a level or two; another draw anywhere would move all of them."""
    config = DegradationConfig(gaussian_probability=1.0)  # photon counts follow the rounding, and then run apart
    clip = textured(3, 96, 96)
    opencv, torch = (Degradation(config, device)(clip, seed).astype(int) for device in (None, "cpu"))
    other = Degradation(config)(clip, seed + 100).astype(int)
    assert np.abs(opencv - torch).mean() < 0.5 < 3 < np.abs(opencv - other).mean()


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        Degradation(device="nowhere")
