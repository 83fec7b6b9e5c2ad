"""Full size, on meta tensors: parameter counts and tensor names of MGLD-VSR and Stable Diffusion 2.1."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from setevsr_core.checkpoints import denoiser as denoisers
from setevsr_core.checkpoints import key_maps, registry
from setevsr_core.checkpoints import vae as vaes
from setevsr_core.checkpoints.building import shapes_of
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig

BASELINE = DenoiserConfig.sd21(semantic_levels=(), temporal_sites="none", temporal_spatial_sites="none")
UNET, LR = "model.diffusion_model.", "structcond_stage_model."


def meta_file(part: str) -> dict[str, Tensor]:
    """A file with MGLD-VSR's tensor names and shapes and no memory behind them."""
    path = Path(__file__).parent / "data" / "mgld_keys.json.gz"
    shapes = json.loads(gzip.decompress(path.read_bytes()))[part]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def size(module: nn.Module, chosen: Callable[[str], bool] = lambda _: True) -> int:
    return sum(value.numel() for key, value in module.named_parameters() if chosen(key))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(BASELINE, device="meta")


@pytest.fixture(scope="module")
def vae() -> TemporalVAE:
    return TemporalVAE(VAEConfig.sd21(), device="meta")


def test_denoiser_parameter_counts(denoiser: Denoiser) -> None:
    assert size(denoiser.unet) == 935_321_287
    assert size(denoiser.unet, lambda key: ".spade." in key) == 53_020_160
    temporal = size(denoiser.unet, lambda key: ".temporal_convs." in key or ".temporal_attentions." in key)
    assert temporal == 9_832_960 + 6_554_880 + 2_560 + 3
    assert 935_321_287 - 53_020_160 - temporal == 865_910_724  # SD 2.1's own
    assert denoiser.lr_encoder is not None
    assert size(denoiser.lr_encoder) == 52_494_080
    assert size(denoiser.lr_encoder, lambda key: key.startswith("taps.")) == 7_217_664


def test_vae_parameter_counts(vae: TemporalVAE) -> None:
    assert size(vae.encoder) == 34_163_592
    assert size(vae.quant_conv) == 72
    assert size(vae.post_quant_conv) == 20
    assert size(vae.decoder) == 80_810_128
    assert size(vae.decoder, lambda key: ".temporal_convs." in key) == 6_247_053
    assert size(vae.decoder, lambda key: "fusion_layer_" in key) == 25_072_896


def test_mgld_denoiser_names_map_one_to_one(denoiser: Denoiser) -> None:
    file = meta_file("unet")
    assert (len(registry.under(file, UNET)), len(registry.under(file, LR))) == (876, 200)
    converted = registry.convert_original_unet(file, UNET)
    assert shapes_of(converted) == shapes_of(denoiser.state_dict())
    assert denoisers.read_config(shapes_of(converted), "file", head_dim=64, lr_heads=4) == BASELINE


def test_mgld_vae_names_map_one_to_one(vae: TemporalVAE) -> None:
    file = meta_file("vae")
    assert len(file) == 363
    converted = registry.convert_original_vae(file, "")
    assert shapes_of(converted) == shapes_of(vae.state_dict())
    assert vaes.read_config(shapes_of(converted), "file") == VAEConfig.sd21()


@pytest.mark.parametrize(("part", "prefix"), [("unet", UNET), ("unet", LR), ("vae", "")])
def test_names_come_back(part: str, prefix: str) -> None:
    keys = list(registry.under(meta_file(part), prefix))
    if part == "vae":
        table = key_maps.vae_table(levels=4)
    else:
        depth = key_maps.read_depth(keys)
        table = key_maps.unet_table(depth) if prefix == UNET else key_maps.lr_encoder_table(depth)
    ours = [key_maps.rename(key, table) for key in keys]
    assert len(set(ours)) == len(keys)
    assert [key_maps.rename(key, key_maps.flipped(table)) for key in ours] == keys


def test_mid_block_places_of_both_layouts() -> None:
    mgld = [key.removeprefix(UNET) for key in meta_file("unet") if key.startswith(UNET)]
    moved = {"middle_block.2.": "middle_block.1.", "middle_block.4.": "middle_block.2."}
    sd = [
        next((new + key[len(old):] for old, new in moved.items() if key.startswith(old)), key) for key in mgld
        if not key.startswith(("middle_block.1.", "middle_block.3.", "middle_block.5.")) and ".spade." not in key
    ]
    assert len(sd) == 686
    for keys, places in ((mgld, (0, 2, 4)), (sd, (0, 1, 2))):
        table = key_maps.unet_table(key_maps.read_depth(keys))
        first, attention, second = places
        names = [f"{first}.out_layers.3.weight", f"{attention}.proj_out.weight", f"{second}.in_layers.0.bias"]
        ours = ["resnets.0.conv2.weight", "attentions.0.proj_out.weight", "resnets.1.norm1.bias"]
        renamed = [key_maps.rename(f"middle_block.{name}", table) for name in names]
        assert renamed == [f"mid_block.{name}" for name in ours]


def test_sd21_names_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    unet = Denoiser(DenoiserConfig.sd21(spade=False, baseline_temporal=False, semantic_levels=(),
                                        temporal_sites="none", temporal_spatial_sites="none"), device="meta").unet
    with torch.device("meta"):
        reference = diffusers.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True, cross_attention_dim=1024)
        reference_vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    assert shapes_of(unet.state_dict()) == shapes_of(reference.state_dict())
    plain = TemporalVAE(VAEConfig.sd21(temporal=False, fusion_levels=()), device="meta")
    assert shapes_of(plain.state_dict()) == shapes_of(reference_vae.state_dict())
