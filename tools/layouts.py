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

PLAIN_SD = DenoiserConfig.sd21(spade=False, baseline_temporal=False, semantic_levels=(), temporal_sites="none",
                               temporal_spatial_sites="none")
SD_DEPTH = key_maps.Depth(4, 2, (True, True, True, False))


def meta_shapes(module: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def sd21_unet() -> Shapes:
    return meta_shapes(Denoiser(PLAIN_SD, device="meta").unet)


def sd21_vae() -> Shapes:
    return meta_shapes(TemporalVAE(VAEConfig.sd21(temporal=False, fusion_levels=()), device="meta"))


def sd21_single_file() -> Shapes:
    """v2-1_512-ema-pruned: U-Net, VAE (attention as 1x1 convolutions), OpenCLIP text tower, schedule."""
    unet = key_maps.flipped(key_maps.unet_table(SD_DEPTH))
    vae = key_maps.flipped(key_maps.vae_table(levels=4))
    shapes = {f"model.diffusion_model.{key_maps.rename(key, unet)}": shape for key, shape in sd21_unet().items()}
    for key, shape in sd21_vae().items():
        old = f"first_stage_model.{key_maps.rename(key, vae)}"
        shapes[old] = (*shape, 1, 1) if ".attn_1." in old and len(shape) == 2 else shape
    tower = "cond_stage_model.model.transformer.resblocks"
    shapes |= {f"{tower}.{i}.attn.in_proj_weight": (3072, 1024) for i in range(24)}
    return shapes | {"betas": (1000,), "alphas_cumprod": (1000,), "model_ema.num_updates": ()}


def mgld_shapes(part: str) -> Shapes:
    text = gzip.decompress((REPOSITORY / "tests" / "data" / "mgld_keys.json.gz").read_bytes())
    return {key: tuple(shape) for key, shape in json.loads(text)[part].items()}
