"""Loading a denoiser from any known format, with its sizes read off the tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, SettingsError
from ..networks.denoiser import Denoiser, DenoiserConfig
from .building import Shapes, build, no_name, reading_sizes, shapes_of, side
from .files import Source, TensorFile, folder_setting, open_source
from .key_maps import count
from .lora import LoRA, apply_loras
from .native import stored_config
from .registry import COMPONENTS, DENOISER, converted, find

log = logging.getLogger(__name__)

# Parts of the names of modules that SeTe-VSR or MGLD-VSR add to SD 2.1's U-Net; only these may start anew.
ADDED = (".semantic_attention.", ".temporal_transformer.", ".temporal_spatial.", ".temporal_convs.",
         ".temporal_attentions.", ".spade.", "lr_encoder.")
VELOCITY_BIAS, VELOCITY_SPREAD = "unet.up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias", 0.09


def load_denoiser(source: Source | TensorFile, *, head_dim: int = 64, lr_heads: int = 4,
                  dtype: torch.dtype | None = None, device: Any = "cpu", ops: Any = nn,
                  changes: Mapping[str, Any] | None = None, loras: Sequence[LoRA] = (),
                  light: bool = False) -> Denoiser:
    """Load a denoiser: native, MGLD-VSR, or the U-Net of Stable Diffusion 2.1 (original or diffusers).

    source: path of a file, of a diffusers folder, or a state dict.
    head_dim, lr_heads: width of the attention heads and number of heads of the LR encoder; no tensor shows them, so
        they are taken from here unless a native file stores them.
    dtype: None keeps the stored type (float32 on the CPU).
    changes: fields of `DenoiserConfig` to alter, for training. Modules this adds are initialised so that SeAM,
        temporal transformer and TSAM leave the output as it was.
    light: take `DenoiserConfig.lighter`, which does less work a step with the same weights.
    loras: (LoRA file, strength) pairs that are added to the weights, for good; see `lora`.
    The network has the modules the file has: a plain SD 2.1 U-Net gives one without SPADE and LR encoder.
    Raises `CheckpointError` naming the file, what it is and what was expected, and `SettingsError` for a head_dim or
    lr_heads that this file's layers cannot have.
    """
    file = open_source(source, COMPONENTS[DENOISER])
    entry, prefix = find(file, DENOISER)
    tensors = converted(file, entry, prefix)
    if entry.layout in ("sd-original", "sd-diffusers") and predicts_velocity(file, tensors):
        log.warning("%s seems to predict v (Stable Diffusion 2.1 at 768 px), SeTe-VSR builds on noise prediction: "
                    "use stable-diffusion-2-1-base (v2-1_512)", file.name)
    stored = stored_config(file)
    if stored is not None:
        config = DenoiserConfig.from_dict(stored)
    else:
        config = read_config(shapes_of(tensors), file.name, head_dim=head_dim, lr_heads=lr_heads)
    config = replace(config, **changes) if changes else config
    if light:
        config = config.lighter()
    empty_text = tensors.pop("empty_text", None)
    tensors = apply_loras(tensors, loras)
    log.info("%s: %s", file.name, entry.title)
    network = build(partial(Denoiser, config), tensors, name=file.name, dtype=dtype, device=device, ops=ops,
                    fresh=is_added if changes else no_name, spare=is_added if changes or light else no_name)
    if empty_text is not None:
        network.empty_text = empty_text.to(device=device, dtype=network.dtype)
    return network


def read_text(source: Source, width: int) -> Tensor:
    """The text embedding (1, tokens, width) in a file of any format that holds nothing else; stored as that or as
    (tokens, width). Raises `CheckpointError` for anything else.
    """
    file = open_source(source)
    texts = [tensor[None] if tensor.ndim == 2 else tensor for tensor in file.tensors.values()]
    if len(texts) != 1 or texts[0].ndim != 3 or texts[0].shape[0] != 1 or texts[0].shape[2] != width:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in list(file.tensors.values())[:3])
        raise CheckpointError(f"{file.name} holds {len(texts)} tensors, such as {shapes}; expected one text embedding "
                              f"of the shape (tokens, {width}) or (1, tokens, {width}).")
    return texts[0]


def is_added(name: str) -> bool:
    """Whether a tensor belongs to a module that SD 2.1 does not have."""
    return any(part in name for part in ADDED)


def read_config(shapes: Shapes, name: str, *, head_dim: int, lr_heads: int) -> DenoiserConfig:
    """Sizes of a denoiser from the shapes of its tensors, under our names."""
    with reading_sizes(name, "a denoiser"):
        config = _read_config(shapes, head_dim, lr_heads)
    check_divides("head_dim", head_dim, config.channels, f"the attention layers of {name}")
    if config.spade:
        check_divides("lr_heads", lr_heads, config.lr_channels, f"the LR encoder of {name}")
    return config


def check_divides(argument: str, value: int, widths: Sequence[int], layers: str) -> None:
    """`SettingsError` unless `value` is a whole number that divides all the widths."""
    if not isinstance(value, int) or value < 1 or any(width % value for width in widths):
        raise SettingsError(f"{argument} is {value!r}, but {layers} are {', '.join(map(str, sorted(set(widths))))} "
                            f"channels wide; give the {argument} they were trained with, which divides all of these")


def _read_config(shapes: Shapes, head_dim: int, lr_heads: int) -> DenoiserConfig:
    levels = count(shapes, "unet.down_blocks.")
    channels = tuple(side(shapes, f"unet.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels))
    text_key = next((key for key in shapes if key.endswith(".attn2.to_k.weight")), None)
    if text_key is None:
        raise KeyError("every text attention layer")
    sizes: dict[str, Any] = {
        "channels": channels,
        "layers": count(shapes, "unet.down_blocks.0.resnets."),
        "head_dim": head_dim,
        "context_dim": side(shapes, text_key, 1),
        "latent_channels": side(shapes, "unet.conv_in.weight", 1),
        "spade": any(".spade." in key for key in shapes),
        "baseline_temporal": any(".temporal_convs." in key for key in shapes),
        "semantic_levels": semantic_levels(shapes, levels),
        "temporal_sites": sites_of(shapes, ".temporal_transformer."),
        "temporal_spatial_sites": sites_of(shapes, ".temporal_spatial."),
        "lr_heads": lr_heads,
    }
    if sizes["spade"]:
        first = "unet.mid_block.resnets.0.spade.mlp_shared.0.weight"
        sizes |= {"spade_hidden": side(shapes, first, 0), "map_channels": side(shapes, first, 1)}
    lr_levels = count(shapes, "lr_encoder.down_blocks.")
    if lr_levels:
        sizes["lr_channels"] = tuple(
            side(shapes, f"lr_encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(lr_levels)
        )
        sizes["lr_layers"] = count(shapes, "lr_encoder.down_blocks.0.resnets.")
    return DenoiserConfig(**sizes)


def semantic_levels(shapes: Shapes, levels: int) -> tuple[int, ...]:
    """Levels with SeAM, finest 0; the mid block counts as the coarsest level."""
    places = {key.split(".attentions.")[0] for key in shapes if ".semantic_attention." in key}
    found = {i for i in range(levels) if f"unet.down_blocks.{i}" in places}
    return tuple(sorted(found | ({levels - 1} if "unet.mid_block" in places else set())))


def sites_of(shapes: Shapes, part: str) -> str:
    """Which sites carry a module: "all", "up", "mid" or "none"."""
    places = {key.split(".")[1] for key in shapes if part in key}
    if len(places) == 3:
        return "all"
    return {"up_blocks": "up", "mid_block": "mid"}.get(next(iter(places), ""), "none")


def predicts_velocity(file: TensorFile, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a Stable Diffusion 2 U-Net predicts v: said by a diffusers folder, else told by one bias.

    The bias of the last transformer's first norm spreads wider in the weights that predict v; ComfyUI tells them by it.
    """
    if file.path is not None:
        declared = folder_setting(file.path, "scheduler/scheduler_config.json", "prediction_type")
        if declared is not None:
            return declared == "v_prediction"
    bias = tensors.get(VELOCITY_BIAS)
    return bias is not None and not bias.is_meta and float(bias.float().std(unbiased=False)) > VELOCITY_SPREAD
