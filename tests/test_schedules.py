"""The 50-step respaced DDPM in figures, and every sampler against what it must do."""

from __future__ import annotations

import math

import pytest
import torch

from setevsr_core.errors import SettingsError
from setevsr_core.sampling import schedules
from setevsr_core.sampling.samplers import SAMPLERS, make_sampler

TIMESTEPS = schedules.linspace_timesteps(50)


def test_signal_shares() -> None:
    assert schedules.abar(0) == pytest.approx(0.99915, abs=1e-7)
    assert schedules.abar(999) == pytest.approx(0.0046601, abs=5e-8)
    assert schedules.abar(-1) == 1.0


def test_fifty_timesteps() -> None:
    rising = TIMESTEPS[::-1]
    assert len(rising) == 50
    assert rising[:6] == (0, 20, 41, 61, 82, 102)
    assert rising[-4:] == (938, 958, 979, 999)


def test_start_mixes_latent_and_noise() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    assert schedules.add_noise(one, zero, 999).item() == pytest.approx(0.06826, abs=5e-6)
    assert schedules.add_noise(zero, one, 999).item() == pytest.approx(0.99767, abs=5e-6)


def test_posterior_variances() -> None:
    pairs = zip(TIMESTEPS, schedules.previous_timesteps(TIMESTEPS), strict=True)
    variances = [schedules.posterior_variance(t, previous) for t, previous in pairs]
    logs = [round(math.log(variances[i]), 2) for i in (0, -3, -2)]
    assert logs == [-1.55, -4.61, -7.12] and variances[-1] == 0


def test_ddpm_step_is_diffusers_ddpm_step() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        variance_type="fixed_small", timestep_spacing="linspace",
    )  # fmt: skip
    scheduler.set_timesteps(50)
    assert tuple(scheduler.timesteps.tolist()) == TIMESTEPS
    noisy, eps = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep, previous in zip(TIMESTEPS, schedules.previous_timesteps(TIMESTEPS), strict=True):
        noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(timestep))
        generator = torch.Generator().manual_seed(timestep)
        theirs = scheduler.step(eps, timestep, noisy, generator=generator, return_dict=False)[0]
        ours = schedules.ddpm_step(noisy, eps, timestep, previous, noise if previous >= 0 else None)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_ddim_step_is_diffusers_ddim_step_where_its_spacing_is_exact() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(50)
    timesteps = scheduler.timesteps.tolist()
    noisy, eps = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep, previous in zip(timesteps, schedules.previous_timesteps(timesteps), strict=True):
        theirs = scheduler.step(eps, timestep, noisy, return_dict=False)[0]
        torch.testing.assert_close(schedules.ddim_step(noisy, eps, timestep, previous), theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("steps", "strength"), [(50, 1.0), (50, 0.5), (4, 1.0), (4, 0.3), (1, 1.0), (1, 0.5)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_finds_the_clean_latent_of_an_ideal_predictor(name: str, steps: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(5)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    run = make_sampler(name, steps, strength)
    x = schedules.add_noise(clean, noise, run.timesteps[0])
    for index, timestep in enumerate(run.timesteps):
        signal = schedules.abar(timestep)
        eps = (x - math.sqrt(signal) * clean) / math.sqrt(1 - signal)
        x = run.step(index, x, eps, lambda: torch.randn(1, 4, 8, 8, generator=generator))
    # LCM mixes in a little of x_t by its boundary condition, TCD ends at t = 0 (2.9 % noise), the others are exact
    tolerance = {"lcm": 0.01, "tcd": 0.15}.get(name, 2e-3)
    assert (x - clean).abs().max() < tolerance
    assert len(run.timesteps) == max(1, round(steps * strength))


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_moves_the_start_and_timesteps_fall(name: str) -> None:
    full, half = make_sampler(name, 20).timesteps, make_sampler(name, 20, 0.5).timesteps
    assert full[0] == 999 and 489 <= half[0] <= 500
    assert len(half) == 10
    assert all(a > b for a, b in zip(full, full[1:], strict=False))


@pytest.mark.parametrize("name", ["ddpm", "lcm", "tcd"])
def test_stochastic_samplers_use_only_the_callers_noise(name: str) -> None:
    x, eps = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    results = [make_sampler(name, 4).step(0, x, eps, lambda k=k: torch.full_like(x, float(k))) for k in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_renoising_is_the_schedulers_own(name: str) -> None:
    x, eps = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(9))
    run, twin = make_sampler(name, 4), make_sampler(name, 4)
    options = {"eta": 0.3} if name == "tcd" else {}
    scheduler = twin.scheduler  # pyright: ignore[reportAttributeAccessIssue]
    theirs = scheduler.step(
        eps, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(9), **options
    ).prev_sample
    torch.testing.assert_close(run.step(0, x, eps, lambda: noise), theirs, atol=1e-5, rtol=1e-5)


def test_weak_many_step_runs_do_not_repeat_timesteps() -> None:
    assert schedules.linspace_timesteps(1000, 0.004) == (4, 3, 1, 0)
    assert schedules.linspace_timesteps(1000, 0.0005) == (0,)


@pytest.mark.parametrize(
    ("name", "steps", "strength"),
    [("ddpm", 0, 1.0), ("ddpm", 1001, 1.0), ("ddpm", 50, 0.0), ("ddpm", 50, 1.1), ("euler", 50, 1.0), ("lcm", 51, 1.0)],
)
def test_out_of_range_is_refused(name: str, steps: int, strength: float) -> None:
    with pytest.raises(SettingsError):
        make_sampler(name, steps, strength)
