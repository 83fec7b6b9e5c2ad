"""The bundled model: it is small, complete, and does something to a picture."""

from __future__ import annotations

import json

import pytest
import torch

from setevsr_core import Restorer
from setevsr_core.checkpoints.presets import PRESETS
from setevsr_core.networks.temporal_vae import VAEConfig
from setevsr_core.video.resize import upscale_bicubic

NANO = PRESETS / "nano"


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_preset("nano", device="cpu")


def test_all_weights_together_are_below_50_mb() -> None:
    assert sum(path.stat().st_size for path in NANO.glob("*.safetensors")) < 50_000_000


def test_the_training_record_names_every_stage_with_data_and_seed(restorer: Restorer) -> None:
    record = json.loads((NANO / "training.json").read_text())
    mixed, ending = record.pop("mixed"), record.pop("ending")
    assert (ending["sharpen"], ending["descreen"]) == (restorer.vae.config.sharpen, restorer.vae.config.descreen)
    assert mixed["vae"].split("/")[0] in record and 0 < mixed["share"] < 1
    assert {entry["stage"] for entry in record.values()} >= {"vae", "semantic", "stage1", "stage2", "decoder"}
    assert all(entry["data"] and "seed" in entry.get("options", entry.get("settings")) for entry in record.values())
    assert all(entry["steps"] > 0 for entry in record.values())


@pytest.mark.parametrize("steps", [0, None])
def test_it_changes_a_picture_and_keeps_its_colours(restorer: Restorer, steps: int | None) -> None:
    torch.manual_seed(0)
    frames = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 6), (20, 24), mode="bicubic").clamp(0, 1)
    frames = frames.movedim(1, -1).repeat(2, 1, 1, 1)
    result = restorer.restore(frames, scale=4, steps=steps)
    enlarged = upscale_bicubic(frames.movedim(-1, 1), 4).movedim(1, -1)
    assert result.shape == (2, 80, 96, 3)
    assert torch.isfinite(result).all()
    assert (result - enlarged).abs().mean() > 1e-3
    assert (result.mean((0, 1, 2)) - enlarged.mean((0, 1, 2))).abs().max() < 0.03


def test_the_vae_has_the_sizes_that_training_begins_with(restorer: Restorer) -> None:
    config = restorer.vae.config
    assert config == VAEConfig.nano(scaling_factor=config.scaling_factor, sharpen=config.sharpen)


def test_every_module_of_the_paper_has_learnt(restorer: Restorer) -> None:
    """What starts at zero (SeAM, temporal transformer, TSAM) is no longer zero at any site."""
    for site in restorer.denoiser.unet.sites():
        semantic = site.block.semantic_attention
        assert semantic is not None and site.temporal_transformer is not None and site.temporal_spatial is not None
        for layer in (semantic.attn.to_out[0], site.temporal_transformer.proj_out, site.temporal_spatial.mlp_out):
            assert layer.weight.abs().max() > 0
