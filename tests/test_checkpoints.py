"""Weight files in every known layout load to the same network; everything else gives one clear error."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import tempfile
import types
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from setevsr_core import Restorer, checkpoints
from setevsr_core.checkpoints import commands, files, key_maps, native, presets, semantic
from setevsr_core.checkpoints.building import shapes_of
from setevsr_core.errors import CheckpointError, SeTeVSRError, SettingsError
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.descreening import descreen
from setevsr_core.networks.sharpening import unsharp_mask
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig

TINY = DenoiserConfig(channels=(32, 64, 64), layers=1, head_dim=16, context_dim=24, map_channels=32, spade_hidden=32,
                      lr_channels=(32, 32, 64), lr_layers=1, lr_heads=2, semantic_levels=(1, 2),
                      temporal_sites="up", temporal_spatial_sites="mid")
TINY_VAE = VAEConfig(channels=(32, 64), layers=1, fusion_levels=(0,), growth=8)
SD_WIDTHS, SD_HEAD_DIM, SD_CONTEXT = (32, 32, 32, 64), 16, 24

State = dict[str, Tensor]


def filled(module: nn.Module, seed: int = 0) -> Any:
    """The module with random weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


@pytest.fixture(scope="module")
def sd_unet() -> Any:
    """SD 2.1's U-Net at reduced width, as diffusers builds it: the reference for every layout of it."""
    diffusers = pytest.importorskip("diffusers")
    return filled(diffusers.UNet2DConditionModel(
        block_out_channels=SD_WIDTHS, attention_head_dim=tuple(w // SD_HEAD_DIM for w in SD_WIDTHS),
        use_linear_projection=True, cross_attention_dim=SD_CONTEXT, layers_per_block=2))


@pytest.fixture(scope="module")
def sd_vae() -> Any:
    diffusers = pytest.importorskip("diffusers")
    return filled(diffusers.AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2))


def original_unet(unet: nn.Module) -> State:
    """A diffusers U-Net under the names of the original SD 2.1 single file."""
    table = key_maps.flipped(key_maps.unet_table(key_maps.Depth(4, 2, (True, True, True, False))))
    return {f"model.diffusion_model.{key_maps.rename(key, table)}": value for key, value in unet.state_dict().items()}


def original_vae(vae: nn.Module, prefix: str = "") -> State:
    """A diffusers VAE under original names; its attention projections are 1x1 convolutions there."""
    table = key_maps.flipped(key_maps.vae_table(levels=2))
    state = {key_maps.rename(key, table): value for key, value in vae.state_dict().items()}
    return {prefix + key: value[:, :, None, None] if ".attn_1." in key and value.ndim == 2 else value
            for key, value in state.items()}


def sd_single_file(unet: nn.Module, vae: nn.Module) -> State:
    """What v2-1_512-ema-pruned holds: U-Net, VAE, text tower, schedule, EMA counters."""
    other = {
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(6, 2),
        "betas": torch.zeros(1000), "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
    }
    return original_unet(unet) | original_vae(vae, "first_stage_model.") | other


@torch.no_grad()
def assert_equals_diffusers_unet(denoiser: Denoiser, unet: Any) -> None:
    latents = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    timesteps, text = torch.tensor([7, 411]), torch.randn(2, 3, SD_CONTEXT, generator=torch.Generator().manual_seed(2))
    expected = unet(latents, timesteps, encoder_hidden_states=text).sample
    found = denoiser(latents, timesteps, num_frames=2, lr_maps=denoiser.encode_lr(latents, timesteps), text=text)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def assert_equals_diffusers_vae(vae: TemporalVAE, reference: Any) -> None:
    pixels = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(3))
    mean, _, _ = vae.encode(pixels)
    decoded = vae.decode(mean, None, num_frames=2)
    torch.testing.assert_close(mean, reference.encode(pixels).latent_dist.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded, reference.decode(mean).sample, rtol=1e-4, atol=1e-5)


# ---- native files ---------------------------------------------------------------------------------------------------
def test_native_denoiser_round_trip(tmp_path: Path) -> None:
    network = filled(Denoiser(TINY))
    network.empty_text = torch.randn(1, 5, TINY.context_dim)
    path = checkpoints.save_native(network, tmp_path / "new" / "tiny.safetensors", {"note": "test"})
    info = checkpoints.identify(path)
    assert (info.kind, info.layout, info.dtype) == ("denoiser", "native", "float32")
    loaded = checkpoints.load_denoiser(path)
    assert loaded.config == TINY
    assert_same_weights(network, loaded)
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.safetensors"]
    assert files.open_source(path).metadata["note"] == "test"


def test_native_denoiser_without_metadata_is_read_off_its_shapes() -> None:
    network = filled(Denoiser(TINY))
    loaded = checkpoints.load_denoiser(network.state_dict(), head_dim=16, lr_heads=2)
    assert loaded.config == TINY
    assert_same_weights(network, loaded)


def test_native_vae_round_trip(tmp_path: Path) -> None:
    network = filled(TemporalVAE(TINY_VAE))
    path = checkpoints.save_native(network, tmp_path / "vae.safetensors")
    assert checkpoints.identify(path).kind == "vae"
    loaded = checkpoints.load_temporal_vae(path)
    assert loaded.config == TINY_VAE
    assert_same_weights(network, loaded)


