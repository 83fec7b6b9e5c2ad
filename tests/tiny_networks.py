"""Tiny networks with random weights, quick enough for unit tests and complete enough that every part takes part."""

from __future__ import annotations

import torch

from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig


class TinyEncoder(torch.nn.Module):
    """Stands in for SAM 2: 256 channels on a 4 x 4 grid, made of the frame itself."""

    dtype = torch.float32

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        grid = torch.nn.functional.adaptive_avg_pool2d(frames.movedim(-1, 1), 4)
        return grid.repeat(1, 86, 1, 1)[:, :256]


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Every weight random, zero-initialised ones too, so that no part is silently switched off."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data.copy_(noise * scale + (parameter.ndim == 1))


def tiny_denoiser() -> Denoiser:
    config = DenoiserConfig(
        channels=(32, 32, 64, 64),  # 64: GroupNorm needs more than one value per group on a 1 x 1 grid
        layers=1, head_dim=16, context_dim=8, map_channels=64, lr_channels=(32, 32, 64, 64), lr_layers=1, lr_heads=2,
    )  # fmt: skip
    denoiser = Denoiser(config, empty_text=torch.zeros(1, 3, 8))
    randomise(denoiser, 1)
    return denoiser


def tiny_vae() -> TemporalVAE:
    vae = TemporalVAE(VAEConfig(channels=(32, 32), layers=1, patch=4, mid_attention=False, fusion_levels=(0, 1)))
    randomise(vae, 2)
    return vae
