"""Every training stage runs through its command on a tiny pack; an interrupted run ends like an uninterrupted one."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from setevsr_core import checkpoints
from setevsr_core.cli import main
from setevsr_core.errors import CheckpointError, SettingsError, TrainingError
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, Trunk, VAEConfig
from setevsr_core.restorer import Restorer
from setevsr_core.sampling.loop import denoise
from setevsr_core.sampling.noise import START, frames_noise
from setevsr_core.sampling.schedules import linspace_timesteps
from setevsr_core.training import estimate as estimating
from setevsr_core.training import trainer as training
from setevsr_core.training.activations import checkpoint_blocks
from setevsr_core.training.batches import Batch
from setevsr_core.training.building import build_to_count, build_weightless
from setevsr_core.training.compact import convolutions, read_compact, with_compact_decoder
from setevsr_core.training.data import PackedDataset
from setevsr_core.training.denoiser_stages import EncoderTeacher, SemanticStage
from setevsr_core.training.estimate import estimate_memory, step_flops
from setevsr_core.training.losses import flow_consistency, temporal_difference
from setevsr_core.training.options import merged_options, train_settings
from setevsr_core.training.processes import Processes
from setevsr_core.training.rollout_stages import TurboStage, rollout
from setevsr_core.training.train_command import FLAGS, NUMBERS, STAGES
from setevsr_core.training.trainer import Stage, Trainer, TrainSettings
from setevsr_core.training.vae_stages import Adversary, PixelLoss, VAEStage, random_windows
from setevsr_core.video.motion import warp
from setevsr_core.workload import _Counter
from tools import compact

from .training_helpers import TINY_DENOISER, TINY_VAE, compact_upscaler

GAN = ("--gan-weight", "0.1", "--gan-start", "1")
LPIPS = ("--lpips-weight", "0.1", "--lpips-patch", "32")
WRITTEN = {"vae": "vae", "decoder": "vae", "semantic": "semantic_encoder"}
"""The network that a stage writes, where it is not the denoiser."""


@pytest.fixture
def counted() -> None:
    """Starts say what a step takes, as ever."""


@pytest.fixture(autouse=True)
def _uncounted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts count nothing, which takes seconds each, unless a test asks for `counted`."""
    if "counted" not in request.fixturenames:
        monkeypatch.setattr(estimating, "estimate_memory", lambda *_: "not counted")


CPU = torch.device("cpu")


class Squared(Stage):
    """The squares of a small network on pieces of the batch; to count by hand what it keeps."""

    name = "squared"

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.networks = network, {"network": network}

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.network.parameters())

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"square": self.network(batch.hr.flatten(2)[..., :64] + 1).square().mean()}


def arguments(stage: str, packed: Path, networks: Path, out: Path, *more: str, steps: int = 3) -> list[str]:
    return ["train", stage, "--data", str(packed), "--out", str(out), "--vae", str(networks / "vae.safetensors"),
            "--denoiser", str(networks / "denoiser.safetensors"), "--steps", str(steps), "--batch", "2",
            "--crop", "64", "--frames", "3", "--lpips-weight", "0", "--precision", "fp32", "--save-every", "2",
            "--log-every", "1", *more]


