"""The VAE over tiles: what fits is whole, what does not is blended from tiles, and a full memory makes them smaller."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from setevsr_core import Restorer, stages, vae_tiles
from setevsr_core.errors import SettingsError
from setevsr_core.memory import is_out_of_memory
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig
from setevsr_core.vae_tiles import SMALLEST, WHOLE, FittingTiles, bytes_per_latent, fitting_tile

from .tiny_networks import randomise, tiny_vae

CPU = torch.device("cpu")
TILE = 24  # smaller than any run would choose, for quick tests
SIZE = (512, 512)  # of enlarged frames: 64 latents a side


def smooth(frames: int, side: int = 64) -> Tensor:
    coarse = torch.rand(frames, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1).movedim(1, -1)


def full_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture(scope="module")
def sd_vae() -> TemporalVAE:
    """An autoencoder with all that SD's has: norms, attention in the middle, temporal layers, fusion."""
    vae = TemporalVAE(VAEConfig(channels=(32, 32, 32, 64), layers=1, growth=8)).eval().requires_grad_(False)
    randomise(vae, 3)
    return vae


@torch.no_grad()
def test_tiles_give_nearly_the_whole_frame_without_seams(sd_vae: TemporalVAE) -> None:
    frames = smooth(2)
    whole = stages.encode_latents(sd_vae, frames, 4)
    tiled = stages.encode_latents(sd_vae, frames, 4, tile=TILE)
    assert not torch.equal(tiled.latents, whole.latents)
    # The groups of these norms are single channels, whose means differ between tiles far more than SD's.
    assert (tiled.latents - whole.latents).abs().mean() < 0.2 * whole.latents.std()
    pictures = stages.decode_span(sd_vae, whole.latents, frames, 4, colour="none")
    parts = stages.decode_span(sd_vae, whole.latents, frames, 4, colour="none", tile=TILE)
    difference = parts - pictures
    assert 0 < difference.abs().mean() < 0.1 * pictures.std()
    # What differs are slow shifts of tone; an edge where two tiles meet would stand out among the neighbours' steps.
    for axis in (1, 2):
        steps = difference.diff(dim=axis).abs().mean(dim=(0, 3 - axis, 3))
        assert steps.max() < 4 * steps.mean() and steps.mean() < 0.4 * pictures.diff(dim=axis).abs().mean()


