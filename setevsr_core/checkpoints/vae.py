"""Loading a temporal VAE from any known format, with its sizes read off the tensors."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..networks.temporal_vae import TemporalVAE, VAEConfig
from .building import Shapes, build, buildable_sizes, no_name, reading_sizes, shapes_of, side
from .files import Source, TensorFile, folder_setting, open_source
from .key_maps import count
from .native import stored_config
from .registry import COMPONENTS, VAE, converted, find

log = logging.getLogger(__name__)

ADDED = (".temporal_convs.", ".fusion_layer_", ".trunk.", ".refinement.")


def load_temporal_vae(source: Source | TensorFile, *, dtype: torch.dtype | None = None, device: Any = "cpu",
                      ops: Any = nn, changes: Mapping[str, Any] | None = None) -> TemporalVAE:
    """Load a VAE: native, MGLD-VSR's video_vae_cfw, or the VAE of Stable Diffusion 2.1 (alone or in its checkpoint).

    source: path of a file, of a diffusers folder, or a state dict. dtype: None keeps the stored type (float32 on the
    CPU). changes: fields of `VAEConfig` to alter, for training; temporal and fusion layers, trunk and refinement that
    this adds are new. A plain SD VAE gives a network without temporal layers and fusion. A native state dict without
    its file's metadata has lost the scaling factor, the sharpening and the descreening: SD's, none and none are
    assumed, with a warning.
    Raises `CheckpointError` naming the file, what it is and what was expected.
    """
    file = open_source(source, COMPONENTS[VAE])
    entry, prefix = find(file, VAE)
    if entry.layout == "sd-diffusers":
        refuse_other_latents(file)
    tensors = converted(file, entry, prefix)
    stored = stored_config(file)
    if stored is None:
        config = read_config(shapes_of(tensors), file.name)
    else:
        with buildable_sizes(file.name):
            config = VAEConfig.from_dict(stored)
    if stored is None and config.patch > 1:
        log.warning("%s: without its metadata nothing tells the scaling factor of its latents, its sharpening and its "
                    "descreening: SD's %g, none and none are assumed; give the path of the native file", file.name,
                    config.scaling_factor)
    config = replace(config, **changes) if changes else config
    log.info("%s: %s", file.name, entry.title)
    return build(partial(TemporalVAE, config), tensors, name=file.name, dtype=dtype, device=device, ops=ops,
                 fresh=is_added if changes else no_name, spare=is_added if changes else no_name)


def refuse_other_latents(file: TensorFile) -> None:
    """`CheckpointError` for a VAE whose config.json beside it tells of other latents, as SDXL's: its tensors do not."""
    factor = folder_setting(file.path, "config.json", "scaling_factor") if file.path is not None else None
    if factor not in (None, VAEConfig().scaling_factor):
        raise CheckpointError(
            f"{file.name} is a VAE with the scaling factor {factor} (Stable Diffusion XL or similar), says its "
            "config.json; expected the VAE of Stable Diffusion 2.1 or MGLD-VSR."
        )


def is_added(name: str) -> bool:
    """Whether a tensor belongs to a layer that a plain SD VAE does not have."""
    return any(part in name for part in ADDED)


def read_config(shapes: Shapes, name: str) -> VAEConfig:
    """Sizes of a VAE from the shapes of its tensors, under our names."""
    with reading_sizes(name, "a VAE"):
        return _read_config(shapes)


def _read_config(shapes: Shapes) -> VAEConfig:
    levels = count(shapes, "encoder.down_blocks.")
    fusion = tuple(level for level in range(levels) if any(f".fusion_layer_{level}." in key for key in shapes))
    sizes: dict[str, Any] = {
        "channels": tuple(side(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)),
        "layers": count(shapes, "encoder.down_blocks.0.resnets."),
        "latent_channels": side(shapes, "post_quant_conv.weight", 0),
        "patch": math.isqrt(side(shapes, "encoder.conv_in.weight", 1) // 3),
        "mid_attention": any(key.startswith("encoder.mid_block.attentions.") for key in shapes),
        "temporal": any(".temporal_convs." in key for key in shapes),
        "fusion_levels": fusion,
    }
    if sizes["patch"] > 1:  # only our own VAEs fold pixels, and only they may lack the last norm
        sizes["residual"] = "decoder.conv_norm_out.weight" not in shapes
    own = tuple(side(shapes, f"decoder.up_blocks.{levels - 1 - i}.resnets.0.conv1.weight", 0) for i in range(levels))
    if own != sizes["channels"]:
        sizes["decoder_channels"] = own
    if any(key.startswith("decoder.trunk.") for key in shapes):
        sizes["trunk"] = count(shapes, "decoder.trunk.convs.")
        sizes["trunk_channels"] = side(shapes, "decoder.trunk.conv_in.weight", 0)
    if any(key.startswith("decoder.refinement.") for key in shapes):
        sizes["refine"] = side(shapes, "decoder.refinement.conv1.weight", 0)
    if fusion:
        sizes["growth"] = side(shapes, f"decoder.fusion_layer_{fusion[0]}.encode_enc_2.0.conv1.weight", 0)
    return VAEConfig(**sizes)
