"""The benchmarks that train: a few steps of tiny networks on a tiny pack."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from benchmarks import regressor
from setevsr_core.checkpoints.presets import preset_folder
from setevsr_core.evaluation.methods import parse_method
from setevsr_core.training.trainer import Batch
from setevsr_core.training.vae_stages import PixelLoss

from .training_helpers import write_networks, write_pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_networks(tmp_path_factory.mktemp("networks"))


# ---- the regressor --------------------------------------------------------------------------------------------------
def test_the_regressor_trains_and_is_a_method_of_evaluate(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    regressor.main([str(packed), "--out", str(tmp_path), "--steps", "2", "--batch", "2", "--crop", "32", "--width", "8",
                    "--convolutions", "2", "--lpips-weight", "0", "--precision", "fp32", "--device", "cpu"])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["steps"] == 2 and math.isfinite(record["final_l1"])

    class Clip:
        lr = torch.rand(2, 12, 20, 3)

    method: Any = parse_method(f"plain@{tmp_path / 'regressor.safetensors'}", scale=4, device="cpu")
    result = method(Clip())
    assert result.shape == (2, 48, 80, 3)
    repeated = Clip.lr.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert 0 < (result - repeated).abs().max() < 0.1  # two steps from where it starts


def test_the_regressor_starts_by_repeating_pixels_and_its_losses_reach_every_layer() -> None:
    pytest.importorskip("spandrel")
    torch.manual_seed(0)
    network = regressor.compact(width=8, convolutions=12)
    pixels = torch.rand(3, 3, 8, 8)
    assert torch.equal(network(pixels), pixels.repeat_interleave(4, 2).repeat_interleave(4, 3))

    class Distance(torch.nn.Module):
        def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            assert prediction.shape == target.shape == (3, 3, 16, 16)
            return (prediction - target).square().mean()

    stage = regressor.RegressorStage(network, PixelLoss(Distance(), 0.5, 3, 16))  # type: ignore[arg-type]
    torch.nn.init.normal_(network.body[-1].weight, std=0.01)  # type: ignore[index,arg-type]
    batch = Batch(pixels * 2 - 1, torch.rand(3, 3, 32, 32) * 2 - 1, 1, torch.Generator().manual_seed(0))
    losses = stage.losses(batch)
    assert set(losses) == {"l1", "lpips"}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters())


def test_the_regressor_is_as_large_as_nanos_decoder() -> None:
    pytest.importorskip("spandrel")
    with safe_open(preset_folder("nano") / "vae.safetensors", "pt") as file:
        decoder = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys() if key.startswith("decoder."))
    ours = sum(p.numel() for p in regressor.compact().parameters())
    assert ours == pytest.approx(decoder, rel=0.03)
