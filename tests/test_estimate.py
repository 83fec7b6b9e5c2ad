"""The estimate before a run: operations as known for SD 2.1, memory that follows sizes, time that follows speed."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from setevsr_core import cli, vae_tiles
from setevsr_core import estimate as estimates
from setevsr_core.errors import SettingsError
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig
from setevsr_core.settings import RestoreSettings
from setevsr_core.workload import count

HALF = torch.bfloat16
CONFIG = DenoiserConfig(channels=(32, 32, 64, 64), layers=1, head_dim=16, context_dim=24, map_channels=32,
                        spade_hidden=32, lr_channels=(32, 32, 32, 64), lr_layers=1, lr_heads=2)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module | None]:
    return {
        "denoiser": Denoiser(CONFIG, device="meta", dtype=HALF), "encoder": None,
        "vae": TemporalVAE(VAEConfig.nano(channels=(32, 32), trunk=1), device="meta", dtype=HALF),
    }  # fmt: skip


@pytest.mark.parametrize("inference", [False, True])
def test_operations_and_bytes_of_known_calls(inference: bool) -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1, device="meta")
    picture = torch.empty(2, 3, 10, 20, device="meta")
    with torch.inference_mode(inference):
        work = count(lambda: layer(picture))
        assert work.flops == 2 * 2 * 200 * 8 * 27 and work.peak_bytes == 2 * 8 * 200 * 4
        query, key = torch.empty(2, 4, 50, 16, device="meta"), torch.empty(2, 4, 70, 16, device="meta")
        work = count(lambda: nn.functional.scaled_dot_product_attention(query, key, key))
        assert work.flops == 2 * 2 * (2 * 4 * 50 * 70 * 16) and work.peak_bytes == query.nbytes
        chain = count(lambda: ((picture + 1) * 2 - 3).sum())
        assert 2 * picture.nbytes <= chain.peak_bytes <= 2 * picture.nbytes + 8  # what is let go is given back


def test_counting_leaves_other_threads_alone() -> None:
    """A run counts before its first frame, while something else may compute in the same process."""
    query = torch.ones(1, 1, 2, 4)
    seen: list[torch.Tensor] = []

    def attend() -> None:
        seen.append(nn.functional.scaled_dot_product_attention(query, query, query))

    def call() -> None:
        thread = threading.Thread(target=attend)
        thread.start()
        thread.join()

    count(call)
    assert torch.equal(seen[0], query)


def test_full_size_vae_is_what_the_literature_says() -> None:
    """SD's VAE at 512 x 512: 1.1 TFLOP to encode a frame; MGLD-VSR's decoder: 4.1 a frame."""
    vae = TemporalVAE(VAEConfig.sd21(), device="meta", dtype=HALF)
    assert estimates.encode_work(vae, (512, 512)).flops / 1e12 == pytest.approx(1.117, abs=0.01)
    assert estimates.decode_work(vae, (512, 512), 5)[0].flops / 5e12 == pytest.approx(4.139, abs=0.01)


def test_estimate_follows_the_settings(networks: dict[str, nn.Module | None]) -> None:
    base = RestoreSettings(scale=4.0, steps=8, sampler="ddim", tile=16, tile_overlap=8)

    def of(frames: int = 11, height: int = 32, width: int = 64, **changes: object) -> estimates.Estimate:
        settings = RestoreSettings(**{**base.__dict__, **changes})  # type: ignore[arg-type]
        return estimates.estimate(networks, height, width, frames, settings, rate=1e9)

    one = of()
    assert (one.segments, one.size) == (3, (128, 256))
    assert set(one.stages) == {"encode", "denoise", "decode"}
    assert one.seconds is not None and one.seconds == pytest.approx(sum(s.seconds or 0 for s in one.stages.values()))
    assert one.least_bytes < one.device_bytes and one.result_bytes == 11 * 128 * 256 * 12
    assert of(steps=16).stages["denoise"].flops == 2 * one.stages["denoise"].flops
    assert of(strength=0.5).stages["denoise"].flops == one.stages["denoise"].flops / 2
    assert set(of(steps=0).stages) == {"encode", "decode"}
    assert of(length=10, overlap=2).stages["decode"].peak_bytes > 1.5 * one.stages["decode"].peak_bytes
    assert of(tile=0, tile_overlap=0).stages["denoise"].peak_bytes > one.stages["denoise"].peak_bytes
    assert of(width=128).stages["decode"].flops == pytest.approx(2 * one.stages["decode"].flops, rel=0.01)
    assert of(frames=3).segments == 1


def test_the_least_memory_has_the_vae_in_tiles() -> None:
    networks = {"denoiser": None, "vae": TemporalVAE(VAEConfig.sd21(), device="meta", dtype=HALF), "encoder": None}
    small, large = (estimates.estimate(networks, *size, 5, RestoreSettings(scale=4.0, steps=0))
                    for size in ((64, 64), (270, 480)))  # fmt: skip
    assert small.least_bytes == small.device_bytes  # no larger than a tile
    assert large.device_bytes > 20 * 1.9e9 / 2 > 4 * large.least_bytes > 4 * small.least_bytes


def test_the_law_of_memory_is_applied_once(
    networks: dict[str, nn.Module | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoding(factor: float) -> tuple[float, float]:
        law = {**estimates.law(), "memory_factor": factor}
        monkeypatch.setattr(estimates, "law", lambda: law)
        monkeypatch.setattr(vae_tiles, "law", lambda: law)
        vae_tiles.bytes_per_latent.cache_clear()
        found = estimates.estimate(networks, 256, 256, 5, RestoreSettings(scale=4.0, steps=0)).stages["decode"]
        return found.peak_bytes, found.tiled_bytes

    pixels = 2 * 4 * 3 * 5 * 1024**2
    try:
        (peak, tiled), (double_peak, double_tiled) = decoding(1.0), decoding(2.0)
        assert double_peak == 2 * peak and double_tiled - pixels == pytest.approx(2 * (tiled - pixels))
        assert tiled < peak and double_tiled < double_peak
    finally:
        vae_tiles.bytes_per_latent.cache_clear()


def test_features_that_are_not_kept_are_encoded_twice(
    networks: dict[str, nn.Module | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RestoreSettings(scale=4.0, steps=0)
    kept = estimates.estimate(networks, 16, 16, 11, settings).stages
    monkeypatch.setattr(estimates, "FEATURE_BUDGET", 0)
    again = estimates.estimate(networks, 16, 16, 11, settings).stages
    assert again["encode"].flops == pytest.approx(kept["encode"].flops * (11 + 3 * 5) / 11)
    assert again["decode"] == kept["decode"]


def test_networks_count_in_types_of_their_own(networks: dict[str, nn.Module | None]) -> None:
    """Rates and stored weights by network, and a preset's networks in the type of each."""
    settings = RestoreSettings(scale=4.0, steps=1, sampler="ddim", tile=16, tile_overlap=8)
    one = estimates.estimate(networks, 32, 64, 5, settings, rate=1e9)
    other = estimates.estimate(networks, 32, 64, 5, settings, rate={"vae": 1e9, "denoiser": 2e9}, stored={"vae": 7.0})
    assert other.stages["denoise"].seconds == pytest.approx((one.stages["denoise"].seconds or 0) / 2)
    assert other.stages["decode"].seconds == one.stages["decode"].seconds
    assert other.stages["decode"].weight_bytes == 7 and other.weight_bytes < one.weight_bytes
    types = {"denoiser": torch.bfloat16, "vae": torch.float32, "encoder": torch.float16}
    loaded, _ = estimates.networks_on_meta("nano", types)
    for name, network in loaded.items():
        assert network is not None and network.dtype == types[name]
        assert {value.dtype for value in network.parameters()} == {types[name]}


