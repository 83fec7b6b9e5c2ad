"""The samplers by name, all behind one small interface; every random number comes from the caller.

`ddpm` (the default: 50 ancestral steps) and `ddim` are the closed formulas of `schedules`. diffusers' own DDIM class
is not used because it steps to t - 1000 // steps, which is not the run's next timestep unless steps divides 1000.
`dpmpp_2m`, `unipc`, `lcm` and `tcd` are diffusers' schedulers. The last two draw noise inside `step`; only their
noise-free prediction is taken and the re-noising is done here with the caller's noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..errors import SettingsError, require
from . import schedules

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "unipc", "lcm", "tcd")
CONSISTENCY_STEPS = 50  # lcm and tcd pick their timesteps among the 50 that consistency distillation trains
TCD_GAMMA = 0.3  # stochasticity of TCD; 0.3 is its authors' default

NoiseSource = Callable[[], torch.Tensor]


class Sampler(Protocol):
    """One run over one segment. Multistep samplers remember earlier steps, so make a new one for every segment."""

    timesteps: tuple[int, ...]

    def step(self, index: int, noisy: torch.Tensor, eps: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        """Latents (T,C,h,w) fp32 after step `index`; `noise` is called only by a step that needs noise."""
        ...


class AncestralSampler:
    """Respaced DDPM with the fixed small variance, no clipping, no noise on the last step."""

    def __init__(self, steps: int, strength: float) -> None:
        self.timesteps = schedules.linspace_timesteps(steps, strength)

    def step(self, index: int, noisy: torch.Tensor, eps: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        previous = schedules.previous_timesteps(self.timesteps)[index]
        drawn = noise() if previous >= 0 else None
        return schedules.ddpm_step(noisy, eps, self.timesteps[index], previous, drawn)


class DDIMSampler:
    """Deterministic DDIM on the same timesteps."""

    def __init__(self, steps: int, strength: float) -> None:
        self.timesteps = schedules.linspace_timesteps(steps, strength)

    def step(self, index: int, noisy: torch.Tensor, eps: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        previous = schedules.previous_timesteps(self.timesteps)[index]
        return schedules.ddim_step(noisy, eps, self.timesteps[index], previous)


class MultistepSampler:
    """DPM-Solver++(2M) or UniPC of diffusers.

    `strength` cuts the training schedule itself (betas up to the start timestep), so that the scheduler spaces its
    own steps from there; UniPC offers no other way to choose where to start.
    """

    def __init__(self, class_name: str, steps: int, strength: float) -> None:
        count, start = schedules.step_count(steps, strength), schedules.start_timestep(strength)
        count = min(count, max(start, 1))
        diffusers = require("diffusers", purpose=f"the sampler {class_name}")
        self.scheduler = getattr(diffusers, class_name)(
            num_train_timesteps=start + 1,
            trained_betas=schedules.betas()[: start + 1].tolist(),
            prediction_type="epsilon",
            solver_order=2,
            timestep_spacing="linspace",
            final_sigmas_type="zero",
        )
        self.scheduler.set_timesteps(count)
        self.scheduler.set_begin_index(0)
        self.timesteps = tuple(int(t) for t in self.scheduler.timesteps)

    def step(self, index: int, noisy: torch.Tensor, eps: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        timestep = self.scheduler.timesteps[index]
        return self.scheduler.step(eps, timestep, noisy, return_dict=False)[0]


class ConsistencySampler:
    """LCM or TCD of diffusers, for denoisers distilled to a few steps (on others they give soft pictures)."""

    def __init__(self, class_name: str, steps: int, strength: float) -> None:
        if steps > CONSISTENCY_STEPS:
            raise SettingsError(f"samplers lcm and tcd take at most {CONSISTENCY_STEPS} steps, got {steps}")
        strength_here = max(strength, 1.0 / CONSISTENCY_STEPS)
        count = min(schedules.step_count(steps, strength), int(CONSISTENCY_STEPS * strength_here))
        diffusers = require("diffusers", purpose=f"the sampler {class_name}")
        self.scheduler = getattr(diffusers, class_name)(
            num_train_timesteps=schedules.NUM_TRAIN_TIMESTEPS,
            trained_betas=schedules.betas().tolist(),
            prediction_type="epsilon",
            original_inference_steps=CONSISTENCY_STEPS,
            clip_sample=False,
        )
        self.scheduler.set_timesteps(count, strength=strength_here)
        self.scheduler.set_begin_index(0)
        self.timesteps = tuple(int(t) for t in self.scheduler.timesteps)
        self.is_tcd = class_name.startswith("TCD")
        self._unused = torch.Generator()  # what the scheduler draws is thrown away; keep it off torch's global state

    def step(self, index: int, noisy: torch.Tensor, eps: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        options: dict[str, Any] = {"eta": TCD_GAMMA} if self.is_tcd else {}
        timestep = self.scheduler.timesteps[index]
        result = self.scheduler.step(eps, timestep, noisy, generator=self._unused, **options)
        if index == len(self.timesteps) - 1:
            return result.prev_sample  # the last step draws no noise
        previous = self.timesteps[index + 1]
        if not self.is_tcd:
            return schedules.add_noise(result.denoised, noise(), previous)
        # TCD lands at s = (1 - gamma) * previous and diffuses back up to `previous`
        share = schedules.abar(previous) / schedules.abar(math.floor((1.0 - TCD_GAMMA) * previous))
        return math.sqrt(share) * result.pred_noised_sample + math.sqrt(1.0 - share) * noise()


def make_sampler(name: str, steps: int, strength: float = 1.0) -> Sampler:
    """A fresh sampler. `SettingsError` names an unknown sampler or a value out of range."""
    schedules.step_count(steps, strength)  # validates both
    if name == "ddpm":
        return AncestralSampler(steps, strength)
    if name == "ddim":
        return DDIMSampler(steps, strength)
    if name == "dpmpp_2m":
        return MultistepSampler("DPMSolverMultistepScheduler", steps, strength)
    if name == "unipc":
        return MultistepSampler("UniPCMultistepScheduler", steps, strength)
    if name == "lcm":
        return ConsistencySampler("LCMScheduler", steps, strength)
    if name == "tcd":
        return ConsistencySampler("TCDScheduler", steps, strength)
    raise SettingsError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
