"""The denoising loop with stand-in denoisers whose right answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from setevsr_core.errors import InputError, SettingsError
from setevsr_core.sampling import schedules
from setevsr_core.sampling.loop import denoise, text_for, tile_region
from setevsr_core.sampling.samplers import SAMPLERS
from setevsr_core.sampling.tiles import Tile


class FakeKeys:
    def __init__(self, regions: list[tuple[float, ...]]) -> None:
        self.regions = regions

    def crop(self, top: float, bottom: float, left: float, right: float) -> FakeKeys:
        self.regions.append((top, bottom, left, right))
        return self


class IdealDenoiser:
    """Knows that the clean latent is the LR latent plus `shift`, and predicts exactly the noise that implies."""

    dtype = torch.float32

    def __init__(self, shift: float = 0.0, empty_text: torch.Tensor | None = None) -> None:
        self.shift = shift
        self.empty_text = torch.zeros(1, 3, 8) if empty_text is None else empty_text
        self.calls: list[str] = []
        self.timesteps: list[int] = []
        self.regions: list[tuple[float, ...]] = []

    def project_text(self, text: torch.Tensor) -> str:
        self.calls.append("text")
        return f"projected {tuple(text.shape)}"

    def project_semantics(self, semantics: torch.Tensor) -> FakeKeys:
        self.calls.append("semantics")
        return FakeKeys(self.regions)

    def encode_lr(self, lr_latents: torch.Tensor, timesteps: torch.Tensor) -> list[torch.Tensor]:
        self.calls.append("lr")
        return [lr_latents]

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        num_frames: int,
        lr_maps: Any,
        text: Any,
        semantics: Any = None,
    ) -> torch.Tensor:
        assert latents.shape[0] == timesteps.shape[0] == num_frames and str(text).startswith("projected")
        self.timesteps.append(int(timesteps[0]))
        signal = schedules.abar(int(timesteps[0]))
        return (latents - math.sqrt(signal) * (lr_maps[0] + self.shift)) / math.sqrt(1 - signal)


class CuriousDenoiser(IdealDenoiser):
    """Not ideal: its answer depends on its input per pixel, so noise and sampler leave their mark."""

    def __call__(self, latents: torch.Tensor, timesteps: torch.Tensor, **conditions: Any) -> torch.Tensor:
        return torch.tanh(latents + 0.3 * conditions["lr_maps"][0])


def latents(frames: int = 5, h: int = 16, w: int = 16) -> torch.Tensor:
    return torch.randn(frames, 4, h, w, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tile", [0, 8])
def test_an_ideal_denoiser_is_followed_to_its_clean_latents(sampler: str, tile: int) -> None:
    z = latents()
    result = denoise(
        IdealDenoiser(shift=0.5), z, frame_indices=range(5), seed=1, steps=6, sampler=sampler, tile=tile, tile_overlap=4
    )
    assert (result - z - 0.5).abs().max() < {"lcm": 0.01, "tcd": 0.15}.get(sampler, 2e-3)


def test_frame_results_do_not_depend_on_the_segment() -> None:
    z = latents(8)
    settings: dict[str, Any] = {"seed": 9, "steps": 4}
    first = denoise(CuriousDenoiser(), z[:5], frame_indices=range(5), **settings)
    second = denoise(CuriousDenoiser(), z[3:], frame_indices=range(3, 8), **settings)
    assert torch.equal(first[3:], second[:2])
    other_place = denoise(CuriousDenoiser(), z[:5], frame_indices=range(1, 6), **settings)
    assert not torch.equal(first, other_place)


def test_pointwise_network_gives_the_same_with_and_without_tiles() -> None:
    z = latents(2, 24, 32)
    whole = denoise(CuriousDenoiser(), z, frame_indices=(0, 1), seed=9, steps=3, tile=0)
    tiled = denoise(CuriousDenoiser(), z, frame_indices=(0, 1), seed=9, steps=3, tile=16, tile_overlap=8)
    torch.testing.assert_close(whole, tiled, atol=1e-5, rtol=1e-5)


def test_seed_decides() -> None:
    results = [denoise(CuriousDenoiser(), latents(), frame_indices=range(5), seed=seed, steps=2) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_what_does_not_depend_on_time_is_computed_once() -> None:
    denoiser = IdealDenoiser()
    denoise(denoiser, latents(2, 16, 24), frame_indices=(0, 1), seed=0, steps=5, semantics=torch.zeros(2, 256, 4, 4),
            tile=16, tile_overlap=8)  # fmt: skip
    assert denoiser.calls.count("text") == denoiser.calls.count("semantics") == 1
    assert denoiser.calls.count("lr") == 5 * 2
    assert denoiser.regions == [(0, 1, 0, 1), (0, 1, 0, 1)]  # 16 of 24 columns plus a margin of 8


def test_a_text_without_a_batch_serves_all_frames() -> None:
    denoiser = IdealDenoiser(empty_text=torch.zeros(1, 3, 8))
    assert text_for(denoiser, torch.ones(3, 8)).shape == text_for(denoiser, None).shape == (1, 3, 8)


def test_network_sees_the_original_timesteps() -> None:
    denoiser = IdealDenoiser()
    denoise(denoiser, latents(1), frame_indices=(0,), seed=0, steps=4, tile=0)
    assert denoiser.timesteps == [999, 666, 333, 0]


def test_weak_strength_stays_at_the_input() -> None:
    z = latents()
    results = [
        denoise(CuriousDenoiser(), z, frame_indices=range(5), seed=1, steps=20, strength=s) for s in (0.05, 0.4, 1.0)
    ]
    distances = [float((result - z).abs().mean()) for result in results]
    assert distances[0] < distances[1] < distances[2]


def test_no_steps_returns_the_input() -> None:
    z = latents()
    assert torch.equal(denoise(IdealDenoiser(), z, frame_indices=range(5), seed=0, steps=0), z)


def test_on_step_reports_every_step_and_the_clean_prediction() -> None:
    z, seen = latents(1), []
    denoise(IdealDenoiser(0.25), z, frame_indices=(0,), seed=0, steps=3,
            on_step=lambda k, n, noisy, clean: seen.append((k, n, float((clean - z - 0.25).abs().max()))))  # fmt: skip
    assert [(k, n) for k, n, _ in seen] == [(0, 3), (1, 3), (2, 3)]
    assert max(error for *_, error in seen) < 1e-4


def test_cancel_stops_at_the_next_tile() -> None:
    class Stop(Exception):
        pass

    denoiser, calls = IdealDenoiser(), []

    def check() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Stop

    with pytest.raises(Stop):
        denoise(
            denoiser,
            latents(1, 16, 24),
            frame_indices=(0,),
            seed=0,
            steps=50,
            tile=16,
            tile_overlap=8,
            check_cancel=check,
        )
    assert denoiser.calls.count("lr") == 3


def test_tile_regions() -> None:
    assert tile_region(Tile(0, 16, 16, 32), (32, 64), (1.0, 1.0), 0) == (0.0, 0.5, 0.25, 0.5)
    assert tile_region(Tile(0, 16, 16, 32), (32, 64), (1.0, 1.0), 8) == (0.0, 0.75, 0.125, 0.625)
    # a frame that fills 20 of 32 rows: rows 16..32 show its last rows and padding
    assert tile_region(Tile(16, 0, 32, 64), (32, 64), (0.625, 1.0), 0) == (0.8, 1.0, 0.0, 1.0)
    # wholly inside the padding: still the last row, never empty
    top, bottom, *_ = tile_region(Tile(24, 0, 32, 64), (32, 64), (0.625, 1.0), 0)
    assert (top, bottom) == (0.95, 1.0)


def test_misfits_are_refused_in_words() -> None:
    z = latents()
    with pytest.raises(InputError, match="5 latent frames came with 4 frame indices"):
        denoise(IdealDenoiser(), z, frame_indices=range(4), seed=0)
    with pytest.raises(InputError, match="semantics of 3"):
        denoise(IdealDenoiser(), z, frame_indices=range(5), seed=0, semantics=torch.zeros(3, 256, 4, 4))
    with pytest.raises(InputError, match="multiple of 8"):
        denoise(IdealDenoiser(), z[..., :12], frame_indices=range(5), seed=0)
    with pytest.raises(InputError, match="NaN"):
        denoise(IdealDenoiser(), z * float("nan"), frame_indices=range(5), seed=0)
    with pytest.raises(SettingsError, match="at timestep 999 the denoiser gives NaN .* in torch.float32"):
        denoise(IdealDenoiser(float("inf")), z, frame_indices=range(5), seed=0)
    with pytest.raises(InputError, match=r"text must be an embedding of the shape .* got \(8,\)"):
        denoise(IdealDenoiser(), z, frame_indices=range(5), seed=0, text=torch.zeros(8))
    with pytest.raises(InputError, match="5 latent frames came with 2 texts"):
        denoise(IdealDenoiser(), z, frame_indices=range(5), seed=0, text=torch.zeros(2, 3, 8))
    textless = IdealDenoiser()
    textless.empty_text = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="text"):
        denoise(textless, z, frame_indices=range(5), seed=0)
