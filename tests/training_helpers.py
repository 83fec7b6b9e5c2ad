"""A tiny pack and tiny networks, shared by the tests of training and of the benchmarks that train."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from setevsr_core import checkpoints
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.initialise import zero_new_modules
from setevsr_core.networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig

TINY_DENOISER = DenoiserConfig.nano(channels=(32, 32), lr_channels=(32, 32), map_channels=32, spade_hidden=16,
                                    context_dim=8, layers=1, semantic_levels=(0, 1))
TINY_VAE = VAEConfig.nano(channels=(32, 32), layers=1, growth=4, trunk=2, trunk_channels=8)


def write_pack(folder: Path) -> Path:
    """A packed folder of four segments of moving noise, 64 px, 3 frames."""
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (4, 1, 72, 72, 3), dtype=np.uint8)
    hr = np.concatenate([canvas[:, :, i : i + 64, i : i + 64] for i in range(3)], axis=1)
    shard = folder / "shard_00000"
    shard.mkdir()
    np.save(shard / "hr.npy", hr)
    np.save(shard / "lr.npy", hr.reshape(4, 3, 16, 4, 16, 4, 3).mean((3, 5)).astype(np.uint8))
    settings = {"frames": 3, "size": 64, "scale": 4, "steady": 2, "sharpen_weight": 0.0}
    (folder / "meta.json").write_text(json.dumps({"settings": settings, "sources": []}))
    return folder


def write_networks(folder: Path) -> Path:
    """Tiny networks as native files: vae, denoiser and semantic_encoder."""
    torch.manual_seed(0)
    checkpoints.save_native(TemporalVAE(TINY_VAE), folder / "vae.safetensors")
    denoiser = Denoiser(TINY_DENOISER, empty_text=torch.randn(1, 2, 8))
    zero_new_modules(denoiser)
    checkpoints.save_native(denoiser, folder / "denoiser.safetensors")
    checkpoints.save_native(SemanticEncoder(SemanticEncoderConfig.nano()), folder / "semantic_encoder.safetensors")
    return folder


def write_vgg(folder: Path) -> Path:
    """VGG16's convolutions with random weights: they are there to compute with, not to judge."""
    models = pytest.importorskip("torchvision.models.vgg")
    layers = models.make_layers(models.cfgs["D"], batch_norm=False)
    path = folder / "vgg16.safetensors"
    save_file(layers.state_dict(), path)
    return path


def compact_upscaler(width: int, inner: int, scale: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of such a network, in spandrel's names."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(3, width), *[(width, width)] * inner, (width, 3 * scale**2)]
    weights = {}
    for i, (given, made) in enumerate(sizes):
        weights[f"body.{2 * i}.weight"] = torch.randn(made, given, 3, 3, generator=generator) / (9 * given) ** 0.5
        weights[f"body.{2 * i}.bias"] = torch.randn(made, generator=generator) * 0.1
        if i < len(sizes) - 1:
            weights[f"body.{2 * i + 1}.weight"] = torch.full((width,), 0.2)
    return weights
