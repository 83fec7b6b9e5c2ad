"""Well-known weight files that this project cannot use, told by their tensor names, so that an error can name them."""

from __future__ import annotations

import re
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


def _sd2_text_width(tensors: Tensors) -> bool:
    """Whether a U-Net attends to texts of 1024 numbers a token, as those made from SD 2.x do; SDXL's are wider."""
    return any(value.ndim == 2 and value.shape[1] == 1024 for key, value in tensors.items()
               if key.endswith("attn2.to_k.weight"))


def _is_video_unet(tensors: Tensors) -> bool:
    """Whether a U-Net has the temporal layers of another video model: SVD's, ModelScope's, VideoCrafter's (its
    authors' spelling), of the authors' files or of diffusers'.
    """
    return _has(tensors, "blocks.0.temp_convs.", "transformer_in.", ".temopral_conv.", ".temporal_transformer_blocks.",
                "input_blocks.1.0.time_stack.", "down_blocks.0.resnets.0.temporal_res_block.")


def _is_unclip(tensors: Tensors) -> bool:
    """Whether a U-Net takes an embedding of an image or a class beside the text, but is not SDXL's."""
    return _has(tensors, "noise_augmentor.", "class_embedding.") or (
        _has(tensors, "label_emb.0.0.weight") and _sd2_text_width(tensors))


def is_sdxl(tensors: Tensors) -> bool:
    """Whether a file is (or contains) Stable Diffusion XL. SD-Turbo's file has the first of its two text encoders."""
    return _has(tensors, "conditioner.embedders.1.") or (
        _has(tensors, "label_emb.0.0.weight", "add_embedding.linear_1.weight") and not _is_unclip(tensors))


def _is_x4_upscaler_vae(tensors: Tensors) -> bool:
    """Whether a VAE is that of SD's x4 upscaler: one level less than SD's own, so latents of another size and scale."""
    widths = [tuple(value.shape[:2]) for key, value in tensors.items()
              if key.endswith(("encoder.conv_in.weight", "encoder.mid.block_1.conv1.weight",
                               "encoder.mid_block.resnets.0.conv1.weight"))]
    levels = {match[1] for key in tensors if (match := re.search(r"encoder\.down(?:_blocks)?\.(\d+)\.", key))}
    return (len(levels) == 3 and sorted(widths) == [(128, 3), (512, 512)]
            and not _has(tensors, ".fusion_layer_", ".temporal_"))


def is_tiny_decoder(tensors: Tensors) -> bool:
    """Whether a file is (or contains) the decoder of TAESD or its like, of its authors or of diffusers."""
    first = tensors.get("1.weight", tensors.get("decoder.layers.0.weight"))
    return first is not None and first.ndim == 4 and ("3.conv.0.weight" in tensors or
                                                      "decoder.layers.2.conv.0.weight" in tensors)


Strangers = tuple[tuple[Callable[[Tensors], bool], str], ...]

# (test, what the file is), most specific first. Lookalikes share names with the U-Nets above, so they are asked first;
# the others only give a name to what no format matched (a complete checkpoint may well contain a CLIP or flow model).
LOOKALIKES: Strangers = (
    (lambda t: _has(t, "lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.", "lora_unet_", "hada_w1",
                    "lokr_w1", ".oft_R."),
     "a LoRA (small changes to a model, not a model)"),
    (lambda t: _has(t, "zero_convs.", "controlnet_cond_embedding", "control_model.", "input_hint_block"),
     "a ControlNet"),
    (lambda t: _has(t, "motion_modules."), "an AnimateDiff motion module"),
    (_is_video_unet, "another video model (Stable Video Diffusion, ModelScope, VideoCrafter or similar)"),
    (is_sdxl, "a Stable Diffusion XL model"),
    (lambda t: _has(t, "double_blocks.", "joint_blocks.", "single_transformer_blocks.", "add_q_proj"),
     "a diffusion transformer (SD 3, Flux or similar)"),
    (_convolved_transformer, "a Stable Diffusion 1.x U-Net"),
    (lambda t: _conv_in_channels(t) not in (None, 4),
     "an inpainting, depth or upscaling U-Net (its first convolution does not take 4 latent channels)"),
    (_is_unclip, "a Stable Diffusion unCLIP or other U-Net that is conditioned on a class or an image"),
)
# The same for VAEs; what they share with SD 2.1's are the names, not the latents.
VAE_LOOKALIKES: Strangers = (
    (is_sdxl, "a Stable Diffusion XL model"),
    (lambda t: _has(t, "decoder.up.0.block.0.time_stack.", "decoder.up_blocks.0.resnets.0.temporal_res_block."),
     "the VAE of Stable Video Diffusion"),
    (lambda t: _has(t, "quantize.embedding."), "a VQ autoencoder, whose latents are entries of a codebook"),
    (lambda t: _has(t, "decoder.condition_encoder."), "an asymmetric VAE for inpainting"),
    (lambda t: "bn.running_mean" in t, "the VAE of Flux.2"),
    (_is_x4_upscaler_vae, "the VAE of Stable Diffusion's x4 upscaler"),
    (lambda t: _has(t, "decoder.conv_in.") and not _has(t, "quant_conv."),
     "a VAE without quantisation convolutions (Flux, SD 3, a video model or similar)"),
)
OTHERS: Strangers = (
    (is_tiny_decoder, "a TAESD preview decoder"),
    (lambda t: _has(t, "image_encoder.patch_embed.", "vision_encoder.patch_embed."),
     "a first-generation SAM model (or EfficientSAM, MobileSAM)"),
    (lambda t: _has(t, "image_encoder.trunk.body."), "an EdgeTAM model (a small relative of SAM 2)"),
    (lambda t: _has(t, "text_model.encoder.layers.", "transformer.resblocks."), "a CLIP text encoder"),
    (lambda t: _has(t, "vision_model.encoder.layers."), "a CLIP image encoder"),
    (lambda t: _has(t, "layer.0.SelfAttention."), "a T5 text encoder"),
    (lambda t: _has(t, "conv_first.weight", "RRDB_trunk", "body.0.rdb1"), "a plain image upscaler (ESRGAN family)"),
    (lambda t: _has(t, "fnet.", "update_block."), "an optical-flow model"),
)


def stranger(tensors: Tensors, known: Strangers) -> str | None:
    """What a file is if it is one of some well-known things that this project does not use."""
    return next((what for test, what in known if test(tensors)), None)