@pytest.mark.parametrize("changes", [
    {"patch": 4}, {"patch": 4, "residual": True}, {"patch": 4, "refine": 4},
    {"patch": 4, "residual": True, "trunk": 2, "trunk_channels": 8, "decoder_channels": (32, 32)},
])
def test_native_vae_without_metadata_is_read_off_its_shapes(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    network = filled(TemporalVAE(replace(TINY_VAE, **changes)))
    loaded = checkpoints.load_temporal_vae(network.state_dict())
    assert loaded.config == network.config
    assert_same_weights(network, loaded)
    assert "scaling factor" in caplog.text


@torch.no_grad()
def test_a_new_trunk_and_refinement_change_no_picture_and_a_trained_one_does(tmp_path: Path) -> None:
    network = filled(TemporalVAE(replace(TINY_VAE, patch=4)))
    path = checkpoints.save_native(network, tmp_path / "vae.safetensors")
    refined = checkpoints.load_temporal_vae(path, changes={"refine": 4, "trunk": 2, "trunk_channels": 8})
    latents = torch.randn(2, 4, 3, 5)
    assert torch.equal(network.decode(latents, None, num_frames=2), refined.decode(latents, None, num_frames=2))
    filled(refined.decoder.refinement)
    assert not torch.equal(network.decode(latents, None, num_frames=2), refined.decode(latents, None, num_frames=2))


@torch.no_grad()
def test_a_vae_may_descreen_what_it_decodes(tmp_path: Path) -> None:
    network = filled(TemporalVAE(replace(TINY_VAE, patch=4)))
    path = checkpoints.save_native(network, tmp_path / "vae.safetensors")
    clean = checkpoints.load_temporal_vae(path, changes={"descreen": True, "sharpen": 0.5})
    latents = torch.randn(2, 4, 8, 10)
    woven = network.decode(latents, None, num_frames=2)
    expected = unsharp_mask(descreen(woven, 4), 0.5)
    torch.testing.assert_close(clean.decode(latents, None, num_frames=2), expected)
    assert not torch.equal(descreen(woven, 4), woven)


@torch.no_grad()
def test_a_vae_may_sharpen_what_it_decodes(tmp_path: Path) -> None:
    network = filled(TemporalVAE(TINY_VAE))
    path = checkpoints.save_native(network, tmp_path / "vae.safetensors")
    crisp = checkpoints.load_temporal_vae(path, changes={"sharpen": 0.5})
    again = checkpoints.load_temporal_vae(checkpoints.save_native(crisp, tmp_path / "crisp.safetensors"))
    assert again.config == replace(TINY_VAE, sharpen=0.5)
    latents = torch.randn(2, 4, 3, 5)
    soft = network.decode(latents, None, num_frames=2)
    torch.testing.assert_close(again.decode(latents, None, num_frames=2), unsharp_mask(soft, 0.5))
    assert not torch.equal(unsharp_mask(soft, 0.5), soft)
    assert Restorer(None, network).fingerprint(steps=0) != Restorer(None, again).fingerprint(steps=0)


def test_saving_over_the_file_in_use(tmp_path: Path) -> None:
    """Weights are views of the mapped file; writing the same path again must not change or break them."""
    path = checkpoints.save_native(filled(TemporalVAE(TINY_VAE)), tmp_path / "vae.safetensors")
    loaded = checkpoints.load_temporal_vae(path)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    checkpoints.save_native(filled(TemporalVAE(TINY_VAE), seed=1), path)
    checkpoints.save_native(loaded, path)
    assert_same_weights(loaded, checkpoints.load_temporal_vae(path))
    assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())


def test_stored_half_precision(tmp_path: Path) -> None:
    network = filled(TemporalVAE(TINY_VAE))
    path = native.save_native(network, tmp_path / "half.safetensors", dtype=torch.float16)
    assert checkpoints.identify(path).dtype == "float16"
    assert checkpoints.load_temporal_vae(path).dtype == torch.float32  # the CPU computes in float32
    half = checkpoints.load_temporal_vae(path, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert {value.dtype for value in half.state_dict().values()} == {torch.float16}


def test_a_newer_native_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"setevsr.format": "2", "setevsr.kind": "vae",
                                                     "setevsr.config": "{}"})
    with pytest.raises(CheckpointError, match="new.safetensors.*update the pack"):
        checkpoints.load_temporal_vae(path)


@pytest.mark.parametrize(("config", "reason"), [
    ("{", "carries a damaged configuration"),
    ("[1]", "carries a damaged configuration"),
    ('{"channels": 5}', "no network can be built"),
    ('{"channels": {}}', "no network can be built"),
    ('{"channels": [33, 64]}', "no network can be built"),
    ('{"channels": [32, 32], "decoder_channels": [32]}', "no network can be built .*of different numbers of levels"),
    ('{"channels": [32, 96], "layers": 1, "fusion_levels": [0], "growth": 8}', "belongs to another kind or size"),
])
def test_damaged_native_configurations(config: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(filled(TemporalVAE(TINY_VAE)).state_dict(), path,
              metadata={"setevsr.format": "1", "setevsr.kind": "vae", "setevsr.config": config})
    with pytest.raises(CheckpointError, match=f"vae.safetensors.*({reason})"):
        checkpoints.load_temporal_vae(path)


# ---- Stable Diffusion 2.1 -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["state dict", "prefixed", "single file", "lightning", "wrapped"])
def test_sd21_unet_equals_diffusers(layout: str, sd_unet: Any, sd_vae: Any) -> None:
    source: dict[str, Any] = {
        "state dict": sd_unet.state_dict(),
        "prefixed": {f"unet.{key}": value for key, value in sd_unet.state_dict().items()},
        "single file": sd_single_file(sd_unet, sd_vae),
        "lightning": {"state_dict": sd_single_file(sd_unet, sd_vae), "global_step": 5},
        "wrapped": {f"module.{key}": value for key, value in sd_unet.state_dict().items()},
    }[layout]
    denoiser = checkpoints.load_denoiser(source, head_dim=SD_HEAD_DIM)
    assert not denoiser.config.spade and not denoiser.config.baseline_temporal
    assert_equals_diffusers_unet(denoiser, sd_unet)


def test_sd21_middle_block_is_not_lost(sd_unet: Any, sd_vae: Any) -> None:
    """The middle transformer and second residual block of the original file land where MGLD-VSR's 2 and 4 do."""
    source = sd_single_file(sd_unet, sd_vae)
    mid = checkpoints.load_denoiser(source, head_dim=SD_HEAD_DIM).state_dict()
    name = "model.diffusion_model.middle_block"
    assert torch.equal(mid["unet.mid_block.attentions.0.proj_out.weight"], source[f"{name}.1.proj_out.weight"])
    assert torch.equal(mid["unet.mid_block.resnets.1.conv2.weight"], source[f"{name}.2.out_layers.3.weight"])


@pytest.mark.parametrize("layout", ["diffusers", "old diffusers", "original", "embedded", "video"])
def test_sd21_vae_equals_diffusers(layout: str, sd_unet: Any, sd_vae: Any) -> None:
    old = {new: old for old, new in key_maps.OLD_DIFFUSERS_ATTENTION.items()}

    def older(key: str) -> str:
        layer = key.rpartition(".")[0].rpartition("attentions.0.")[2]
        return key.replace(f".{layer}.", f".{old[layer]}.") if layer in old else key

    source = {
        "diffusers": sd_vae.state_dict(),
        "old diffusers": {older(key): value for key, value in sd_vae.state_dict().items()},
        "original": original_vae(sd_vae),
        "embedded": sd_single_file(sd_unet, sd_vae),
        "video": original_vae(sd_vae) | {"loss.logvar": torch.zeros(1), "loss.perceptual_loss.net.0": torch.zeros(2)},
    }[layout]
    vae = checkpoints.load_temporal_vae(source)
    assert not vae.config.temporal and vae.config.fusion_levels == ()
    assert_equals_diffusers_vae(vae, sd_vae)


def test_diffusers_folder(tmp_path: Path, sd_unet: Any, sd_vae: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name, module in (("unet", sd_unet), ("vae", sd_vae)):
        (tmp_path / name).mkdir()
        save_file(module.state_dict(), tmp_path / name / "diffusion_pytorch_model.safetensors")
    schedule = tmp_path / "scheduler" / "scheduler_config.json"
    schedule.parent.mkdir()
    schedule.write_text('{"prediction_type": "epsilon"}')
    assert_equals_diffusers_unet(checkpoints.load_denoiser(tmp_path, head_dim=SD_HEAD_DIM), sd_unet)
    assert_equals_diffusers_unet(checkpoints.load_denoiser(tmp_path / "unet", head_dim=SD_HEAD_DIM), sd_unet)
    assert_equals_diffusers_vae(checkpoints.load_temporal_vae(tmp_path), sd_vae)
    assert "predict v" not in caplog.text
    schedule.write_text('{"prediction_type": "v_prediction"}')
    checkpoints.load_denoiser(tmp_path, head_dim=SD_HEAD_DIM)
    assert "seems to predict v" in caplog.text


def test_one_bias_tells_v_prediction(sd_unet: Any, sd_vae: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = sd_single_file(sd_unet, sd_vae)
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    for spread, warned in ((0.05, False), (0.12, True)):
        checkpoints.load_denoiser(source | {name: spread * torch.tensor([-1.0, 1.0] * 16)}, head_dim=SD_HEAD_DIM)
        assert ("seems to predict v" in caplog.text) == warned


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"safe_serialization": False}])
def test_a_model_in_several_files(options: dict[str, Any], tmp_path: Path, sd_unet: Any) -> None:
    sd_unet.save_pretrained(tmp_path / "unet", max_shard_size="3MB", **options)
    shards = sorted((tmp_path / "unet").glob("*-of-*"))
    assert len(shards) > 2
    for source in (tmp_path, tmp_path / "unet", shards[1]):
        assert_equals_diffusers_unet(checkpoints.load_denoiser(source, head_dim=SD_HEAD_DIM), sd_unet)
    shards[2].unlink()
    with pytest.raises(CheckpointError, match=f"There is no file named {shards[2].name} in the folder"):
        checkpoints.load_denoiser(tmp_path, head_dim=SD_HEAD_DIM)


