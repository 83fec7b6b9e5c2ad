"""Pooled keys and values: the same weights, another amount of work, and exactly the mean of the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from setevsr_core import checkpoints, cli
from setevsr_core.checkpoints import native
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.temporal_spatial import TemporalSpatialAwareness, pool_tokens
from setevsr_core.workload import count

SMALL: dict[str, Any] = {
    "channels": (32, 32, 64, 64), "layers": 1, "head_dim": 16, "context_dim": 24, "map_channels": 32,
    "spade_hidden": 32, "lr_channels": (32, 32, 32, 64), "lr_layers": 1, "lr_heads": 2,
}  # fmt: skip


def filled(config: DenoiserConfig) -> Denoiser:
    torch.manual_seed(1)
    denoiser = Denoiser(config)
    for value in denoiser.parameters():
        torch.nn.init.normal_(value, 1.0 if value.ndim == 1 else 0.0, 0.05)
    return denoiser.eval()


def step(denoiser: Denoiser, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 4, side, side, generator=generator)
    text, semantics = torch.randn(1, 3, 24, generator=generator), torch.randn(2, 256, 7, 5, generator=generator)
    times = torch.tensor([10, 10])
    return denoiser(latents, times, num_frames=2, lr_maps=denoiser.encode_lr(latents, times), text=text,
                    semantics=semantics)  # fmt: skip


def test_pooled_tokens_are_means_of_their_pixels() -> None:
    tokens = torch.arange(15.0).reshape(1, 15, 1)  # a grid of 3 x 5: the last row and column stand alone
    pooled = pool_tokens(tokens, (3, 5), 2)
    assert pooled.flatten().tolist() == [3.0, 5.0, 6.5, 10.5, 12.5, 14.0]


@torch.no_grad()
def test_pooling_changes_no_weight_and_vanishes_on_constant_pictures() -> None:
    """Where all tokens are the same their mean is too: pooled and full attention agree, elsewhere they do not."""
    torch.manual_seed(0)
    full, pooled = TemporalSpatialAwareness(64), TemporalSpatialAwareness(64, 2)
    pooled.load_state_dict(full.state_dict())
    constant = torch.randn(2, 64, 1, 1).expand(-1, -1, 6, 5)
    torch.testing.assert_close(pooled(constant, 2), full(constant, 2))
    varied = torch.randn(2, 64, 6, 5)
    assert (pooled(varied, 2) - full(varied, 2)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["semantic_pooling", "temporal_spatial_pooling"])
@torch.no_grad()
def test_each_pooling_acts_on_the_same_weights(name: str) -> None:
    full, pooled = filled(DenoiserConfig(**SMALL)), Denoiser(DenoiserConfig(**{**SMALL, name: 2}))
    pooled.load_state_dict(full.state_dict())
    difference = (step(pooled) - step(full)).abs().max()
    assert 1e-6 < difference < step(full).abs().max()


@torch.no_grad()
def test_the_lighter_setting_loads_any_file_and_is_kept_in_native_files() -> None:
    full = filled(DenoiserConfig(**SMALL))
    light = checkpoints.load_denoiser(full.state_dict(), head_dim=16, lr_heads=2, light=True)
    assert light.config == DenoiserConfig(**SMALL).lighter() != full.config
    assert light.config.lighter() == light.config
    assert DenoiserConfig.from_dict(light.config.to_dict()) == light.config
    assert step(light).isfinite().all()


def test_convert_stores_the_lighter_setting(tmp_path: Path) -> None:
    source, target = tmp_path / "full.safetensors", tmp_path / "light.safetensors"
    native.save_native(filled(DenoiserConfig(**SMALL)), source)
    assert cli.main(["convert", str(source), str(target), "--light"]) == 0
    light = checkpoints.load_denoiser(target)
    assert light.config == DenoiserConfig(**SMALL).lighter()
    kept = light.state_dict()
    assert kept and all(torch.equal(kept[key], value) for key, value in checkpoints.load_denoiser(source).state_dict()
                        .items() if key in kept)  # fmt: skip


def test_a_network_without_the_modules_gains_none() -> None:
    plain = DenoiserConfig.sd21(semantic_levels=(), temporal_sites="none", temporal_spatial_sites="none")
    assert plain.lighter().temporal_spatial_sites == "none" and plain.lighter().semantic_levels == ()


@torch.no_grad()
def test_the_lighter_setting_of_full_size_is_lighter() -> None:
    """Counted at 64 x 64 latents; the figures stand in docs/performance.md."""

    def flops(config: DenoiserConfig) -> float:
        denoiser = Denoiser(config, device="meta", dtype=torch.bfloat16)
        latents, times = torch.empty(1, 4, 64, 64, device="meta", dtype=torch.bfloat16), torch.zeros(1, device="meta")
        text = denoiser.project_text(torch.empty(1, 77, 1024, device="meta", dtype=torch.bfloat16))
        semantics = denoiser.project_semantics(torch.empty(1, 256, 64, 64, device="meta", dtype=torch.bfloat16))
        maps = denoiser.encode_lr(latents, times)
        return count(lambda: denoiser(latents, times, num_frames=1, lr_maps=maps, text=text, semantics=semantics)).flops

    full = DenoiserConfig.sd21()
    assert flops(full.lighter()) < 0.86 * flops(full)
