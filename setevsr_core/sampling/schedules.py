"""Noise levels of SD 2.1, the timesteps of a run, and the two single-step updates that need no scheduler class.

All coefficients are Python floats (64 bit); tensors stay fp32. `abar(t)` is the cumulated signal share,
x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ..errors import SettingsError

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.0120


@lru_cache(maxsize=1)
def betas() -> np.ndarray:
    """SD's "scaled linear" betas (1000,), float64: the square of a line between the roots of 0.00085 and 0.0120."""
    return np.linspace(math.sqrt(BETA_START), math.sqrt(BETA_END), NUM_TRAIN_TIMESTEPS, dtype=np.float64) ** 2


@lru_cache(maxsize=1)
def _abars() -> np.ndarray:
    return np.cumprod(1.0 - betas())


def abar(timestep: int) -> float:
    """Signal share of a timestep: 0.99915 at 0, 0.0046601 at 999; 1 for any negative timestep (a clean latent)."""
    return float(_abars()[timestep]) if timestep >= 0 else 1.0


def step_count(steps: int, strength: float) -> int:
    """How many of `steps` a run at `strength` (0..1] takes: the share of the schedule below its start, at least one."""
    if not 1 <= steps <= NUM_TRAIN_TIMESTEPS:
        raise SettingsError(f"steps must be between 1 and {NUM_TRAIN_TIMESTEPS} for a diffusion run, got {steps}")
    if not 0.0 < strength <= 1.0:
        raise SettingsError(f"strength must be above 0 and at most 1, got {strength}")
    return max(1, round(steps * strength))


def start_timestep(strength: float) -> int:
    """The timestep a run at `strength` starts from: 999 at 1."""
    return round((NUM_TRAIN_TIMESTEPS - 1) * strength)


def linspace_timesteps(steps: int, strength: float = 1.0) -> tuple[int, ...]:
    """Evenly spaced timesteps, noisiest first, ending at 0 (MGLD-VSR: 999, 979, 958, ..., 41, 20, 0 for 50 steps).

    With `strength` below 1 the same spacing covers 0..999*strength with proportionally fewer steps. A single step is
    taken at the start timestep (a plain linspace would put it at 0, where there is nothing to denoise).
    """
    count, start = step_count(steps, strength), start_timestep(strength)
    if count == 1:
        return (start,)
    count = min(count, start + 1)  # a weak run of many steps has no more timesteps than this
    return tuple(int(t) for t in np.linspace(0, start, count).round()[::-1])


def previous_timesteps(timesteps: Sequence[int]) -> tuple[int, ...]:
    """The timestep each step leads to: the next one of the run, -1 (clean) after the last."""
    return (*timesteps[1:], -1)


def posterior_variance(timestep: int, previous: int) -> float:
    """Variance of q(x_prev | x_t, x_0) between two timesteps of a respaced run ("fixed small"); 0 when prev is -1."""
    here, there = abar(timestep), abar(previous)
    return (1.0 - there) / (1.0 - here) * (1.0 - here / there)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
    """x_t of a clean latent: at t = 999, 0.06826 clean + 0.99767 noise."""
    signal = abar(timestep)
    return math.sqrt(signal) * clean + math.sqrt(1.0 - signal) * noise


def predict_clean(noisy: torch.Tensor, eps: torch.Tensor, timestep: int) -> torch.Tensor:
    """x_0 that a noise prediction implies, unclipped."""
    signal = abar(timestep)
    return (noisy - math.sqrt(1.0 - signal) * eps) / math.sqrt(signal)


def ddpm_step(
    noisy: torch.Tensor, eps: torch.Tensor, timestep: int, previous: int, noise: torch.Tensor | None
) -> torch.Tensor:
    """One ancestral step: posterior mean plus `noise` times the posterior's deviation (none when `noise` is None)."""
    here, there = abar(timestep), abar(previous)
    alpha = here / there
    clean_weight = math.sqrt(there) * (1.0 - alpha) / (1.0 - here)
    noisy_weight = math.sqrt(alpha) * (1.0 - there) / (1.0 - here)
    mean = clean_weight * predict_clean(noisy, eps, timestep) + noisy_weight * noisy
    if noise is None:
        return mean
    return mean + math.sqrt(posterior_variance(timestep, previous)) * noise


def ddim_step(noisy: torch.Tensor, eps: torch.Tensor, timestep: int, previous: int) -> torch.Tensor:
    """One deterministic DDIM step (eta 0) between any two timesteps."""
    return add_noise(predict_clean(noisy, eps, timestep), eps, previous)