@pytest.mark.parametrize("wrapped", ["_orig_mod.module.{}", "module.{}", "model.diffusion_model._orig_mod.{}",
                                     "module.model.{}"])
def test_names_of_wrappers(wrapped: str, sd_unet: Any) -> None:
    state = {wrapped.format(key): value for key, value in sd_unet.state_dict().items()}
    if wrapped.startswith("model.diff"):
        names = (key.removeprefix("model.diffusion_model.") for key in original_unet(sd_unet))
        state = dict(zip(map(wrapped.format, names), sd_unet.state_dict().values(), strict=True))
    state["n_averaged"] = torch.tensor(5)  # of AveragedModel, which puts it beside the wrapped names
    assert_equals_diffusers_unet(checkpoints.load_denoiser(state, head_dim=SD_HEAD_DIM), sd_unet)


@pytest.mark.parametrize("prefix", ["", "model.", "unet.", "diffusion_model."])
def test_an_original_unet_under_any_prefix(prefix: str, sd_unet: Any) -> None:
    original = original_unet(sd_unet)
    state = {prefix + key.removeprefix("model.diffusion_model."): value for key, value in original.items()}
    assert checkpoints.load_denoiser(state, head_dim=SD_HEAD_DIM, device="meta").config.channels == SD_WIDTHS


@pytest.mark.parametrize("nested", [
    lambda state: {"ema": state, "step": 3}, lambda state: {"module": {"state_dict": state}},
    lambda state: {"model": state, "ema": {key: value + 1 for key, value in state.items()}},
    lambda state: {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "params": state},
])
def test_weights_that_a_training_program_nested(nested: Any) -> None:
    network = filled(TemporalVAE(TINY_VAE))
    assert_same_weights(network, checkpoints.load_temporal_vae(nested(network.state_dict())))


def test_sd_turbo_is_no_sdxl(sd_unet: Any, sd_vae: Any) -> None:
    """Its file comes from the program that also made SDXL, and names its only text encoder as that one's first."""
    source = original_unet(sd_unet) | original_vae(sd_vae, "first_stage_model.")
    source |= zeros(("conditioner.embedders.0.model.ln_final.weight", (4,)))
    assert checkpoints.identify(source).modules == ("denoiser (sd-original)", "vae (sd-original)")
    source |= zeros(("conditioner.embedders.1.model.ln_final.weight", (4,)))
    assert "Stable Diffusion XL" in checkpoints.identify(source).description


@pytest.mark.parametrize(("options", "message"), [
    ({"head_dim": 64}, "head_dim is 64, but the attention layers of the given state dict are 32, 64 channels wide"),
    ({"head_dim": 24}, "head_dim is 24"), ({"head_dim": 0}, "head_dim is 0"), ({"head_dim": 16.0}, "head_dim is 16.0"),
    ({"lr_heads": 3}, "lr_heads is 3, but the LR encoder of the given state dict"), ({"lr_heads": 0}, "lr_heads is 0"),
    ({"dtype": "float16"}, "dtype is 'float16'"), ({"dtype": torch.int8}, "dtype is torch.int8"),
])
def test_arguments_that_no_network_can_have(options: dict[str, Any], message: str) -> None:
    state = filled(Denoiser(TINY)).state_dict()
    with pytest.raises(SettingsError, match=message):
        checkpoints.load_denoiser(state, **{"head_dim": 16, "lr_heads": 2, **options})