def test_semantics_that_nobody_looks_at_are_not_counted(networks: dict[str, nn.Module | None]) -> None:
    plain = Denoiser(replace(CONFIG, semantic_levels=()), device="meta", dtype=HALF)
    found = estimates.estimate({**networks, "denoiser": plain, "encoder": nn.Identity()}, 16, 16, 5,
                               RestoreSettings(steps=2))
    assert set(found.stages) == {"encode", "denoise", "decode"}


def test_without_a_rate_the_time_stays_open(networks: dict[str, nn.Module | None]) -> None:
    found = estimates.estimate(networks, 32, 32, 1, RestoreSettings(steps=1))
    assert found.seconds is None and "min" not in estimates.describe(found)
    with pytest.raises(SettingsError, match="at least one frame and pixel, got 0 frames of 16x16"):
        estimates.estimate(networks, 16, 16, 0, RestoreSettings(steps=1))


def test_the_law_is_complete() -> None:
    law = estimates.law()
    assert set(law["efficiency"]) == set(estimates.STAGES)
    assert all(0.01 < share < 2 for share in law["efficiency"].values()) and law["memory_factor"] >= 1
    assert "measured" in law["measured"]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "--size", "32x24", "--frames", "7", "--steps", "2", "--length", "5",
                     "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], found["size"], found["segments"]) == (7, [96, 128], 2)
    assert found["seconds"] > 0 and set(found["stages"]) == {"encode", "semantics", "denoise", "decode"}
    for size in ("32", "3²x24"):
        assert cli.main(["estimate", "--size", size, "--frames", "7"]) == 2
        assert "--size must be WIDTHxHEIGHT" in capsys.readouterr().err


