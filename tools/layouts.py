"""Names and shapes of published weight files at full size, built from our own networks and name tables."""

from __future__ import annotations

import gzip
import json

from torch import nn

from setevsr_core.checkpoints import key_maps
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig

from .install_comfyui import REPOSITORY

Shapes = dict[str, tuple[int, ...]]

PLAIN_VAE = VAEConfig.sd21(temporal=False, fusion_levels=())
PLAIN_SD = DenoiserConfig.sd21(spade=False, baseline_temporal=False, semantic_levels=(), temporal_sites="none",
                               temporal_spatial_sites="none")
SD_DEPTH = key_maps.Depth(4, 2, (True, True, True, False))


def meta_shapes(module: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def sd21_unet(config: DenoiserConfig = PLAIN_SD) -> Shapes:
    return meta_shapes(Denoiser(config, device="meta").unet)


def sd21_vae(config: VAEConfig = PLAIN_VAE) -> Shapes:
    return meta_shapes(TemporalVAE(config, device="meta"))


def original_vae(config: VAEConfig = PLAIN_VAE) -> Shapes:
    """A VAE as a file by itself, such as vae-ft-mse-840000-ema-pruned; its attention is 1x1 convolutions."""
    table = key_maps.flipped(key_maps.vae_table(levels=4))
    renamed = {key_maps.rename(key, table): shape for key, shape in sd21_vae(config).items()}
    return {key: (*shape, 1, 1) if ".attn_1." in key and len(shape) == 2 else shape for key, shape in renamed.items()}


def sd21_lora(rank: int = 8, config: DenoiserConfig = PLAIN_SD) -> Shapes:
    """A LoRA on every linear layer and convolution of the U-Net, in kohya's spelling."""
    shapes: Shapes = {}
    for key, shape in sd21_unet(config).items():
        if key.endswith(".weight") and len(shape) >= 2:
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            shapes[f"{name}.lora_up.weight"] = (shape[0], rank, *(1,) * (len(shape) - 2))
            shapes[f"{name}.lora_down.weight"] = (rank, *shape[1:])
            shapes[f"{name}.alpha"] = ()
    return shapes


def sd21_single_file(config: DenoiserConfig = PLAIN_SD, vae: VAEConfig = PLAIN_VAE) -> Shapes:
    """v2-1_512-ema-pruned: U-Net, VAE, OpenCLIP text tower, schedule."""
    table, width = key_maps.flipped(key_maps.unet_table(SD_DEPTH)), config.context_dim
    unet = sd21_unet(config)
    shapes = {f"model.diffusion_model.{key_maps.rename(key, table)}": shape for key, shape in unet.items()}
    shapes |= {f"first_stage_model.{key}": shape for key, shape in original_vae(vae).items()}
    tower = "cond_stage_model.model.transformer.resblocks"
    shapes |= {f"{tower}.{i}.attn.in_proj_weight": (3 * width, width) for i in range(24)}
    return shapes | {"betas": (1000,), "alphas_cumprod": (1000,), "model_ema.num_updates": ()}


def mgld_shapes(part: str) -> Shapes:
    text = gzip.decompress((REPOSITORY / "tests" / "data" / "mgld_keys.json.gz").read_bytes())
    return {key: tuple(shape) for key, shape in json.loads(text)[part].items()}