def test_lightning_ckpt_with_its_records(tmp_path: Path, sd_unet: Any, sd_vae: Any,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Real SD and MGLD-VSR files name a Lightning callback and NumPy numbers; neither may be needed or run."""
    module: Any = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "sd.ckpt"
    torch.save({"state_dict": sd_single_file(sd_unet, sd_vae), "global_step": 7,
                "callbacks": {module.ModelCheckpoint: {"best_model_score": numpy.float64(0.5)}}}, path)
    monkeypatch.undo()
    assert "pytorch_lightning" not in sys.modules
    assert_equals_diffusers_unet(checkpoints.load_denoiser(path, head_dim=SD_HEAD_DIM), sd_unet)
    assert_equals_diffusers_vae(checkpoints.load_temporal_vae(path), sd_vae)
    info = checkpoints.identify(path)
    assert (info.kind, info.layout) == ("denoiser", "sd-original")
    assert info.modules == ("denoiser (sd-original)", "vae (sd-original)")


def test_files_from_before_torch_1_6(tmp_path: Path, sd_vae: Any) -> None:
    path = tmp_path / "old.pt"
    torch.save(original_vae(sd_vae), path, _use_new_zipfile_serialization=False)
    assert_equals_diffusers_vae(checkpoints.load_temporal_vae(path), sd_vae)


@torch.no_grad()
def test_modules_added_for_training_change_nothing_yet(sd_unet: Any) -> None:
    """From SD 2.1, SeAM, temporal transformer and TSAM start as identities; SPADE and LR encoder start trainable."""
    added = {"semantic_levels": (0, 1, 2, 3), "temporal_sites": "all", "temporal_spatial_sites": "all"}
    denoiser = checkpoints.load_denoiser(sd_unet.state_dict(), head_dim=SD_HEAD_DIM, changes=added)
    assert_equals_diffusers_unet(denoiser, sd_unet)
    semantics = torch.randn(2, 256, 4, 4)
    latents, timesteps, text = torch.randn(2, 4, 8, 8), torch.tensor([3, 3]), torch.randn(1, 2, SD_CONTEXT)
    common: dict[str, Any] = {"num_frames": 2, "lr_maps": [], "text": text}
    assert torch.equal(denoiser(latents, timesteps, semantics=semantics, **common),
                       denoiser(latents, timesteps, **common))
    with_spade = checkpoints.load_denoiser(sd_unet.state_dict(), head_dim=SD_HEAD_DIM,
                                           changes={**added, "spade": True, "map_channels": 32,
                                                    "lr_channels": (32, 32, 32, 32)})
    assert all(not value.is_meta and value.isfinite().all() for value in with_spade.state_dict().values())
    assert len(with_spade.encode_lr(latents, timesteps)) == 4


@torch.no_grad()
def test_adding_a_module_keeps_the_trained_ones(tmp_path: Path) -> None:
    network = filled(Denoiser(TINY))
    path = checkpoints.save_native(network, tmp_path / "stage1.safetensors")
    grown = checkpoints.load_denoiser(path, changes={"temporal_spatial_sites": "all"})
    assert grown.config == replace(TINY, temporal_spatial_sites="all")
    trained, state = network.state_dict(), grown.state_dict()
    assert all(torch.equal(state[key], value) for key, value in trained.items())
    assert {key for key in state if key not in trained} == {key for key in state if ".temporal_spatial." in key
                                                            and "mid_block" not in key}
    assert not any(state[key].any() for key in state if key not in trained and ".mlp_out." in key)


# ---- MGLD-VSR -------------------------------------------------------------------------------------------------------
def test_mgld_lightning_file(tmp_path: Path) -> None:
    """Names of mgldvsr_unet.ckpt under the Lightning nesting, with its flow and text networks beside."""
    config = replace(TINY, channels=(32, 64, 64, 64), layers=2, lr_channels=(32, 32, 64, 64), lr_layers=2,
                     semantic_levels=(), temporal_sites="none", temporal_spatial_sites="none")
    network = filled(Denoiser(config))
    assert network.lr_encoder is not None
    depth = key_maps.Depth(4, 2, (True, True, True, False), (0, 2, 4))
    unet = key_maps.flipped(key_maps.unet_table(depth))
    encoder = key_maps.flipped(key_maps.lr_encoder_table(depth))
    state = {f"model.diffusion_model.{key_maps.rename(key, unet)}": value
             for key, value in network.unet.state_dict().items()}
    state |= {f"structcond_stage_model.{key_maps.rename(key, encoder)}": value
              for key, value in network.lr_encoder.state_dict().items()}
    state |= zeros(("flownet_model.fnet.conv1.weight", (1,)), ("flownet_model.update_block.mask.0.weight", (1,)),
                   ("cond_stage_model.model.transformer.resblocks.0.ln_1.weight", (1,)))
    path = tmp_path / "mgldvsr_unet.ckpt"
    torch.save({"state_dict": state, "global_step": 42000}, path)
    assert checkpoints.identify(path).layout == "mgld-vsr"
    loaded = checkpoints.load_denoiser(path, head_dim=16, lr_heads=2)
    assert loaded.config == config
    assert_same_weights(network, loaded)


# ---- SAM 2 ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "width", "stages"), [
    ("tiny", 96, (1, 2, 7, 2)), ("small", 96, (1, 2, 11, 2)), ("base_plus", 112, (2, 3, 16, 3)),
    ("large", 144, (2, 6, 36, 4)),
])
def test_sam2_sizes_are_told_by_shapes(size: str, width: int, stages: tuple[int, ...]) -> None:
    trunk = "image_encoder.trunk"
    shapes: dict[str, tuple[int, ...]] = {f"{trunk}.patch_embed.proj.weight": (width, 3, 7, 7)}
    starts = [sum(stages[:i]) for i in range(1, 4)]
    for block in range(sum(stages)):
        shapes[f"{trunk}.blocks.{block}.norm1.weight"] = (1,)
        if block in starts:
            shapes[f"{trunk}.blocks.{block}.proj.weight"] = (1, 1)
    assert semantic.read_config(shapes, "file") == semantic.SemanticEncoderConfig.sam2(size)


def test_unknown_sam2_size() -> None:
    trunk = "image_encoder.trunk"
    shapes = {f"{trunk}.patch_embed.proj.weight": (80, 3, 7, 7), f"{trunk}.blocks.0.norm1.weight": (1,)}
    with pytest.raises(CheckpointError, match=r"width 80, stages \[1\].*tiny, small, base_plus, large"):
        semantic.read_config(shapes, "file")


def test_sam2_official_and_native_files(tmp_path: Path) -> None:
    pytest.importorskip("sam2")
    from setevsr_core.networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig

    network = filled(SemanticEncoder(SemanticEncoderConfig.sam2("tiny")))
    official = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": {**network.state_dict(), "memory_encoder.fuser.weight": torch.zeros(3),
                          "obj_ptr_tpos_proj.weight": torch.zeros(3)}}, official)
    assert checkpoints.identify(official).layout == "sam2"
    loaded = checkpoints.load_semantic_encoder(official)
    assert loaded.config == network.config
    assert_same_weights(network, loaded)
    small = filled(SemanticEncoder(SemanticEncoderConfig.nano()))
    path = checkpoints.save_native(small, tmp_path / "nano.safetensors")
    loaded = checkpoints.load_semantic_encoder(path)
    assert loaded.config == small.config
    assert_same_weights(small, loaded)


@pytest.mark.parametrize("change", [{"stages": [1, 1]}, {"stages": 5}, {"windows": [8]}, {"embed_dim": -4}])
def test_damaged_configurations_of_a_semantic_encoder(change: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("sam2")
    from setevsr_core.networks.semantic_encoder import SemanticEncoderConfig

    path = tmp_path / "encoder.safetensors"
    config = json.dumps({**SemanticEncoderConfig.nano().to_dict(), **change})
    save_file(zeros(("a", (1,))), path, metadata={"setevsr.format": "1", "setevsr.kind": "semantic_encoder",
                                                  "setevsr.config": config})
    with pytest.raises(CheckpointError, match="encoder.safetensors asks for sizes from which no network can be built"):
        checkpoints.load_semantic_encoder(path)


@pytest.mark.parametrize("name", ["image_encoder.trunk.patch_embed.proj.weight",
                                  "image_encoder.neck.convs.0.conv.weight"])
def test_a_missing_tensor_by_which_sam2_is_known(name: str) -> None:
    pytest.importorskip("sam2")
    from setevsr_core.networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig

    state = SemanticEncoder(SemanticEncoderConfig.sam2("tiny")).state_dict()
    del state[name]
    with pytest.raises(CheckpointError, match=f"{name}.*incomplete|incomplete.*{name}"):
        checkpoints.load_semantic_encoder({f"model.{key}": value for key, value in state.items()})


# ---- presets --------------------------------------------------------------------------------------------------------
def test_preset_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    checkpoints.save_native(filled(Denoiser(TINY)), folder / "denoiser.safetensors")
    checkpoints.save_native(filled(TemporalVAE(TINY_VAE)), folder / "vae.safetensors")
    with pytest.raises(CheckpointError, match="is not a preset.*denoiser.safetensors, vae.safetensors"):
        checkpoints.load_preset(folder)
    (folder / "config.json").write_text(json.dumps({"defaults": {"steps": 10}}))
    preset = checkpoints.load_preset(folder)
    assert (preset.name, preset.defaults, preset.encoder) == ("mine", {"steps": 10}, None)
    assert (preset.denoiser.config, preset.vae.config) == (TINY, TINY_VAE)


def test_presets_are_listed_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert checkpoints.list_presets() == ["a", "b"]
    with pytest.raises(CheckpointError, match="no preset 'c'; installed presets: a, b"):
        checkpoints.load_preset("c")
    with pytest.raises(CheckpointError, match="a name or a folder, got None; installed presets: a, b"):
        checkpoints.load_preset(None)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a CUDA device that is not there")
@pytest.mark.parametrize("load", [
    lambda: checkpoints.load_denoiser(filled(Denoiser(TINY)).state_dict(), head_dim=8, device="cuda"),
    lambda: checkpoints.load_temporal_vae(filled(TemporalVAE(TINY_VAE)).state_dict(), device="cuda"),
])
def test_a_device_that_is_not_there_is_named(load: Any) -> None:
    with pytest.raises(SettingsError, match="device is 'cuda', which cannot compute here"):
        load()


# ---- files that are something else ----------------------------------------------------------------------------------
def zeros(*shapes: tuple[str, tuple[int, ...]]) -> State:
    return {key: torch.zeros(shape) for key, shape in shapes}


UNET_STEM = (("input_blocks.0.0.weight", (320, 4, 3, 3)), ("input_blocks.1.0.in_layers.0.weight", (320,)),
             ("out.2.weight", (4, 320, 3, 3)))


def stem(*more: tuple[str, tuple[int, ...]]) -> State:
    return {f"model.diffusion_model.{key}": value for key, value in zeros(*UNET_STEM, *more).items()}


def diffusers_stem(*more: tuple[str, tuple[int, ...]]) -> State:
    return zeros(("conv_in.weight", (8, 4, 3, 3)), ("time_embedding.linear_1.weight", (8, 8)),
                 ("conv_norm_out.weight", (8,)), *more)


@pytest.mark.parametrize(("tensors", "what"), [
    (zeros(("lora_unet_down_blocks_0.lora_up.weight", (4, 4)), ("lora_unet_down_blocks_0.lora_down.weight", (4, 4))),
     "a LoRA"),
    (stem(("label_emb.0.0.weight", (8, 8))), "a Stable Diffusion XL model"),
    (zeros(("conv_in.weight", (8, 4, 3, 3)), ("time_embedding.linear_1.weight", (8, 8)),
           ("conv_norm_out.weight", (8,)), ("add_embedding.linear_1.weight", (8, 8))), "a Stable Diffusion XL model"),
    (stem(("input_blocks.1.1.proj_in.weight", (320, 320, 1, 1))), "a Stable Diffusion 1.x U-Net"),
    ({**stem(), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 9, 3, 3)}, "an inpainting"),
    (stem(("label_emb.0.0.weight", (8, 8))) | {"noise_augmentor.data_mean": torch.zeros(1)},
     "a Stable Diffusion unCLIP"),
    (stem(("label_emb.0.0.weight", (8, 8)), ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (8, 1024))),
     "a Stable Diffusion unCLIP"),
    (diffusers_stem(("class_embedding.linear_1.weight", (8, 8))), "a Stable Diffusion unCLIP"),
    (diffusers_stem(("conv_in.weight", (8, 7, 3, 3)), ("class_embedding.weight", (8, 8))),
     "an inpainting, depth or upscaling"),
    (diffusers_stem(("down_blocks.0.temp_convs.0.conv1.0.weight", (8,))), "another video model"),
    (diffusers_stem(("conv_in.weight", (8, 8, 3, 3)), ("add_embedding.linear_1.weight", (8, 8)),
                    ("down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight", (8,))),
     "another video model"),
    (stem(("label_emb.0.0.weight", (8, 8)), ("input_blocks.1.0.time_stack.in_layers.0.weight", (8,))),
     "another video model"),
    (stem(("input_blocks.1.0.temopral_conv.conv1.0.weight", (8,))), "another video model"),
    (zeros(("image_encoder.patch_embed.seq.0.c.weight", (8, 3, 3, 3))), "a first-generation SAM model"),
    (zeros(("vision_encoder.patch_embed.projection.weight", (8, 3, 16, 16))), "a first-generation SAM model"),
    (zeros(("image_encoder.trunk.body.stem.conv.weight", (8, 3, 3, 3)),
           ("image_encoder.neck.convs.0.conv.weight", (256, 8, 1, 1))), "an EdgeTAM model"),
    (zeros(("encoder.block.0.layer.0.SelfAttention.k.weight", (8, 8))), "a T5 text encoder"),
    (zeros(("controlnet_cond_embedding.conv_in.weight", (4, 3, 3, 3))), "a ControlNet"),
    (zeros(("image_encoder.trunk.patch_embed.proj.weight", (96, 3, 7, 7)),
           ("image_encoder.neck.convs.0.conv.weight", (256, 8, 1, 1))), "a SAM 2 image encoder"),
    (zeros(("weight", (2, 2))), "of an unknown kind"),
])
def test_strangers_are_named(tensors: State, what: str, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_denoiser(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is {what}") and "expected a SeTe-VSR denoiser" in message
    assert checkpoints.identify(path).description.startswith(what)


@pytest.mark.parametrize(("changes", "what"), [
    ({"decoder.up_blocks.0.resnets.0.temporal_res_block.norm1.weight": (8,)}, "is the VAE of Stable Video Diffusion"),
    ({"quantize.embedding.weight": (8, 4)}, "is a VQ autoencoder"),
    ({"decoder.condition_encoder.layers.0.weight": (8, 3, 3, 3)}, "is an asymmetric VAE"),
    ({"bn.running_mean": (8,)}, "is the VAE of Flux.2"),
    ({"quant_conv.weight": None, "quant_conv.bias": None, "post_quant_conv.weight": None, "post_quant_conv.bias": None},
     "is a VAE without quantisation convolutions"),
])
def test_vaes_of_other_models_are_named(changes: dict[str, Any], what: str, sd_vae: Any) -> None:
    state = {**sd_vae.state_dict(), **{key: torch.zeros(shape) for key, shape in changes.items() if shape}}
    state = {key: value for key, value in state.items() if changes.get(key, ()) is not None}
    with pytest.raises(CheckpointError, match=f"{what}.*; expected a SeTe-VSR VAE"):
        checkpoints.load_temporal_vae(state)
    assert checkpoints.identify(state).kind == "unknown"


def test_the_vae_of_the_x4_upscaler_is_named() -> None:
    """It has SD's names, but one level less and other latents: it would give pictures of half the size, in silence."""
    state = TemporalVAE(VAEConfig(channels=(128, 256, 512), layers=2, temporal=False, fusion_levels=()),
                        device="meta").state_dict()
    with pytest.raises(CheckpointError, match="is the VAE of Stable Diffusion's x4 upscaler; expected"):
        checkpoints.load_temporal_vae(state, device="meta")
    ours = VAEConfig(channels=(128, 256, 512), layers=2, fusion_levels=(0,))  # of that size, too, but of this project
    state = TemporalVAE(ours, device="meta").state_dict()
    assert checkpoints.load_temporal_vae(state, device="meta").config == ours


def test_the_vae_of_unclip_is_that_of_sd21(sd_unet: Any, sd_vae: Any) -> None:
    source = sd_single_file(sd_unet, sd_vae) | zeros(("noise_augmentor.data_mean", (1,)))
    assert checkpoints.identify(source).modules == ("vae (sd-original)",)
    assert_equals_diffusers_vae(checkpoints.load_temporal_vae(source), sd_vae)


def test_layers_that_this_network_lacks_are_never_left_out_in_silence(sd_unet: Any, sd_vae: Any) -> None:
    """A model made from SD 2.1 with layers of its own computes something else without them."""
    for name in ("time_embedding.cond_proj.weight", "down_blocks.0.image_attentions.0.norm.weight",
                 "encoder_hid_proj.weight"):
        state = {**sd_unet.state_dict(), name: torch.zeros(3)}
        with pytest.raises(CheckpointError, match=f"1 of [0-9]+ tensors have no place in this network, .* unet.{name}"):
            checkpoints.load_denoiser(state, head_dim=SD_HEAD_DIM, device="meta")
    with pytest.raises(CheckpointError, match="no place in this network, such as decoder.adapter.weight"):
        checkpoints.load_temporal_vae({**sd_vae.state_dict(), "decoder.adapter.weight": torch.zeros(3)})


@pytest.mark.parametrize(("load", "tensors"), [
    (checkpoints.load_denoiser, stem(("input_blocks.x.weight", (1,)))),
    (checkpoints.load_temporal_vae, zeros(("encoder.down.0.block.0.norm1.weight", (4,)), ("quant_conv.weight", (4,)),
                                          ("decoder.up.0.block.0.norm1.weight", (4,)), ("encoder.down.x.a", (1,)))),
    (checkpoints.load_semantic_encoder, zeros(("backbone.patch_embed.projection.weight", (4, 3, 7, 7)),
                                              ("neck.convs.0.weight", (4,)), ("backbone.blocks.x.weight", (1,)))),
])
def test_names_that_cannot_be_read(load: Any, tensors: State, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="odd.safetensors looks like .*damaged or of another kind"):
        load(path)
    with pytest.raises(CheckpointError, match="odd.safetensors looks like"):
        command_line("info", str(path))


def test_wrong_kind_is_named(tmp_path: Path, sd_vae: Any) -> None:
    path = checkpoints.save_native(filled(TemporalVAE(TINY_VAE)), tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="vae.safetensors is a VAE .*; expected a SeTe-VSR denoiser"):
        checkpoints.load_denoiser(path)
    with pytest.raises(CheckpointError, match="is a VAE .*; expected a SeTe-VSR semantic encoder or an official SAM 2"):
        checkpoints.load_semantic_encoder(sd_vae.state_dict())


def test_the_unusable_unet_of_a_complete_checkpoint_is_named(sd_vae: Any) -> None:
    """SD 1.5's checkpoint in the denoiser's place: that a VAE is in it too is not the point."""
    source = zeros(("model.diffusion_model.input_blocks.1.1.proj_in.weight", (8, 8, 1, 1)))
    source |= original_vae(sd_vae, "first_stage_model.")
    with pytest.raises(CheckpointError, match=r"is a Stable Diffusion 1.x U-Net, with a VAE \(.*\); expected"):
        checkpoints.load_denoiser(source)
    assert checkpoints.identify(source).kind == "vae"


def test_quantised_weights_are_refused(sd_vae: Any) -> None:
    state = sd_vae.state_dict()
    key = "encoder.mid_block.resnets.0.conv1"
    for change in ({f"{key}.scale_weight": torch.ones(1)}, {f"{key}.weight": state[f"{key}.weight"].to(torch.int8)}):
        with pytest.raises(CheckpointError, match=f"quantised weights, which are not supported: {key}"):
            checkpoints.load_temporal_vae({**state, **change})


def test_the_config_beside_a_vae_tells_sdxl(tmp_path: Path, sd_vae: Any) -> None:
    sd_vae.save_pretrained(tmp_path / "vae")
    checkpoints.load_temporal_vae(tmp_path)
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.13025}))
    with pytest.raises(CheckpointError, match="is a VAE with the scaling factor 0.13025"):
        checkpoints.load_temporal_vae(tmp_path)


