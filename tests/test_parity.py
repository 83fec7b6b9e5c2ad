"""The networks reproduce what the MGLD-VSR modules compute: recorded numbers at reduced width, seeded weights."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from setevsr_core import checkpoints

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-4  # of the largest absolute recorded value; fp32 sums in another order reach about 2e-6
SEED = 7


def draw(key: str, shape: list[int]) -> Tensor:
    """The weight of one tensor name, as it was drawn for the recording."""
    generator = torch.Generator().manual_seed(SEED * 2**32 + zlib.crc32(key.encode()))
    if key.endswith("temporal_alpha"):
        return 0.2 + 0.6 * torch.rand(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * values if key.endswith(".weight") else 0.05 * values
    return values * math.prod(shape[1:]) ** -0.5


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(DATA / "mgld_small.safetensors")


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Tensor]]:
    shapes = json.loads((DATA / "mgld_small.shapes.json").read_text("utf-8"))
    return {part: {key: draw(key, shape) for key, shape in shapes[part].items()} for part in ("unet", "vae")}


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_denoiser_reproduces_the_recording(recorded: dict[str, Tensor], weights: dict[str, dict[str, Tensor]]) -> None:
    denoiser = checkpoints.load_denoiser(weights["unet"], head_dim=16, lr_heads=4)
    timesteps = recorded["unet.in.timesteps"]
    maps = denoiser.encode_lr(recorded["unet.in.lr_latents"], timesteps)
    assert len(maps) == 4
    for level, lr_map in enumerate(maps):
        assert deviation(lr_map, recorded[f"lr_encoder.out.level{level}"]) < TOLERANCE
    noise = denoiser(recorded["unet.in.latents"], timesteps, num_frames=3, lr_maps=maps,
                     text=recorded["unet.in.context"])
    assert deviation(noise, recorded["unet.out.eps"]) < TOLERANCE


@torch.no_grad()
def test_temporal_vae_reproduces_the_recording(recorded: dict[str, Tensor],
                                               weights: dict[str, dict[str, Tensor]]) -> None:
    vae = checkpoints.load_temporal_vae(weights["vae"])
    mean, logvar, features = vae.encode(recorded["vae.in.pixels"])
    assert deviation(mean, recorded["vae.out.mean"]) < TOLERANCE
    assert deviation(logvar, recorded["vae.out.logvar"]) < TOLERANCE
    for index, feature in enumerate(features):
        assert deviation(feature, recorded[f"vae.out.encoder_feature{index}"]) < TOLERANCE
    pixels = vae.decode(recorded["vae.in.latents"], features, num_frames=3)
    assert deviation(pixels, recorded["vae.out.decoded"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", [
    "mid_block.temporal_convs.0.temporal_alpha",
    "mid_block.temporal_attentions.0.temporal_alpha",
    "up_blocks.3.resnets.2.spade.mlp_beta.bias",
])
def test_the_recording_sees_every_added_part(name: str, recorded: dict[str, Tensor],
                                             weights: dict[str, dict[str, Tensor]]) -> None:
    """Without one of MGLD-VSR's parts the numbers no longer agree, so the comparison above does test it."""
    denoiser = checkpoints.load_denoiser(weights["unet"], head_dim=16, lr_heads=4)
    dict(denoiser.unet.named_parameters())[name].zero_()
    timesteps = recorded["unet.in.timesteps"]
    noise = denoiser(recorded["unet.in.latents"], timesteps, num_frames=3, text=recorded["unet.in.context"],
                     lr_maps=denoiser.encode_lr(recorded["unet.in.lr_latents"], timesteps))
    assert deviation(noise, recorded["unet.out.eps"]) > TOLERANCE
