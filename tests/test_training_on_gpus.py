"""Training as it runs on a GPU, without one: every stage on tensors that say they lie there and hold no data."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from setevsr_core.networks.baseline_temporal import mix
from setevsr_core.networks.denoiser import DenoiserConfig
from setevsr_core.networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig
from setevsr_core.networks.temporal_vae import VAEConfig
from setevsr_core.training import losses, processes
from setevsr_core.training.building import build_stage, build_weightless
from setevsr_core.training.estimate import estimate_memory, played, taking_part
from setevsr_core.training.options import merged_options, train_settings
from setevsr_core.training.train_command import STAGES
from setevsr_core.training.trainer import Stage
from setevsr_core.training.vae_stages import PictureStage

from .training_helpers import TINY_DENOISER, TINY_VAE, compact_upscaler, write_networks

GPU, NOWHERE = torch.device("cuda"), torch.device("meta")
FULL_DENOISER = DenoiserConfig(channels=(32, 32), lr_channels=(32, 32), map_channels=32, spade_hidden=16, head_dim=32,
                               context_dim=8, layers=1, lr_layers=1, semantic_levels=(0, 1))
FULL_VAE = VAEConfig(channels=(32, 32, 32), layers=1, growth=4)
"""All that full-size networks have and nano has not, at tiny size: the baseline's temporal layers, an unfolded VAE."""

EVERYTHING_ON: dict[str, Any] = {"batch": 2, "crop": 64, "frames": 3, "precision": "bf16", "lpips_patch": 32,
                                 "gan_weight": 0.1, "teacher_steps": 1, "rollout_steps": [1], "pixels": True}


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, denoiser, vae in (("nano", TINY_DENOISER, TINY_VAE), ("sd21", FULL_DENOISER, FULL_VAE)):
        monkeypatch.setattr(DenoiserConfig, size, lambda denoiser=denoiser: denoiser)
        monkeypatch.setattr(VAEConfig, size, lambda vae=vae: vae)
    small = SemanticEncoderConfig.nano(image_size=64)
    monkeypatch.setattr(SemanticEncoderConfig, "nano", lambda: small)
    monkeypatch.setattr(SemanticEncoderConfig, "sam2", lambda name: small)


@pytest.fixture
def autocast_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU torch switches CUDA's autocast off; its rules need none."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)


def options_of(stage: str, size: str, **more: Any) -> argparse.Namespace:
    return merged_options(stage, size, EVERYTHING_ON | more)


def modules_of(stage: Stage) -> list[nn.Module]:
    """Every network that takes part in a stage, losses included."""
    assert not isinstance(stage, PictureStage) or len(stage.helpers()) == 2
    return taking_part(stage)


def gradients_of(loss: torch.Tensor) -> set[int]:
    """Identities of the parameters in which a backward pass would leave gradients; running one would need a GPU."""
    found, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("size", ["nano", "sd21"])
@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in STAGES), ("turbo", {"with_decoder": True})])
def test_a_step_of_every_stage_runs_on_a_gpu(
    name: str, more: dict[str, Any], size: str, autocast_of_a_gpu: None
) -> None:
    """Devices and number types agree under CUDA's autocast, and gradients reach what learns and nothing else."""
    options = options_of(name, size, **more)
    stage, settings = build_weightless(options, GPU), train_settings(options)
    if isinstance(stage, PictureStage) and stage.adversary:
        stage.adversary.active = True
    with played(stage, settings, GPU, scale=4) as batch:
        values = stage.losses(batch)
        total = torch.stack([value.float() for value in values.values()]).sum()
        if isinstance(stage, PictureStage) and (judged := stage.judge()) is not None:
            values["judged"] = judged
            assert judged.dtype == torch.float32
    assert {value.device.type for value in values.values()} == {"cuda"}
    learning, touched = {id(parameter) for parameter in stage.parameters()}, gradients_of(total)
    if isinstance(stage, PictureStage) and stage.adversary:  # throws away what the generator's loss leaves there
        touched -= {id(parameter) for parameter in stage.adversary.network.parameters()}
    assert touched and touched <= learning


def test_an_estimate_counts_the_trunk_that_is_asked_for_and_reads_no_file() -> None:
    def of(**more: Any) -> int:
        options, device = options_of("decoder", "sd21", everything=True, **more), torch.device("cpu")
        return estimate_memory(build_weightless(options, device), train_settings(options), device).weights

    assert of(trunk=2) - of() > 4 * 2 * FULL_VAE.trunk_channels**2 * 9
    assert of(refine=4) > of() == of(compact=Path("nowhere.safetensors"))


@pytest.mark.parametrize(("name", "around"), [*((name, False) for name in STAGES), ("decoder", True)])
def test_a_stage_is_built_where_it_is_wanted(
    name: str, around: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real files: loss networks, and what starts afresh, must not stay behind on the CPU."""
    write_networks(tmp_path)
    monkeypatch.setattr(losses, "fill_backbone", lambda net, weights: None)
    files = {"vae": "vae", "denoiser": "denoiser", "semantic": "semantic_encoder"} if name != "semantic" else {}
    given = {kind: tmp_path / f"{file}.safetensors" for kind, file in files.items()}
    if around:
        given["compact"] = tmp_path / "compact.safetensors"
        save_file(compact_upscaler(width=8, inner=2), given["compact"])
    stage = build_stage(options_of(name, "nano", vgg=tmp_path / "vgg.safetensors", **given), NOWHERE)
    places = {tensor.device for module in modules_of(stage) for tensor in module.state_dict().values()}
    assert places == {NOWHERE}


def test_a_semantic_encoder_is_made_on_any_device_with_the_same_weights() -> None:
    assert next(SemanticEncoder(SemanticEncoderConfig.nano(), device="meta").parameters()).device == NOWHERE
    torch.manual_seed(0)
    plain = SemanticEncoder(SemanticEncoderConfig.nano())
    torch.manual_seed(0)
    with NOWHERE:  # a context does not move it: only `device` does
        again = SemanticEncoder(SemanticEncoderConfig.nano())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))


def test_temporal_layers_mix_half_precision_into_single() -> None:
    x, update = torch.zeros(2, 4, 1, 1), torch.ones(2, 4, 1, 1, dtype=torch.bfloat16)
    mixed = mix(update, x, torch.tensor([0.25]))
    assert mixed.dtype == torch.float32 and (mixed == 0.25).all()


def test_processes_wait_for_one_that_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")
    seen: dict[str, Any] = {}

    class State:
        process_index, device = 1, torch.device("cpu")

        def __init__(self, **options: Any) -> None:
            seen.update(options)

    monkeypatch.setattr(accelerate, "PartialState", State)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not processes.Processes().main
    assert seen["timeout"] >= timedelta(hours=12)