def test_sdxl_vae_is_refused(sd_vae: Any) -> None:
    """It has the very same tensors as SD 2.1's, but another latent space."""
    source = original_vae(sd_vae, "first_stage_model.") | stem(("label_emb.0.0.weight", (8, 8)))
    with pytest.raises(CheckpointError, match="a Stable Diffusion XL model; expected a SeTe-VSR VAE"):
        checkpoints.load_temporal_vae(source)


def test_incomplete_and_mismatching_files(sd_unet: Any) -> None:
    state = dict(sd_unet.state_dict())
    del state["up_blocks.1.resnets.0.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"1 of [0-9]+ tensors are missing, such as unet.up_blocks.1.resnets.0"):
        checkpoints.load_denoiser(state, head_dim=SD_HEAD_DIM)
    state["up_blocks.1.resnets.0.conv1.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"conv1.weight is \[3\]"):
        checkpoints.load_denoiser(state, head_dim=SD_HEAD_DIM)
    with pytest.raises(CheckpointError, match="lacks.*it is incomplete"):
        checkpoints.load_denoiser({key: value for key, value in sd_unet.state_dict().items() if "attn2" not in key})


@pytest.mark.parametrize("name", [
    "conv_in.weight", "time_embedding.linear_1.weight", "conv_norm_out.weight", "down_blocks.1.resnets.0.conv1.weight",
])
def test_a_missing_tensor_by_which_a_unet_is_known(name: str, sd_unet: Any) -> None:
    state = {key: value for key, value in sd_unet.state_dict().items() if key != name}
    with pytest.raises(CheckpointError, match=f"incomplete|lacks 'unet.{name}'.* incomplete"):
        checkpoints.load_denoiser(state, head_dim=SD_HEAD_DIM, device="meta")


@pytest.mark.parametrize("name", [
    "unet.mid_block.resnets.0.spade.mlp_shared.0.weight", "unet.mid_block.temporal_convs.0.temporal_conv.weight",
])
def test_a_missing_tensor_does_not_switch_off_the_modules_of_its_kind(name: str) -> None:
    state = {key: value for key, value in filled(Denoiser(TINY)).state_dict().items() if key != name}
    with pytest.raises(CheckpointError, match=name):
        checkpoints.load_denoiser(state, head_dim=16, lr_heads=2, device="meta")


@pytest.mark.parametrize("name", ["encoder.down_blocks.0.resnets.0.norm1.weight", "post_quant_conv.weight",
                                  "decoder.up_blocks.0.resnets.0.norm1.weight", "encoder.conv_in.weight"])
def test_a_missing_tensor_by_which_a_vae_is_known(name: str, sd_vae: Any) -> None:
    state = {key: value for key, value in sd_vae.state_dict().items() if key != name}
    with pytest.raises(CheckpointError, match=f"{name}.*incomplete|incomplete.*{name}"):
        checkpoints.load_temporal_vae(state)
    state[name] = torch.zeros(())
    with pytest.raises(CheckpointError, match=rf"{name} is \[\]"):
        checkpoints.load_temporal_vae(state)


def test_half_a_vae_is_incomplete(sd_vae: Any) -> None:
    state = {key: value for key, value in original_vae(sd_vae).items() if key.startswith("decoder.")}
    with pytest.raises(CheckpointError, match="without quantisation|lacks"):
        checkpoints.load_temporal_vae(state)


def test_weights_that_are_no_numbers_name_the_file(tmp_path: Path, sd_vae: Any) -> None:
    state = dict(sd_vae.state_dict())
    name = "decoder.mid_block.resnets.0.conv1.weight"
    path = tmp_path / "diverged.safetensors"
    save_file(state | {name: state[name] * float("nan")}, path)
    with pytest.raises(CheckpointError, match=f"diverged.safetensors is damaged: 1 tensors hold NaN .*{name}"):
        checkpoints.load_temporal_vae(path)
    large = state | {name: torch.full_like(state[name], 1e6)}
    checkpoints.load_temporal_vae(large, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="load it in bfloat16"):
        checkpoints.load_temporal_vae(large, dtype=torch.float16)


@pytest.mark.parametrize("source", [None, 5, [("a", 1)], nn.Identity(), b"x"])
def test_what_weights_cannot_be_read_from(source: Any) -> None:
    with pytest.raises(CheckpointError, match=f"from a {type(source).__name__}; give the path of a file or folder"):
        checkpoints.load_denoiser(source)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read|There is no file"):
        checkpoints.load_denoiser(name)


def test_mgld_without_its_lr_encoder_is_incomplete() -> None:
    network = filled(Denoiser(TINY))
    depth = key_maps.Depth(3, 1, (True, True, False), (0, 2, 4))
    table = key_maps.flipped(key_maps.unet_table(depth))
    state = {key_maps.rename(key, table): value for key, value in network.unet.state_dict().items()}
    with pytest.raises(CheckpointError, match="incomplete.*lr_encoder."):
        checkpoints.load_denoiser(state, head_dim=16, lr_heads=2)


@pytest.mark.parametrize("signature", [b"\x80", b"PK", b" <"])
def test_a_header_length_is_not_taken_for_another_format(signature: bytes, tmp_path: Path) -> None:
    """The first bytes of a safetensors file are a number; it may spell the start of a pickle, zip file or web page."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header = header.ljust(int.from_bytes(signature, "little"))
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes().startswith(signature)
    assert torch.equal(files.read_file(path).tensors["a"], torch.zeros(1))


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = checkpoints.save_native(filled(TemporalVAE(TINY_VAE)), tmp_path / "cut.safetensors")
    for length in (path.stat().st_size - 100, 40, 9, 3):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match="cut.safetensors is not a complete safetensors file"):
            checkpoints.load_temporal_vae(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_ckpt(zipped: bool, tmp_path: Path, sd_vae: Any) -> None:
    path = tmp_path / "cut.ckpt"
    torch.save({"state_dict": original_vae(sd_vae)}, path, _use_new_zipfile_serialization=zipped)
    for length in (path.stat().st_size // 2, 30, 20):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match="cut.ckpt is not a complete torch file"):
            checkpoints.load_temporal_vae(path)


MARKER = Path(tempfile.gettempdir()) / f"setevsr_payload_{os.getpid()}"


class Payload:
    """Unpickling this runs a shell command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo > {MARKER}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("writer", "reason"), [
    ("torch", "evil.ckpt was refused: .*asks to run '(posix|nt).system'"),
    ("torch legacy", "evil.ckpt was refused: .*asks to run '(posix|nt).system'"),
    ("pickle", "evil.ckpt was refused: it is no torch weight file but some other Python pickle"),
])
def test_a_pickle_with_code_is_refused(writer: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": {"weight": torch.zeros(2)}, "extra": Payload()}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    MARKER.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=reason):
        checkpoints.load_denoiser(path)
    assert not MARKER.exists()


def test_a_pytorch_that_runs_code_of_weight_files_opens_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights-only reader can be made to run code: CVE-2025-32434."""
    path = tmp_path / "x.ckpt"
    torch.save({"weight": torch.zeros(2)}, path)
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.5.1+cu121"))
    with pytest.raises(CheckpointError, match=r"x.ckpt was refused: PyTorch before 2.6 \(here 2.5.1\+cu121\)"):
        checkpoints.identify(path)


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer.*git lfs pull"),
    (b"<!DOCTYPE html><html>", "is a web page"),
    (b"\xef\xbb\xbf<!DOCTYPE html><html>", "is a web page"),
    (b"GGUF\x03\x00", "is a GGUF file"),
    (b"\x1f\x8b\x08\x00" + bytes(99), "is a packed archive"),
    (b"unet/".ljust(257, b"\0") + b"ustar" + bytes(250), "is a packed archive"),
    (bytes(600), "begins with zeros alone"),
    (b"hello, I am no weights", "is neither a safetensors file nor a torch file"),
])
def test_files_that_are_no_weights(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"x.ckpt {reason}"):
        checkpoints.identify(path)


def test_a_settings_file_and_a_link_to_nothing(tmp_path: Path) -> None:
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="index.json is a settings file, not the weights; pick the weight file"):
        checkpoints.identify(index)
    (tmp_path / "x.ckpt").symlink_to(tmp_path / "gone.ckpt")
    with pytest.raises(CheckpointError, match="x.ckpt is a link to .*gone.ckpt, which does not exist"):
        checkpoints.identify(tmp_path / "x.ckpt")


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_a_zip_of_weights_is_to_be_unpacked(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("v2-1_512-ema-pruned.ckpt", b"x")
    with pytest.raises(CheckpointError, match=f"{name} is a zip archive.*with v2-1_512-ema-pruned.ckpt; unpack it"):
        checkpoints.identify(tmp_path / name)


@pytest.mark.filterwarnings("ignore:'torch.load' received")
def test_torchscript_and_what_is_no_state_dict(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(layer, torch.zeros(1, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="script.pt is a TorchScript program"):
        checkpoints.identify(tmp_path / "script.pt")
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(CheckpointError, match="is the state of an optimizer"):
        checkpoints.identify(optimizer.state_dict())
    two = {"image_proj": {"weight": torch.zeros(1)}, "ip_adapter": {"weight": torch.zeros(1)}}
    with pytest.raises(CheckpointError, match=r"holds several groups of tensors \(image_proj, ip_adapter\)"):
        checkpoints.identify(two)


@pytest.mark.parametrize("answer", [b"Entry not found", b'{"error":"Invalid credentials"}'])
def test_what_a_server_answered_is_no_safetensors_file(answer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(answer)
    with pytest.raises(CheckpointError, match=f"x.safetensors is neither .* but text, .*{answer.decode()[:20]}"):
        checkpoints.identify(path)


def test_missing_files_name_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_denoiser(tmp_path / "gone.safetensors")
    assert all(part in str(caught.value) for part in ("gone.safetensors", str(tmp_path), "other.safetensors"))
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        checkpoints.load_temporal_vae(tmp_path / "nowhere" / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no .*\(looked in unet/, denoiser/, the folder itself\).*other"):
        checkpoints.load_denoiser(tmp_path)
    assert issubclass(CheckpointError, SeTeVSRError)


@pytest.mark.parametrize("source", [{}, {"epoch": 3}, {"state_dict": {}}])
def test_nothing_in_it(source: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        checkpoints.load_denoiser(source)


# ---- commands -------------------------------------------------------------------------------------------------------
def command_line(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    return args.run(args)


def test_info_command(tmp_path: Path, sd_unet: Any, sd_vae: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sd.safetensors"
    save_file({key: value.contiguous() for key, value in sd_single_file(sd_unet, sd_vae).items()}, path)
    assert command_line("info", str(path)) == 0
    text = capsys.readouterr().out
    size = sum(value.numel() for value in sd_unet.state_dict().values())
    assert f"denoiser.unet: {size:,}" in text and "usable as: denoiser (sd-original), vae (sd-original)" in text
    save_file(zeros(("a.lora_up.weight", (2, 2))), path)
    assert command_line("info", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "unknown"


def test_info_counts_trunk_and_refinement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = TemporalVAE(replace(TINY_VAE, patch=4, residual=True, trunk=2, trunk_channels=8, refine=4))
    assert command_line("info", str(checkpoints.save_native(vae, tmp_path / "vae.safetensors"))) == 0
    text = capsys.readouterr().out
    for name in ("trunk", "refinement"):
        size = sum(value.numel() for value in getattr(vae.decoder, name).parameters())
        assert f"vae.decoder: {name}: {size:,}" in text


@pytest.mark.parametrize("kind", [None, "vae"])
def test_convert_command(kind: str | None, tmp_path: Path, sd_unet: Any, sd_vae: Any) -> None:
    source, target = tmp_path / "sd.ckpt", tmp_path / "out.safetensors"
    torch.save({key: value.half() for key, value in sd_single_file(sd_unet, sd_vae).items()}, source)
    options = ["--kind", kind] if kind else []
    assert command_line("convert", str(source), str(target), "--head-dim", str(SD_HEAD_DIM), *options) == 0
    info = checkpoints.identify(target)
    assert (info.kind, info.layout, info.dtype) == (kind or "denoiser", "native", "float16")
    if kind is None:
        assert checkpoints.load_denoiser(target).config.head_dim == SD_HEAD_DIM
    assert shapes_of(files.open_source(target).tensors)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_the_empty_text_of_a_file_is_stored_whatever_its_shape(ending: str, tmp_path: Path) -> None:
    width = TINY.context_dim
    source, target = tmp_path / "denoiser.safetensors", tmp_path / "out.safetensors"
    checkpoints.save_native(filled(Denoiser(TINY)), source)
    write = save_file if ending == ".safetensors" else torch.save
    text, path = torch.randn(3, width), tmp_path / f"text{ending}"
    for stored in (text, text[None].clone()):
        write({"text": stored}, path)
        assert command_line("convert", str(source), str(target), "--empty-text", str(path)) == 0
        assert torch.equal(files.open_source(target).tensors["empty_text"], text[None])
    for wrong in ({"a": text, "b": text.clone()}, {"text": text[:, 1:].clone()}, {"text": torch.zeros(2, 3, width)}):
        write(wrong, path)
        with pytest.raises(CheckpointError, match=f"text{ending} holds . tensors, such as .*; expected one text embed"):
            command_line("convert", str(source), str(target), "--empty-text", str(path))


def test_convert_says_what_it_cannot_do(tmp_path: Path) -> None:
    source = str(checkpoints.save_native(filled(TemporalVAE(TINY_VAE)), tmp_path / "vae.safetensors"))
    with pytest.raises(SeTeVSRError, match="--lora, --light and --empty-text are for a denoiser.*comes a vae"):
        command_line("convert", source, str(tmp_path / "out.safetensors"), "--lora", source, "1")
    with pytest.raises(CheckpointError, match="out.safetensors cannot be written"):
        command_line("convert", source, f"{source}/out.safetensors")


def test_convert_keeps_the_record_of_a_native_file(tmp_path: Path) -> None:
    network, record = filled(TemporalVAE(TINY_VAE)), {"training": "100 steps"}
    source = checkpoints.save_native(network, tmp_path / "vae.safetensors", record)
    target = tmp_path / "half.safetensors"
    assert command_line("convert", str(source), str(target), "--dtype", "float16") == 0
    kept = files.open_source(target).metadata
    assert (kept["training"], kept["source"]) == ("100 steps", "vae.safetensors")
    assert checkpoints.load_temporal_vae(target).config == TINY_VAE


@pytest.mark.parametrize(("weights", "others", "expected"), [
    (torch.float16, torch.float32, "float16"), (torch.float8_e4m3fn, torch.float8_e4m3fn, "float8_e4m3fn"),
    (torch.float8_e4m3fn, torch.float16, "float16"),
])
def test_convert_keeps_the_type_of_most_weights(
    weights: torch.dtype, others: torch.dtype, expected: str, tmp_path: Path, sd_vae: Any
) -> None:
    source, target = tmp_path / "vae.safetensors", tmp_path / "out.safetensors"
    state = {key: value.to(weights if value.ndim > 1 else others) for key, value in sd_vae.state_dict().items()}
    save_file({**state, "loss.logvar": torch.zeros(3, dtype=torch.float64)}, source)
    assert command_line("convert", str(source), str(target)) == 0
    assert checkpoints.identify(target).dtype == expected