@pytest.mark.parametrize("fusion", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("residual", [True, False])
def test_features_that_were_kept_and_those_of_one_tile_give_the_same_bits(residual: bool, fusion: float) -> None:
    vae = TemporalVAE(VAEConfig(channels=(32, 32), layers=1, patch=4, mid_attention=False, fusion_levels=(0, 1),
                                residual=residual))  # fmt: skip
    randomise(vae, 2)
    frames = smooth(3, 16)
    encoded = stages.encode_latents(vae, frames, 4, keep_features=True)
    kept = stages.decode_span(vae, encoded.latents, frames, 4, fusion=fusion, features=encoded.features)
    assert torch.equal(stages.decode_span(vae, encoded.latents, frames, 4, fusion=fusion), kept)


def test_a_residual_vae_keeps_its_pixels_without_fusion() -> None:
    """Its decoder only corrects the pixels that ride along with the features."""
    vae = TemporalVAE(VAEConfig(channels=(32, 32), layers=1, patch=4, mid_attention=False, fusion_levels=(0, 1),
                                residual=True))  # fmt: skip
    randomise(vae, 2)
    for parameter in vae.decoder.conv_out.parameters():
        parameter.data.zero_()  # no corrections at all
    frames = smooth(2, 16)
    latents = stages.encode_latents(vae, frames, 4).latents
    result = stages.decode_span(vae, latents, frames, 4, fusion=0.0, colour="none")
    enlarged = stages.upscale_bicubic(frames.movedim(-1, 1), 4).movedim(1, -1)
    torch.testing.assert_close(result, enlarged, atol=1e-5, rtol=0)
    restored = Restorer(None, vae).restore(frames, scale=4, steps=0, fusion=0.0, colour="none", length=2, overlap=0)
    assert torch.equal(restored, result)


def test_a_tile_is_as_large_as_the_memory_allows() -> None:
    config, grid, length = VAEConfig.sd21(), (136, 240), 5
    each = bytes_per_latent(config, torch.bfloat16, length)
    assert 5 * 2 * 128 * 64 < each < 5 * 2 * 128 * 64 * 16  # a few activations of 128 channels at full resolution
    fits = each * grid[0] * grid[1] / vae_tiles.HEADROOM
    assert fitting_tile(config, torch.bfloat16, grid, length, 1.01 * fits) == WHOLE
    tile = fitting_tile(config, torch.bfloat16, grid, length, fits / 4)
    assert tile % 8 == 0 and each * tile**2 <= vae_tiles.HEADROOM * fits / 4 < each * (tile + 8) ** 2
    assert fitting_tile(config, torch.bfloat16, grid, length, 0) == SMALLEST
    assert bytes_per_latent(config, torch.float32, length) > 1.5 * each


@pytest.mark.parametrize(("grid", "tile", "expected", "count"), [
    ((64, 64), 48, 40, 4), ((136, 240), 88, 80, 8), ((64, 64), 64, 64, 1), ((32, 256), 64, 64, 5), ((64, 64), 0, 64, 1),
])  # fmt: skip
def test_no_tile_is_larger_than_it_takes(grid: tuple[int, int], tile: int, expected: int, count: int) -> None:
    plan = vae_tiles._plan(grid, tile)
    assert len(plan) == count
    assert {(place.height, place.width) for place in plan} == {(min(expected, grid[0]), min(expected, grid[1]))}


def test_a_full_memory_makes_tiles_smaller_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def work(tile: int) -> str:
        tried.append(tile)
        return "done" if 0 < tile <= SMALLEST else full_memory()

    tiles = FittingTiles(tiny_vae(), SIZE, 2, CPU, lambda _: 2**60)
    with caplog.at_level(logging.WARNING):
        assert tiles.run(work) == "done"
    assert tried == [WHOLE, 32] and "tiles of 32 latents" in caplog.text
    assert tiles.run(work) == "done" and tried[2:] == [32]
    tiles.report()
    assert "ended in tiles of 32 latents; lower 'length' (frames that are decoded together) or" in caplog.text


def test_too_little_memory_for_any_tile_names_the_remedy_and_other_errors_pass() -> None:
    with pytest.raises(SettingsError, match="lower 'length'.*or 'scale'"):
        FittingTiles(tiny_vae(), SIZE, 2, CPU, lambda _: 0).run(full_memory)

    def broken(_: int) -> None:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        FittingTiles(tiny_vae(), SIZE, 2, CPU).run(broken)


def test_a_restoration_in_little_memory_tiles_the_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_tiles, "SMALLEST", TILE)
    frames, vae = smooth(2), tiny_vae()
    seen: list[tuple[int, ...]] = []
    decode = vae.decode

    def watched(latents: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen.append(tuple(latents.shape[-2:]))
        return decode(latents, *arguments, **options)

    monkeypatch.setattr(vae, "decode", watched)
    whole = Restorer(None, vae).restore(frames, scale=4, steps=0)
    assert seen == [(32, 32)]
    tiled = Restorer(None, vae, free_memory=lambda _: 0).restore(frames, scale=4, steps=0)
    assert seen[1:] == [(24, 24)] * 4
    assert 0 < (tiled - whole).abs().mean() < 0.05


def test_a_cancel_stops_between_tiles() -> None:
    frames, calls = smooth(1), []

    def check() -> None:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt

    vae = tiny_vae()
    with pytest.raises(KeyboardInterrupt):
        stages.encode_latents(vae, frames, 4, tile=TILE, check_cancel=check)
    assert len(calls) == 4


def test_a_convolution_that_finds_no_workspace_says_that_the_memory_is_full() -> None:
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
