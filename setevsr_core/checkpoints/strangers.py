"""Well-known weight files that this project cannot use, told by their tensor names, so that an error can name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]

# Where a U-Net stands in a file, whatever its layout.
UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "model.", "")


def _has(tensors: Tensors, *fragments: str) -> bool:
    return any(any(fragment in key for fragment in fragments) for key in tensors)


def _conv_in_channels(tensors: Tensors) -> int | None:
    for prefix in UNET_PREFIXES:
        for name in ("input_blocks.0.0.weight", "conv_in.weight"):
            weight = tensors.get(prefix + name)
            if weight is not None and weight.ndim == 4:
                return weight.shape[1]
    return None


def _convolved_transformer(tensors: Tensors) -> bool:
    """SD 1.x projects into its transformers with 1x1 convolutions, SD 2.x with linear layers."""
    return any(
        value.ndim == 4 and (".1.proj_in.weight" in key or ".attentions." in key)
        for key, value in tensors.items()
        if key.endswith("proj_in.weight")
    )


def is_sdxl(tensors: Tensors) -> bool:
    """Whether a file is (or contains) Stable Diffusion XL. SD-Turbo's file has the first of its two text encoders."""
    return _has(tensors, "label_emb.0.0.weight", "add_embedding.linear_1.weight", "conditioner.embedders.1.")


def is_tiny_decoder(tensors: Tensors) -> bool:
    """Whether a file is (or contains) the decoder of TAESD or its like, of its authors or of diffusers."""
    first = tensors.get("1.weight", tensors.get("decoder.layers.0.weight"))
    return first is not None and first.ndim == 4 and ("3.conv.0.weight" in tensors or
                                                      "decoder.layers.2.conv.0.weight" in tensors)


Strangers = tuple[tuple[Callable[[Tensors], bool], str], ...]

# (test, what the file is), most specific first. Lookalikes share names with the U-Nets above, so they are asked first;
# the others only give a name to what no format matched (a complete checkpoint may well contain a CLIP or flow model).
LOOKALIKES: Strangers = (
    (lambda t: _has(t, "lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.", "lora_unet_", "hada_w1"),
     "a LoRA (small changes to a model, not a model)"),
    (lambda t: _has(t, "zero_convs.", "controlnet_cond_embedding", "control_model.", "input_hint_block"),
     "a ControlNet"),
    (lambda t: _has(t, "motion_modules."), "an AnimateDiff motion module"),
    (is_sdxl, "a Stable Diffusion XL model"),
    (lambda t: _has(t, "double_blocks.", "joint_blocks.", "single_transformer_blocks.", "add_q_proj"),
     "a diffusion transformer (SD 3, Flux or similar)"),
    (_convolved_transformer, "a Stable Diffusion 1.x U-Net"),
    (lambda t: _conv_in_channels(t) not in (None, 4),
     "an inpainting, depth or upscaling U-Net (its first convolution does not take 4 latent channels)"),
)
OTHERS: Strangers = (
    (is_tiny_decoder, "a TAESD preview decoder"),
    (lambda t: "image_encoder.patch_embed.proj.weight" in t, "a first-generation SAM model"),
    (lambda t: _has(t, "text_model.encoder.layers.", "transformer.resblocks."), "a CLIP text encoder"),
    (lambda t: _has(t, "conv_first.weight", "RRDB_trunk", "body.0.rdb1"), "a plain image upscaler (ESRGAN family)"),
    (lambda t: _has(t, "fnet.", "update_block."), "an optical-flow model"),
)


def stranger(tensors: Tensors, known: Strangers) -> str | None:
    """What a file is if it is one of some well-known things that this project does not use."""
    return next((what for test, what in known if test(tensors)), None)