def train(stage: str, packed: Path, networks: Path, out: Path, *more: str, steps: int = 3) -> dict[str, torch.Tensor]:
    assert main(arguments(stage, packed, networks, out, *more, steps=steps)) == 0
    return load_file(out / f"{WRITTEN.get(stage, 'denoiser')}.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in after if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("stage", ["vae", "stage1", "stage2", "decoder", "turbo"])
def test_a_stage_trains_what_it_should(stage: str, packed: Path, networks: Path, tmp_path: Path) -> None:
    name = "vae" if stage in ("vae", "decoder") else "denoiser"
    before = load_file(networks / f"{name}.safetensors")
    moved = changed(before, train(stage, packed, networks, tmp_path, "--gan-weight", "0.01", "--gan-start", "1"))
    temporal = {key for key in before if "temporal_transformer" in key or "temporal_spatial" in key}
    if stage == "stage1":
        assert moved and not moved & temporal
    elif stage == "stage2":
        assert moved and moved <= temporal
    elif stage == "decoder":
        assert moved and all(key.startswith(("decoder.", "post_quant_conv.")) for key in moved)
    elif stage == "turbo":
        assert moved & temporal and moved - temporal
    else:
        assert any(key.startswith("encoder.") for key in moved) and any(key.startswith("decoder.") for key in moved)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["steps"] == 3 and record["pack"] == {"steady": 2}
    assert list((tmp_path / "samples").glob("*.jpg"))


@pytest.mark.parametrize(("stage", "loss", "more"), [("vae", "lpips", LPIPS), ("semantic", "cosine", ())])
def test_a_stage_that_looks_through_vgg_trains(
    stage: str, loss: str, more: tuple[str, ...], packed: Path, networks: Path, vgg: Path, tmp_path: Path
) -> None:
    before = load_file(networks / f"{WRITTEN[stage]}.safetensors")
    files = ("--vgg", str(vgg), "--semantic", str(networks / "semantic_encoder.safetensors"))
    small = ("--batch", "1", "--frames", "1")
    assert changed(before, train(stage, packed, networks, tmp_path, *files, *small, *more, steps=2))
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert all(0 < float(row[loss]) < 2 for row in rows)
    with Image.open(tmp_path / "samples" / "000002.jpg") as strip:
        assert strip.size == (64, (5 if stage == "vae" else 4) * 64)


# ---- a semantic encoder that learns from another --------------------------------------------------------------------
@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native encoder that sees frames at half of nano's size, so that its grid is another one."""
    torch.manual_seed(7)
    encoder = SemanticEncoder(SemanticEncoderConfig.nano(image_size=128))
    return checkpoints.save_native(encoder, tmp_path_factory.mktemp("sam") / "teacher.safetensors")


def test_a_semantic_encoder_learns_from_another(
    packed: Path, networks: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--semantic", str(networks / "semantic_encoder.safetensors"), "--teacher")
    after = train("semantic", packed, networks, tmp_path, *more, str(teacher))
    assert changed(load_file(networks / "semantic_encoder.safetensors"), after)
    cosines = [float(row["cosine"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["final_cosine"] < cosines[0]
    assert record["options"]["teacher"] == f"{teacher.parent.name}/teacher.safetensors"
    head = torch.load(tmp_path / "state.pt", weights_only=True)["networks"]["head"]
    assert head["weight"].shape == (256, 256, 1, 1)
    with Image.open(tmp_path / "samples" / "000003.jpg") as strip:
        assert strip.size == (4 * 64, 4 * 64) and len(np.unique(np.asarray(strip)[64:192])) > 50
    other = shutil.copy(teacher, tmp_path / "other.safetensors")
    for stage, file, said in (
        ("semantic", other, "not '.*/other.safetensors'"),
        ("semantic", networks / "vae.safetensors", "vae.safetensors"),
        ("stage1", teacher, "--teacher has no meaning for 'stage1': leave it out, or give it to the stage 'semantic'"),
    ):
        assert main(arguments(stage, packed, networks, tmp_path, *more, str(file))) == 2
        assert re.search(said, capsys.readouterr().err)


def test_a_teaching_encoder_stays_as_it_is_and_fits_the_students_grid(teacher: Path) -> None:
    student = SemanticEncoder(SemanticEncoderConfig.nano(image_size=64))
    encoder = checkpoints.load_semantic_encoder(teacher, dtype=torch.float32)
    stage = SemanticStage(student, EncoderTeacher(encoder))
    hr = torch.rand(2, 3, 64, 64) * 2 - 1
    batch = Batch(F.avg_pool2d(hr, 4), hr, 1, torch.Generator())
    stage.losses(batch)["cosine"].backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in stage.teacher.parameters())
    assert all(parameter.grad is not None for parameter in stage.head.parameters())
    target = stage.teacher(hr, (4, 4))
    assert target.shape == (2, 256, 4, 4)
    torch.testing.assert_close(target.norm(dim=1), torch.ones(2, 4, 4))
    with torch.no_grad():  # the same grid: the embedding of the clean frame itself
        plain = encoder((hr.movedim(1, -1) + 1) / 2)
        torch.testing.assert_close(stage.teacher(hr, (8, 8)), F.normalize(plain, dim=1))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rows = stage.sample(batch)
    assert [row.shape for row in rows] == [(2, 3, 64, 64)] * 4 and all(row.isfinite().all() for row in rows)


def test_an_estimate_counts_the_teacher(teacher: Path) -> None:
    options = merged_options("semantic", "nano", {"batch": 1, "device": "cpu", "teacher": teacher})
    found = estimate_memory(build_to_count(options, CPU), train_settings(options), CPU)
    encoder, head = 4 * sum(value.numel() for value in load_file(teacher).values()), 4 * (256 * 256 + 256)
    assert found.weights == 2 * encoder + head  # the student is as large
    assert found.learning == 4 * (encoder + head)


def test_stage1_gives_a_plain_network_what_it_lacks_and_trains_that_alone(
    packed: Path, networks: Path, tmp_path: Path
) -> None:
    """Stable Diffusion 2.1 has neither SeAM nor SPADE nor an LR encoder."""
    sizes = {**vars(TINY_DENOISER), "spade": False, "semantic_levels": (), "temporal_sites": "none",
             "temporal_spatial_sites": "none", "map_channels": 32, "spade_hidden": 16}
    torch.manual_seed(1)
    plain = Denoiser(DenoiserConfig(**sizes), empty_text=torch.randn(1, 2, 8))
    checkpoints.save_native(plain, tmp_path / "plain.safetensors")
    files = ("--denoiser", str(tmp_path / "plain.safetensors"),
             "--semantic", str(networks / "semantic_encoder.safetensors"))
    assert main(arguments("stage1", packed, networks, tmp_path / "run", "--trains", "new", *files)) == 0
    before, after = load_file(tmp_path / "plain.safetensors"), load_file(tmp_path / "run" / "denoiser.safetensors")
    added = set(after) - set(before)
    for part in ("semantic_attention.", ".spade.", "lr_encoder."):
        assert any(part in key for key in added)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_stage2_of_a_lighter_network_keeps_it_light(packed: Path, networks: Path, tmp_path: Path) -> None:
    light = checkpoints.load_denoiser(networks / "denoiser.safetensors", light=True)
    checkpoints.save_native(light, tmp_path / "light.safetensors")
    files = ("--denoiser", str(tmp_path / "light.safetensors"),
             "--semantic", str(networks / "semantic_encoder.safetensors"))
    assert main(arguments("stage2", packed, networks, tmp_path / "run", *files)) == 0
    assert checkpoints.load_denoiser(tmp_path / "run" / "denoiser.safetensors").config == light.config


def test_the_decoder_stage_gives_a_plain_vae_its_temporal_fusion_and_refining_layers(
    packed: Path, networks: Path, tmp_path: Path
) -> None:
    sizes = {**vars(TINY_VAE), "temporal": False, "fusion_levels": (), "channels": (32, 32, 32), "residual": False,
             "refine": 0, "decoder_channels": (), "trunk": 0}
    torch.manual_seed(1)
    checkpoints.save_native(TemporalVAE(VAEConfig(**sizes)), tmp_path / "plain.safetensors")
    files = ("--vae", str(tmp_path / "plain.safetensors"), "--no-everything", "--refine", "4")
    assert main(arguments("decoder", packed, networks, tmp_path / "run", *files, steps=1)) == 0
    before, after = load_file(tmp_path / "plain.safetensors"), load_file(tmp_path / "run" / "vae.safetensors")
    added = set(after) - set(before)
    for part in (".temporal_convs.", ".fusion_layer_2.", ".refinement."):
        assert any(part in key for key in added)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_decoder_stage_builds_a_new_decoder_around_a_compact_upscaler(
    packed: Path, networks: Path, tmp_path: Path
) -> None:
    smaller = tmp_path / "smaller.safetensors"
    save_file(compact_upscaler(width=8, inner=4), tmp_path / "whole.safetensors")
    save_file(compact_upscaler(width=8, inner=4, seed=1), tmp_path / "other.safetensors")
    given = [str(tmp_path / name) for name in ("whole.safetensors", "other.safetensors")]
    compact.main([str(smaller), given[0], "--mix", given[1], "0.2", "--keep", "3", "--pack", str(packed)])
    assert main(arguments("decoder", packed, networks, tmp_path / "run", "--compact", str(smaller), steps=1)) == 0
    trained = checkpoints.load_temporal_vae(tmp_path / "run" / "vae.safetensors")
    assert (trained.config.trunk, trained.config.trunk_channels) == (3, 8)
    before = load_file(networks / "vae.safetensors")
    encoder = {key: value for key, value in trained.state_dict().items() if key.startswith("encoder.")}
    assert encoder and all(torch.equal(before[key], value) for key, value in encoder.items())


@pytest.mark.parametrize(("command", "named"), [
    ("stage1 --compact upscaler", "--compact has no meaning for 'stage1'"),
    ("turbo --with-decoder --compact upscaler", "--compact has no meaning for 'turbo'"),
    ("turbo --trunk 2", "--trunk has no meaning for 'turbo': .* with --with-decoder"),
    ("vae --refine 4", "--refine has no meaning for 'vae'"),
    ("stage2 --freeze-trunk", "--freeze-trunk has no meaning for 'stage2'"),
    ("decoder --compact upscaler --no-everything", "give --everything, or leave --compact out"),
    ("decoder --compact upscaler --refine 4", "--refine does not go with --compact"),
    ("decoder --freeze-trunk --trunk 2", "--freeze-trunk keeps .* this VAE has none"),
])  # fmt: skip
def test_options_on_the_decoder_without_a_meaning_are_refused_by_name(
    command: str, named: str, packed: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, *more = command.split()
    plain = tmp_path / "plain.safetensors"
    checkpoints.save_native(TemporalVAE(replace(TINY_VAE, trunk=0)), plain)
    assert main(arguments(stage, packed, networks, tmp_path / "run", "--vae", str(plain), *more)) == 2
    assert re.search(named, capsys.readouterr().err)


def test_a_frozen_trunk_keeps_its_weights_and_hears_of_the_latents(
    packed: Path, networks: Path, tmp_path: Path
) -> None:
    assert main(arguments("decoder", packed, networks, tmp_path / "run", "--freeze-trunk", steps=2)) == 0
    before, after = load_file(networks / "vae.safetensors"), load_file(tmp_path / "run" / "vae.safetensors")
    learnt = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key in learnt if ".trunk." in key} == {"decoder.trunk.join.weight", "decoder.trunk.join.bias"}
    assert "decoder.conv_out.weight" in learnt


@torch.no_grad()
def test_a_decoder_around_a_compact_upscaler_decodes_at_first_what_that_makes_of_the_frame() -> None:
    weights = compact_upscaler(width=8, inner=2)
    vae = with_compact_decoder(TemporalVAE(TINY_VAE), weights).eval()
    low = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    enlarged = F.interpolate(low * 2 - 1, scale_factor=4, mode="bicubic")
    mean, _, features = vae.encode(enlarged)
    decoded = (vae.decode(torch.randn_like(mean), features, num_frames=2) + 1) / 2
    expected = F.pixel_shuffle(compact.residual(weights, low, [2, 4]), 4) + F.interpolate(low, scale_factor=4)
    inner = (..., slice(24, -24), slice(24, -24))  # at the border the two pad with other values
    torch.testing.assert_close(decoded[inner], expected[inner], atol=5e-3, rtol=0)


def test_a_trunk_is_the_compact_upscaler_again_that_it_was_made_of(tmp_path: Path) -> None:
    weights = compact_upscaler(width=8, inner=2)
    vae = with_compact_decoder(TemporalVAE(TINY_VAE), weights)
    checkpoints.save_native(vae, tmp_path / "vae.safetensors")
    compact.main([str(tmp_path / "out.safetensors"), str(tmp_path / "vae.safetensors")])
    again = load_file(tmp_path / "out.safetensors")
    assert sorted(again) == sorted(weights)
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, atol=2e-3, rtol=0, msg=name)


@torch.no_grad()
def test_a_deeper_compact_upscaler_gives_the_same_before_it_learns(tmp_path: Path) -> None:
    weights, low = compact_upscaler(width=8, inner=2), torch.rand(1, 3, 16, 16)
    save_file(weights, tmp_path / "whole.safetensors")
    compact.main([str(tmp_path / "deeper.safetensors"), str(tmp_path / "whole.safetensors"), "--deepen", "5"])
    deeper = read_compact(tmp_path / "deeper.safetensors")
    assert convolutions(deeper) == 5
    assert torch.equal(compact.residual(deeper, low, [2, 4, 6, 8, 10]), compact.residual(weights, low, [2, 4]))


def test_a_compact_upscaler_is_taken_over_whatever_device_is_chosen_around() -> None:
    """As on a GPU, where the stage is built in a context of the device; what is computed on "meta" has no values."""
    weights, vae = compact_upscaler(width=8, inner=2), TemporalVAE(TINY_VAE)
    plain = with_compact_decoder(vae, weights).decoder.trunk
    with torch.device("meta"):
        again = with_compact_decoder(vae, weights).decoder.trunk
    for part in ("conv_in", "convs", "slopes", "conv_out", "skip"):
        for name, value in plain.named_parameters():
            if name.startswith(part):
                assert torch.equal(again.get_parameter(name), value), name


@pytest.mark.parametrize(("more", "named"), [
    ("--mix wider 0.1", "different sizes"), ("--mix whole much", "share between 0 and 1, not 'much'"),
    ("--mix whole 1.5", "share between 0 and 1, not 1.5"), ("--mix nowhere 0.1", "nowhere.* cannot be read"),
    ("--mix cut 0.1", "body.2.bias is missing, expected .8,"), ("--keep 3", "needs --pack"),
    ("--keep 3 --pack packed", "it must lie in 1..2"), ("--keep 0 --pack packed", "it must lie in 1..2"),
    ("--keep 1 --pack nowhere", "nowhere"), ("--deepen 1", "--deepen is 1, and there are 2"),
])  # fmt: skip
def test_compacting_says_what_is_wrong_and_writes_nothing(
    more: str, named: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = compact_upscaler(width=8, inner=2)
    cut = {key: value for key, value in whole.items() if key != "body.2.bias"}
    for name, weights in (("whole", whole), ("wider", compact_upscaler(width=9, inner=2)), ("cut", cut)):
        save_file(weights, tmp_path / name)
    places = {name: str(tmp_path / name) for name in ("whole", "wider", "cut", "nowhere")} | {"packed": str(packed)}
    with pytest.raises(SystemExit):
        compact.main([str(tmp_path / "out"), places["whole"], *(places.get(word, word) for word in more.split())])
    assert re.search(named, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["another layout", "another enlargement"])
def test_a_compact_upscaler_that_does_not_fit_is_refused_by_name(broken: str, packed: Path, networks: Path,
                                                                 tmp_path: Path, capsys: Any) -> None:
    weights = {"weight": torch.zeros(1)} if broken == "another layout" else compact_upscaler(width=8, inner=1, scale=2)
    save_file(weights, tmp_path / "other.safetensors")
    given = arguments("decoder", packed, networks, tmp_path / "run", "--compact", str(tmp_path / "other.safetensors"))
    assert main(given) == 2
    assert "compact" in capsys.readouterr().err


def test_a_compact_upscaler_needs_a_vae_of_nanos_levels() -> None:
    vae = TemporalVAE(replace(TINY_VAE, channels=(32, 32, 32), decoder_channels=()))
    with pytest.raises(CheckpointError, match="this VAE has 3 levels, .* nano's, of 2"):
        with_compact_decoder(vae, compact_upscaler(width=8, inner=2))


def test_turbo_with_decoder_trains_both_and_never_the_encoder(packed: Path, networks: Path, tmp_path: Path) -> None:
    more = ("--with-decoder", "--rollout-steps", "1", "2", "--strength", "0.5", "--lr-share", "0.3")
    assert changed(load_file(networks / "denoiser.safetensors"), train("turbo", packed, networks, tmp_path, *more))
    before, after = load_file(networks / "vae.safetensors"), load_file(tmp_path / "vae.safetensors")
    moved = changed(before, after)
    assert moved and all(key.startswith(("decoder.", "post_quant_conv.")) for key in moved)


def test_turbo_at_the_teachers_own_steps_has_nothing_to_learn(packed: Path, networks: Path, tmp_path: Path) -> None:
    train("turbo", packed, networks, tmp_path, "--rollout-steps", "2", "--teacher-steps", "2", "--no-pixels", steps=1)
    row = next(csv.DictReader((tmp_path / "log.csv").open()))
    assert float(row["latent"]) == 0


def test_a_decoder_does_not_learn_along_without_pictures(
    packed: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("turbo", packed, networks, tmp_path / "run", "--with-decoder", "--no-pixels")) != 0
    assert "give --pixels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_discriminator_learns_in_single_precision() -> None:
    """Nothing scales its gradients, which half precision would lose."""
    torch.manual_seed(0)
    adversary = Adversary(0.1, 0, 1e-3, "cpu")
    types = []
    adversary.network.layers[0].register_forward_hook(lambda *call: types.append(call[2].dtype))
    pictures = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        adversary.loss(pictures)
        adversary.active = True
        adversary.loss(pictures)
        adversary.learn(pictures.bfloat16(), pictures, 0, Processes("cpu"))
    assert types == [torch.bfloat16, torch.float32, torch.float32]


def test_rollout_is_the_sampling_loop(networks: Path) -> None:
    denoiser = checkpoints.load_denoiser(networks / "denoiser.safetensors")
    latents, seed = torch.randn(3, 4, 8, 8), 5
    noise = frames_noise(seed, range(3), START, latents.shape[1:])
    expected = denoise(denoiser, latents, frame_indices=range(3), seed=seed, steps=3, sampler="ddim", tile=0)
    found = rollout(denoiser, latents, noise, linspace_timesteps(3), num_frames=3, semantics=None)
    assert torch.allclose(found, expected, atol=1e-5)


def test_windows_show_the_same_place_of_prediction_and_target() -> None:
    pictures = torch.rand(4, 3, 12, 20)
    batch = Batch(pictures, pictures, 1, torch.Generator().manual_seed(0))
    first, second = random_windows(pictures, pictures + 1, 8, batch)
    assert first.shape == (4, 3, 8, 8) and torch.equal(first + 1, second)
    assert random_windows(pictures, pictures, 0, batch)[0] is pictures
    assert random_windows(pictures, pictures, 12, batch)[0] is pictures


@pytest.mark.parametrize(("pictures", "seen"), [(3, 3), (4, 4), (5, 3), (6, 3), (8, 4), (9, 3)])
def test_the_perceptual_loss_looks_at_no_more_pictures_than_it_should(pictures: int, seen: int) -> None:
    class Seen(torch.nn.Module):
        def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return torch.tensor(float(len(prediction)))

    batch = Batch(torch.zeros(0), torch.zeros(0), 1, torch.Generator())
    loss = PixelLoss(Seen(), 1.0, images=4)  # type: ignore[arg-type]
    assert loss(torch.zeros(pictures, 3, 8, 8), torch.zeros(pictures, 3, 8, 8), batch)["lpips"] == seen


class Killed(BaseException):
    """Ends a run where a kill would."""


def kill_between_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the third step, whose row is in the curves already."""
    log = Trainer._log

    def last_words(self: Trainer, values: Any) -> None:
        log(self, values)
        if self.step == 3:
            raise Killed

    monkeypatch.setattr(Trainer, "_log", last_words)


def kill_after_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first state lies there, and no picture yet."""
    monkeypatch.setattr(Trainer, "_strip", lambda self: (_ for _ in ()).throw(Killed))


def kill_within_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second state is half written, under another name."""
    sync, saves = training.sync_file, iter(range(9))

    def torn(path: Path) -> None:
        if next(saves) == 1:
            path.write_bytes(path.read_bytes()[:1000])
            raise Killed
        sync(path)

    monkeypatch.setattr(training, "sync_file", torn)


@pytest.mark.parametrize(("stage", "loss", "more", "kill"), [
    ("vae", "adversarial", GAN, kill_after_a_save),
    ("semantic", "cosine", ("--teacher", "teacher"), kill_between_saves),
    ("stage2", "eps_mse", ("--draws", "2"), kill_between_saves),
    ("decoder", "adversarial", GAN, kill_between_saves),
    ("turbo", "adversarial", (*GAN, "--with-decoder", "--rollout-steps", "1"), kill_within_a_save),
])  # fmt: skip
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    stage: str, loss: str, more: tuple[str, ...], kill: Callable[[pytest.MonkeyPatch], None], packed: Path,
    networks: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_strip", lambda self: None)  # pictures take longer than the steps here
    more = ("--batch", "1", "--frames", "2", *(str(teacher) if word == "teacher" else word for word in more))
    whole = train(stage, packed, networks, tmp_path / "whole", *more, steps=4)
    with monkeypatch.context() as context, pytest.raises(Killed):
        kill(context)
        train(stage, packed, networks, tmp_path / "killed", *more, steps=4)
    assert not (tmp_path / "killed" / "record.json").exists()
    assert torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["step"] == 2
    with (tmp_path / "killed" / "log.csv").open("a") as log:
        log.write("2,9")  # a row that was half written
    resumed = train(stage, packed, networks, tmp_path / "killed", *more, steps=4)
    assert not changed(whole, resumed)
    states = assert_same_runs(tmp_path / "whole", tmp_path / "killed", loss)
    if GAN[0] in more:
        adversary = states["stage"]["adversary"]
        assert adversary["active"] and any(name.endswith("_u") for name in adversary["network"])


def test_a_run_that_the_system_kills_resumes_to_the_same_bits(packed: Path, networks: Path, tmp_path: Path) -> None:
    """SIGKILL, between two saves. It would run for ever, so how long the whole run is may be told afterwards."""
    more = ("--save-every", "3", "--decay-from", "1", "--device", "cpu")
    whole, out = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "setevsr_core.cli",
               *arguments("stage1", packed, networks, out, *more, steps=10**6)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": "."}
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=environment, stderr=said)
        try:
            end = time.monotonic() + 300
            while not ((out / "state.pt").exists() and (out / "log.csv").read_text().count("\n") > 4):
                assert running.poll() is None and time.monotonic() < end, (tmp_path / "said").read_text()[-3000:]
                time.sleep(0.01)
        finally:
            running.kill()
            running.wait()
    assert running.returncode == -signal.SIGKILL and not (out / "record.json").exists()
    assert (tmp_path / "said").read_text().count("GiB of device memory") == 1
    steps = torch.load(out / "state.pt", weights_only=True)["step"] + 2
    resumed = train("stage1", packed, networks, out, *more, steps=steps)
    assert not changed(train("stage1", packed, networks, whole, *more, steps=steps), resumed)
    assert_same_runs(whole, out, "eps_mse")


def test_a_resumed_run_stays_with_the_segments_that_it_began_on(packed: Path, tmp_path: Path) -> None:
    """Packing may go on meanwhile."""
    def run(name: str, steps: int) -> dict[str, torch.Tensor]:
        settings = TrainSettings(steps=steps, batch=2, crop=64, frames=1, learning_rate=1e-3, precision="fp32",
                                 device="cpu", save_every=2)
        torch.manual_seed(0)
        network = torch.nn.Linear(64, 8)
        Trainer(Squared(network), PackedDataset(pack), settings, tmp_path / name, lambda *_: None).run()
        return network.state_dict()

    pack = shutil.copytree(packed, tmp_path / "pack")
    whole = run("whole", 8)
    run("killed", 2)
    shutil.copytree(pack / "shard_00000", pack / "shard_00001")
    assert not changed(whole, run("killed", 8)) and changed(whole, run("new", 8))


def assert_same_runs(first: Path, second: Path, loss: str) -> dict[str, Any]:
    """Curves hold every step once and the same losses, states are equal bit for bit; returns the first state."""
    curves = [[row[name] for row in csv.DictReader((run / "log.csv").open()) for name in ("step", loss)]
              for run in (first, second)]
    assert curves[0] == curves[1] and float(curves[0][-1]) != 0
    states = [torch.load(run / "state.pt", weights_only=True) for run in (first, second)]
    for part in ("step", "networks", "ema", "optimizer", "stage"):
        assert_same(states[0][part], states[1][part])
    return states[0]


def assert_same(first: Any, second: Any) -> None:
    """Nested states are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same(value, second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def test_a_run_goes_on_only_with_the_options_that_it_began_with(
    packed: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train("decoder", packed, networks, out, steps=1)
    other = shutil.copytree(packed, tmp_path / "other")
    (other / "meta.json").write_text((packed / "meta.json").read_text().replace('"steady": 2', '"steady": 4'))

    def refused(stage: str, data: Path, *more: str) -> str:
        assert main(arguments(stage, data, networks, out, *more)) == 2
        return capsys.readouterr().err

    for stage, data, more, said in (
        ("turbo", packed, (), "stage 'decoder' and not 'turbo'"),
        ("decoder", packed, ("--seed", "1"), "seed 0 and not 1"),
        ("decoder", packed, ("--trunk", "3"), "trunk 0 and not 3"),
        ("decoder", packed, GAN, "gan_weight 0.0 and not 0.1"),
        ("decoder", packed, ("--learning-rate", "1"), "learning_rate 0.0004 and not 1.0"),
        ("decoder", packed, ("--batch", "1"), "batch 2 and not 1"), ("decoder", other, (), "data ' ("),
        ("decoder", packed, ("--accumulate", "2"), "accumulate times processes 1 and not 2"),
    ):  # fmt: skip
        message = refused(stage, data, *more)
        assert said in message and "give another --out, or the options of then" in message
    longer = ("--minutes", "100", "--save-every", "7", "--log-every", "2", "--checkpointing")
    train("decoder", packed, networks, out, *longer, steps=2)
    assert json.loads((out / "record.json").read_text())["steps"] == 2

    state = torch.load(out / "state.pt", weights_only=True)  # as an earlier version wrote it
    del state["options"]
    torch.save(state, out / "state.pt")
    for stage, more in (("turbo", ()), ("decoder", GAN)):
        assert "holds a training of another stage or of other networks" in refused(stage, packed, *more)
    train("decoder", packed, networks, out, steps=3)


def test_a_run_that_was_killed_before_its_first_checkpoint_has_every_step_once(
    packed: Path, networks: Path, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text("step,seconds,eps_mse\r\n1,9.9,0.5\r\n")
    train("stage1", packed, networks, tmp_path, steps=2)
    assert [row["step"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["1", "2"]


def test_training_stops_where_it_diverges_and_keeps_its_last_step(packed: Path, tmp_path: Path) -> None:
    class Diverging(Squared):
        def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
            batch.hr[0, 0, 0, 0] = float("nan") if trainer.step == 2 else 0.0
            return super().losses(batch)

    settings = TrainSettings(steps=9, batch=1, crop=64, frames=1, learning_rate=1e-3, precision="fp32", device="cpu",
                             save_every=2)
    network = torch.nn.Linear(64, 8)
    trainer = Trainer(Diverging(network), PackedDataset(packed), settings, tmp_path, lambda *_: None)
    with pytest.raises(TrainingError, match="diverged at step 3 .square nan.: take a lower --learning-rate"):
        trainer.run()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["networks"]["network"]
    assert all(torch.equal(saved[key], value) and value.isfinite().all() for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "option", ["--learning-rate -1", "--minutes 0", "--ema-decay 2", "--decay-from 3", "--sharpen -1", "--warmup -5",
               "--draws 0", "--lpips-images 0", "--gan-weight -1", "--refine -4", "--lr-share 3"]
)
def test_settings_that_no_training_can_have_are_refused(
    option: str, packed: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("vae", packed, networks, tmp_path / "run", *option.split())) != 0
    name, value = option.split()
    assert f"{name[2:].replace('-', '_')} is {value}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_vgg_that_is_another_file_or_cannot_be_fetched_is_one_sentence(
    packed: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")
    (tmp_path / "text.safetensors").write_text("no weights")
    more = ("--lpips-weight", "1", "--vgg")
    for file in (tmp_path / "text.safetensors", networks / "vae.safetensors"):
        assert main(arguments("vae", packed, networks, tmp_path / "run", *more, str(file))) != 0
        assert "is no safetensors file of torchvision's convolution layers" in capsys.readouterr().err
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # nothing was fetched before

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    assert main(arguments("vae", packed, networks, tmp_path / "run", "--lpips-weight", "1")) != 0
    assert "cannot be fetched (<urlopen error no network>); give its convolutions" in capsys.readouterr().err


def test_a_pack_among_other_folders_is_refused(
    packed: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments("vae", packed, networks, tmp_path / "run")
    command.insert(command.index(str(packed)), str(tmp_path))
    assert main(command) != 0
    assert "is packed already" in capsys.readouterr().err


CLOCKS = """
import os, sys, time, types
from setevsr_core.cli import main
from setevsr_core.training import trainer

rate = 10 ** (9 * int(os.environ["RANK"]))
trainer.time = types.SimpleNamespace(monotonic=lambda: rate * time.monotonic())
sys.exit(main(sys.argv[1:]))
"""
"""The training command in a process whose clock runs away, unless it is the first one."""


def test_two_processes_learn_what_one_learns_from_twice_the_batches(
    packed: Path, networks: Path, tmp_path: Path
) -> None:
    """They go by the first one's clock: by its own, the second would stop after its first step."""
    pytest.importorskip("accelerate")  # torchrun starts them on a CPU; `accelerate launch` does on GPUs
    whole = train("stage1", packed, networks, tmp_path / "one", "--accumulate", "2", steps=2)
    (tmp_path / "clocks.py").write_text(CLOCKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(tmp_path / "clocks.py"),
               *arguments("stage1", packed, networks, tmp_path / "two", "--device", "cpu", "--minutes", "1000",
                          steps=2)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr[-3000:]
    halves = load_file(tmp_path / "two" / "denoiser.safetensors")
    start = load_file(networks / "denoiser.safetensors")
    moved = sum(float((whole[key] - start[key]).square().sum()) for key in whole)
    apart = sum(float((whole[key] - halves[key]).square().sum()) for key in whole)
    assert apart < 1e-2 * moved  # Adam turns the last bits of near-zero gradients into whole steps
    record = json.loads((tmp_path / "two" / "record.json").read_text())
    assert record["processes"] == 2 and record["steps"] == 2


class Follower(Processes):
    """The second of two processes, told what the first one says."""

    def __init__(self, first: float) -> None:
        super().__init__("cpu")
        self.count, self.rank, self.first = 2, 1, first

    def from_first(self, value: float) -> float:
        return self.first

    def average(self, parameters: object) -> None:
        pass


def test_a_process_without_the_shared_folder_is_told_so(packed: Path, tmp_path: Path) -> None:
    settings = TrainSettings(steps=9, batch=1, crop=64, frames=1, learning_rate=1e-3, precision="fp32", device="cpu")
    stage = Squared(torch.nn.Linear(64, 8))
    trainer = Trainer(stage, PackedDataset(packed), settings, tmp_path, lambda *_: None, Follower(first=5))
    with pytest.raises(SettingsError, match="folder that all machines share"):
        trainer.run()


def test_checkpointing_changes_memory_and_not_the_result(packed: Path, networks: Path, tmp_path: Path) -> None:
    plain = train("turbo", packed, networks, tmp_path / "plain", steps=1)
    again = train("turbo", packed, networks, tmp_path / "again", "--checkpointing", steps=1)
    assert all(torch.allclose(plain[key], again[key], atol=1e-6) for key in plain)


def test_checkpointing_computes_all_blocks_twice_and_none_more_often(networks: Path) -> None:
    """What the loss passes through: the parts over time, and the frozen decoder behind the denoiser."""
    denoiser = checkpoints.load_denoiser(networks / "denoiser.safetensors", dtype=torch.float32)
    vae = checkpoints.load_temporal_vae(networks / "vae.safetensors", dtype=torch.float32, changes={"refine": 4})
    stage = TurboStage(vae, denoiser, None, PixelLoss(None, 0, 1), steps=(1,))
    for network in stage.gradient_path():
        checkpoint_blocks(network)
        assert checkpoint_blocks(network) == 0
    calls: Counter[str] = Counter()
    watched = [*denoiser.named_modules(prefix="denoiser"), *vae.decoder.named_modules(prefix="decoder")]
    for name, module in watched:
        if not list(module.children()):  # before it runs: the second pass stops within the last layer
            module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    hr = torch.rand(3, 3, 64, 64)
    batch = Batch(torch.nn.functional.avg_pool2d(hr, 4), hr, 3, torch.Generator().manual_seed(0))
    torch.stack(list(stage.losses(batch).values())).sum().backward()
    assert max(calls.values()) == 2
    inside = ("temporal_transformer.", "temporal_spatial.", ".transformer_blocks.0.ff.", "decoder.up_blocks.",
              "decoder.mid_block.", "decoder.fusion_layer", "decoder.trunk.convs.", "decoder.refinement.")
    for part in inside:
        found = {name: count for name, count in calls.items() if part in name and "upsamplers" not in name}
        assert found and set(found.values()) == {2}, part


def test_checkpointing_computes_a_trunk_again_piece_by_piece() -> None:
    """Its activations of the second pass never lie side by side, and gradients stay what they were."""
    torch.manual_seed(0)
    trunk = Trunk(VAEConfig.nano(trunk=Trunk.PIECE + 2, trunk_channels=8), 4)
    given = torch.randn(1, 48, 6, 6), torch.randn(1, 4, 6, 6)
    expected = torch.autograd.grad(trunk(*given).square().sum(), [*trunk.parameters()])
    assert checkpoint_blocks(trunk) == 1
    calls: list[int] = []
    for i, conv in enumerate(trunk.convs):
        conv.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
    found = torch.autograd.grad(trunk(*given).square().sum(), [*trunk.parameters()])
    every = list(range(Trunk.PIECE + 2))
    assert calls == [*every, *every[Trunk.PIECE :], *every[: Trunk.PIECE]]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_estimate_prints_memory_and_trains_nothing(
    networks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, counted: None
) -> None:
    with caplog.at_level(logging.INFO):
        assert main(["train", "stage1", "--vae", str(networks / "vae.safetensors"), "--out", str(tmp_path / "run"),
                     "--denoiser", str(networks / "denoiser.safetensors"), "--estimate"]) == 0
    found = re.search(r"about ([0-9.]+) GiB .*activations ([0-9.]+)", caplog.text)
    assert found and 0 < float(found[2]) <= float(found[1]) < 10
    assert not (tmp_path / "run").exists()


def test_estimated_activations_are_those_of_a_real_step(networks: Path) -> None:
    """The fake step keeps what a real one keeps: counted with the same hooks on real tensors."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8))
    stage = Squared(layer)
    settings = TrainSettings(steps=1, batch=5, crop=16, frames=2, learning_rate=1e-3, precision="fp32")
    estimate = estimate_memory(stage, settings, torch.device("cpu"))
    # Kept per row of 64: the input, what SiLU saw, what it gave; and the 8 of the square.
    assert estimate.activations == 10 * 3 * (64 + 64 + 64 + 8) * 4
    assert estimate.learning == 4 * 4 * (64 * 64 + 64 + 64 * 8 + 8)


def test_an_estimate_counts_what_checkpointing_leaves() -> None:
    """It is the most that lives at once in a real step, but for gradients on their way, and changes nothing."""
    vae = TemporalVAE(TINY_VAE)
    stage = VAEStage(vae, PixelLoss(None, 0, 1))
    settings = TrainSettings(steps=1, batch=3, crop=128, frames=1, learning_rate=1e-3, precision="fp32")
    plain = estimate_memory(stage, settings, CPU).activations
    found = estimate_memory(stage, replace(settings, checkpointing=True), CPU).activations
    assert found < 0.7 * plain == 0.7 * estimate_memory(stage, settings, CPU).activations
    assert checkpoint_blocks(vae) > 0
    hr = torch.rand(3, 3, 128, 128)
    with _Counter() as counter:
        losses = stage.losses(Batch(F.avg_pool2d(hr, 4), hr, 1, torch.Generator().manual_seed(0)))
        torch.stack(list(losses.values())).sum().backward()
    assert found < counter.peak < 1.15 * found


@pytest.mark.parametrize("stage", ["stage2", "turbo"])  # the largest without and with checkpointing
def test_the_papers_settings_fit_an_accelerator_of_80_gigabytes(stage: str) -> None:
    options = merged_options(stage, "sd21", {"device": "cpu"})
    memory = estimate_memory(build_weightless(options, CPU), train_settings(options), CPU)
    assert memory.total < 79 * 2**30


def test_an_estimate_counts_the_networks_of_the_losses_and_leaves_them_alone() -> None:
    class Distance(torch.nn.Linear):
        def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (prediction - target).square().mean()

    vae, adversary = TemporalVAE(TINY_VAE), Adversary(0.1, 500, 1e-3, "cpu", channels=4)
    before = {key: value.clone() for key, value in adversary.network.state_dict().items()}
    settings = TrainSettings(steps=1, batch=2, crop=64, frames=1, learning_rate=1e-3, precision="fp32")
    plain, perceptual = PixelLoss(None, 0, 1), PixelLoss(Distance(9, 11), 1.0, 1)  # type: ignore[arg-type]
    stages = VAEStage(vae, plain), VAEStage(vae, plain, adversary), VAEStage(vae, perceptual)
    bare, judged, seen = (estimate_memory(stage, settings, torch.device("cpu")) for stage in stages)
    assert seen.weights == bare.weights + 4 * 11 * 10
    assert judged.weights == bare.weights + 4 * sum(value.numel() for value in before.values())
    assert judged.learning == bare.learning + 3 * 4 * sum(p.numel() for p in adversary.network.parameters())
    assert judged.activations > bare.activations
    assert adversary.network.training and not adversary.active
    after = adversary.network.state_dict()
    assert all(type(after[key]) is torch.Tensor and torch.equal(after[key], value) for key, value in before.items())


def test_estimate_needs_no_files_and_no_folder(
    packed: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], counted: None
) -> None:
    """Networks that are not given are counted at the size's defaults, and hold no data meanwhile."""
    with caplog.at_level(logging.INFO):
        assert main(["train", "stage2", "--estimate", "--device", "cpu"]) == 0
    found = re.search(r"about .*weights ([0-9.]+), gradients, Adam, averages ([0-9.]+)", caplog.text)
    assert found and float(found[1]) > 0
    for command in (["train", "vae", "--data", str(packed)], ["train", "preset", "--estimate"]):
        assert main(command) != 0
        assert "training needs --out" in capsys.readouterr().err


def test_counted_operations_are_those_of_the_layers(networks: Path) -> None:
    """A linear layer multiplies once forward and twice backward; attention is counted on CPUs too."""
    first, second = torch.nn.Linear(64, 32), torch.nn.Linear(32, 8)
    settings = TrainSettings(steps=1, batch=5, crop=16, frames=2, learning_rate=1e-3, precision="fp32", accumulate=3)
    flops = step_flops(Squared(torch.nn.Sequential(first, second)), settings, torch.device("cpu"))
    rows = 10 * 3
    # The input of the first layer wants no gradient: one product less.
    assert flops == 3 * 2 * rows * (2 * 64 * 32 + 3 * 32 * 8)

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = (x * self.scale).reshape(10, 1, 12, 16)
            return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    flops = step_flops(Squared(Attention()), settings, torch.device("cpu"))
    forward = 2 * 10 * 12 * 12 * (16 + 16)
    assert forward * 3 * 2 < flops <= forward * 3 * 4


def test_a_config_file_sets_options_and_the_command_line_wins(packed: Path, networks: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.json"
    config.write_text(json.dumps({"steps": 5, "draws": 2}))
    train("stage1", packed, networks, tmp_path / "run", "--config", str(config), steps=1)
    options = json.loads((tmp_path / "run" / "record.json").read_text())["options"]
    assert options["steps"] == 1 and options["draws"] == 2 and options["denoiser"].endswith("denoiser.safetensors")
    config.write_text(json.dumps({"stepz": 5}))
    with pytest.raises(SettingsError, match="stepz"):
        merged_options("stage1", "nano", {}, config)
    config.write_text("{")
    with pytest.raises(SettingsError, match="no JSON"):
        merged_options("stage1", "nano", {}, config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("steps", "100", 'steps is "100", it must be a whole number'), ("steps", True, "steps is true"),
     ("trunk", None, "trunk is null, it must be a whole number"), ("trunk", 2.5, "trunk is 2.5"),
     ("batch", 2.0, "batch is 2.0, it must be a whole number"), ("minutes", None, "minutes is null"),
     ("with_decoder", "false", 'with_decoder is "false", it must be true or false'), ("with_decoder", 0, "is 0, it"),
     ("learning_rate", "1e-4", "it must be a number"), ("learning_rate", float("nan"), "learning_rate is nan"),
     ("rollout_steps", 4, "it must be a list of whole numbers"), ("rollout_steps", [], "list of whole numbers"),
     ("rollout_steps", [2, "4"], "list of whole numbers"), ("device", 1, "device is 1, it must be a text"),
     ("vae", 1, "vae is 1, it must be the name of a file, or null"), ("trains", "old", "'old', choose all or new")],
)
def test_a_config_file_with_a_value_of_another_kind_is_refused(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    config = tmp_path / "own.json"
    config.write_text(json.dumps({name: value}))
    with pytest.raises(SettingsError, match=re.escape(message)):
        train_settings(merged_options("turbo", "nano", {}, config))
    config.write_text(json.dumps({"learning_rate": 1, "vae": None, "vgg": "vgg.safetensors", "rollout_steps": [3]}))
    assert merged_options("turbo", "nano", {}, config).vgg == Path("vgg.safetensors")


@pytest.mark.parametrize("size", ["nano", "sd21"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_complete_defaults_of_the_right_kind(stage: str, size: str) -> None:
    options = merged_options(stage, size, {})
    assert train_settings(options).steps > 0
    kinds = {name.replace("-", "_"): kind for name, kind, _ in (*NUMBERS, *((name, bool, "") for name, _ in FLAGS))}
    assert kinds == {name: type(value) for name, value in vars(options).items() if name in kinds}


@pytest.mark.parametrize("device", ["toaster", "cuda:77"])
def test_a_device_that_is_not_there_is_refused_before_any_work(device: str) -> None:
    with pytest.raises(SettingsError, match=f"device is '{device}'"):
        Processes(device)


def test_warp_follows_the_flow() -> None:
    pixels = torch.rand(1, 1, 6, 8)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0] = 1  # one pixel to the right
    assert torch.allclose(warp(pixels, flow)[..., :-1], pixels[..., 1:], atol=1e-6)


def test_sequence_losses_see_flicker_and_nothing_in_the_truth() -> None:
    torch.manual_seed(0)
    truth = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (64, 64), mode="bicubic").repeat(3, 1, 1, 1)
    flicker = truth + torch.tensor([0.0, 0.3, 0.0])[:, None, None, None]
    assert temporal_difference(truth, truth, 3) == 0
    assert temporal_difference(flicker, truth, 3) == pytest.approx(0.3, abs=1e-5)
    assert flow_consistency(truth, truth, 3) < 1e-3
    assert flow_consistency(flicker, truth, 3) > 0.2


# ---- a preset of finished networks ----------------------------------------------------------------------------------
def test_a_preset_is_gathered_and_two_trainings_of_its_vae_are_mixed(networks: Path, tmp_path: Path) -> None:
    vae = checkpoints.load_temporal_vae(networks / "vae.safetensors")
    later = checkpoints.load_temporal_vae(networks / "vae.safetensors")
    with torch.no_grad():
        for value in later.parameters():
            value.add_(1)
    (tmp_path / "later").mkdir()
    checkpoints.save_native(later, tmp_path / "later" / "vae.safetensors")
    (tmp_path / "later" / "record.json").write_text('{"stage": "decoder"}')
    (tmp_path / "later" / "log.csv").write_text("step\n1\n")
    gather = ["train", "preset", "--out", str(tmp_path / "preset"), "--vae", str(networks / "vae.safetensors"),
              "--denoiser", str(networks / "denoiser.safetensors"), "--data", str(tmp_path / "later")]
    mixed = str(tmp_path / "later" / "vae.safetensors")
    assert main([*gather, "--mix-vae", mixed, "0.25"]) == 0
    found = checkpoints.load_temporal_vae(tmp_path / "preset" / "vae.safetensors", dtype=torch.float32).state_dict()
    for key, value in vae.state_dict().items():
        torch.testing.assert_close(found[key], value.float() + 0.25, atol=2e-3, rtol=2e-3)
    record = json.loads((tmp_path / "preset" / "training.json").read_text())
    assert record == {"mixed": {"vae": f"{networks.name}/vae.safetensors", "with": "later/vae.safetensors",
                                "share": 0.25}, "later": {"stage": "decoder"}}
    assert (tmp_path / "preset" / "curve_later.csv").is_file()
    again = tmp_path / "again"  # a preset among the runs hands on what it was made of
    assert main(["train", "preset", "--out", str(again), "--vae", mixed, "--data", str(tmp_path / "preset")]) == 0
    assert json.loads((again / "training.json").read_text()) == record and (again / "curve_later.csv").is_file()
    assert main([*gather, "--sharpen", "0.5"]) == 0
    crisp = checkpoints.load_temporal_vae(tmp_path / "preset" / "vae.safetensors")
    assert crisp.config == replace(vae.config, sharpen=0.5)
    record = json.loads((tmp_path / "preset" / "training.json").read_text())
    assert record["ending"] == {"vae": f"{networks.name}/vae.safetensors", "descreen": False, "sharpen": 0.5}
    assert main([*gather, "--sharpen", "-1"]) != 0
    assert main([*gather, "--descreen"]) == 0
    assert checkpoints.load_temporal_vae(tmp_path / "preset" / "vae.safetensors").config.descreen
    unfolded = checkpoints.save_native(TemporalVAE(replace(vae.config, patch=1)), tmp_path / "unfolded.safetensors")
    assert main(["train", "preset", "--out", str(again), "--vae", str(unfolded), "--descreen"]) != 0
    for file, share in ((mixed, "2"), (mixed, "much"), (str(networks / "denoiser.safetensors"), "0.5")):
        assert main([*gather, "--mix-vae", file, share]) != 0


def test_a_preset_is_gathered_into_its_own_folder(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records and curves of what it was made of stay, under whatever name the folder is given."""
    run, preset = tmp_path / "run", tmp_path / "preset"
    shutil.copytree(networks, run)
    (run / "record.json").write_text('{"stage": "decoder"}')
    (run / "log.csv").write_text("step\n1\n")
    assert main(["train", "preset", "--out", str(preset), "--vae", str(run / "vae.safetensors")]) == 0
    monkeypatch.chdir(preset)
    for out, vae in ((preset, preset), (Path("../preset"), preset), (preset, Path())):
        assert main(["train", "preset", "--out", str(out), "--vae", str(vae / "vae.safetensors")]) == 0
        assert json.loads((preset / "training.json").read_text()) == {"run": {"stage": "decoder"}}
        assert (preset / "curve_run.csv").read_text() == "step\n1\n"
    (run / "record.json").write_text('{"stage": "decoder", "steps": 2}')  # what is newer counts
    (run / "log.csv").write_text("step\n2\n")
    more = ["--vae", str(preset / "vae.safetensors"), "--denoiser", str(run / "denoiser.safetensors")]
    assert main(["train", "preset", "--out", str(preset), *more]) == 0
    assert json.loads((preset / "training.json").read_text())["run"]["steps"] == 2
    assert (preset / "curve_run.csv").read_text() == "step\n2\n"


def test_two_runs_of_one_name_are_refused(
    networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("first", "second"):
        shutil.copytree(networks, tmp_path / place / "run")
        (tmp_path / place / "run" / "record.json").write_text("{}")
    files = ["--vae", str(tmp_path / "first" / "run" / "vae.safetensors"),
             "--denoiser", str(tmp_path / "second" / "run" / "denoiser.safetensors")]
    assert main(["train", "preset", "--out", str(tmp_path / "preset"), *files]) == 2
    assert "have one name, by which a preset keeps their records; rename one" in capsys.readouterr().err
    assert not (tmp_path / "preset").exists()


def test_a_gathered_preset_restores_by_its_folder(networks: Path, tmp_path: Path) -> None:
    """It takes over the restore settings of a preset among what it was made of, and keeps those it has."""
    def gather(out: Path, source: Path) -> None:
        files = [f"--{kind}={source / name}.safetensors" for kind, name in (("vae", "vae"), ("denoiser", "denoiser"))]
        assert main(["train", "preset", "--out", str(out), *files]) == 0

    first, second = tmp_path / "first", tmp_path / "second"
    short = tmp_path / "short"  # a run of fewer steps than --log-every: it has a record and no curve
    shutil.copytree(networks, short)
    (short / "record.json").write_text("{}")
    gather(first, short)
    assert json.loads((first / "config.json").read_text()) == {"name": "first", "defaults": {}}
    assert Restorer.from_preset(str(first)).defaults == {}
    (first / "config.json").write_text('{"name": "first", "defaults": {"steps": 3}}')
    gather(second, first)
    assert Restorer.from_preset(str(second)).settings(scale=4).steps == 3
    (second / "config.json").write_text('{"name": "mine", "defaults": {"steps": 5}}')
    gather(second, first)
    assert json.loads((second / "config.json").read_text()) == {"name": "mine", "defaults": {"steps": 5}}