@torch.no_grad()
def test_an_estimate_is_the_count_of_the_whole_run(networks: dict[str, nn.Module | None]) -> None:
    """One tile and one segment are counted and multiplied; here every frame, tile, step and segment is counted."""
    denoiser, vae = networks["denoiser"], networks["vae"]
    assert isinstance(denoiser, Denoiser) and isinstance(vae, TemporalVAE)
    settings = RestoreSettings(scale=4.0, steps=2, sampler="ddim", length=3, overlap=1, tile=16, tile_overlap=8)
    frames, height, width = 5, 32, 64
    down = vae.config.downscale
    h, w = 4 * height // down, 4 * width // down
    assert h % 8 == w % 8 == 0

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=HALF)

    text = denoiser.project_text(tensor(1, 77, CONFIG.context_dim))

    def denoise() -> None:
        for _ in range(2 * 2 * len(estimates.plan_tiles(h, w, 16, 8))):
            times = torch.zeros(3, device="meta", dtype=torch.long)
            maps = denoiser.encode_lr(tensor(3, CONFIG.latent_channels, 16, 16), times)
            denoiser(tensor(3, CONFIG.latent_channels, 16, 16), times, num_frames=3, lr_maps=maps, text=text)

    def encode() -> None:
        for _ in range(frames):
            vae.encode(tensor(1, 3, 4 * height, 4 * width))

    features = vae.encode(tensor(3, 3, 4 * height, 4 * width))[2]

    def decode() -> None:
        for _ in range(2):
            vae.decode(tensor(3, vae.config.latent_channels, h, w), features, num_frames=3, fusion=1.0)

    found = estimates.estimate(networks, height, width, frames, settings).stages
    for name, call in (("encode", encode), ("denoise", denoise), ("decode", decode)):
        assert count(call).flops == found[name].flops, name


@torch.no_grad()
def test_a_step_has_the_tokens_of_its_own_text_and_encoder() -> None:
    """nano's text has 4 tokens and its semantics 16 x 16; SD 2.1 and SAM 2 have 77 and 64 x 64."""
    networks, _ = estimates.networks_on_meta("nano", HALF)
    denoiser, encoder = networks["denoiser"], networks["encoder"]
    assert isinstance(denoiser, Denoiser) and encoder is not None and denoiser.empty_text is not None
    frames = torch.empty(5, 32, 48, 3, device="meta")
    latents = torch.empty(5, denoiser.config.latent_channels, 32, 48, device="meta", dtype=HALF)
    times = torch.zeros(5, device="meta", dtype=torch.long)
    text, semantics = denoiser.project_text(denoiser.empty_text), denoiser.project_semantics(encoder(frames))

    def step(keys: Any) -> torch.Tensor:
        maps = denoiser.encode_lr(latents, times)
        return denoiser(latents, times, num_frames=5, lr_maps=maps, text=text, semantics=keys)

    settings = RestoreSettings(scale=4.0, steps=1, tile=0, tile_overlap=0)
    for own, keys in ((encoder, semantics), (None, None)):
        work, tiles = estimates.step_work(denoiser, own, (32, 48), 5, settings)
        assert tiles == 1 and work.flops == count(partial(step, keys)).flops


def test_a_long_video_is_counted_as_fast_as_a_short_one(
    networks: dict[str, nn.Module | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(estimates, "count", lambda call: calls.append(call) or count(call))
    settings = RestoreSettings(scale=4.0, steps=50, tile=16, tile_overlap=8)
    one, many = (estimates.estimate(networks, 32, 64, frames, settings) for frames in (5, 3 * 10_000 + 2))
    assert len(calls) == 2 * 3
    assert many.stages["denoise"].flops == 10_000 * one.stages["denoise"].flops


@pytest.mark.slow
def test_full_size_is_counted_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """SD 2.1's sizes and the large SAM 2, an hour of video: about ten seconds of processor time."""
    pytest.importorskip("sam2")
    command = partial(cli.main, ["estimate", "--denoiser-size", "sd21", "--size", "480x270", "--frames", "90000",
                                 "--device", "cpu", "--dtype", "float32", "--json"])  # fmt: skip
    started = time.process_time()
    assert command() == 0
    assert time.process_time() - started < 60
    found = json.loads(capsys.readouterr().out)
    assert found["stages"]["denoise"]["flops"] / (found["segments"] * 50 * 15) / 1e12 == pytest.approx(7.926, abs=0.001)
    assert found["stages"]["semantics"]["flops"] / 90000 / 1e12 == pytest.approx(1.821, abs=0.001)
