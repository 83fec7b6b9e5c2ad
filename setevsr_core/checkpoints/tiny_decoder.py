"""TAESD-class decoders: a few convolutions that turn latents into a small true picture, for previews while sampling."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, require
from .building import check, shapes_of, weights_device
from .files import Source, TensorFile, open_source
from .registry import describe
from .strangers import is_tiny_decoder

log = logging.getLogger(__name__)

LAYERS = "decoder.layers."  # diffusers' AutoencoderTiny; its authors' own file counts one layer (the clamp) more


class TinyDecoder(nn.Module):
    """Scaled latents (N,C,h,w) of the VAE it was made for -> pictures (N,8h,8w,3) in 0..1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.inference_mode()
    def forward(self, latents: Tensor) -> Tensor:
        weight = next(self.network.parameters())
        return self.network(latents.to(weight)).float().add(1).div(2).clamp(0, 1).movedim(1, -1)


def load_tiny_decoder(source: Source | TensorFile, *, latent_channels: int = 4, device: Any = "cpu") -> TinyDecoder:
    """Load `taesd_decoder` (.safetensors or .pth of its authors) or diffusers' AutoencoderTiny, in float32.

    Raises `CheckpointError` for another file, also for a decoder of latents with other than `latent_channels`.
    """
    file = open_source(source)
    if not is_tiny_decoder(file.tensors):
        raise CheckpointError(f"{file.name} is {describe(file).description}; expected a TAESD decoder "
                              "(taesd_decoder.safetensors, or diffusers' taesd).")
    tensors = decoder_tensors(file.tensors)
    first = tensors["layers.0.weight"]
    if first.shape[1] != latent_channels:
        raise CheckpointError(f"{file.name} decodes latents of {first.shape[1]} channels, the VAE has "
                              f"{latent_channels}; use the TAESD decoder of Stable Diffusion 1 and 2.")
    autoencoders = require("diffusers.models.autoencoders.vae", "diffusers", "the TAESD preview")
    with torch.device("meta"):
        network = autoencoders.DecoderTiny(
            first.shape[1], 3, num_blocks=(3, 3, 3, 1), block_out_channels=(first.shape[0],) * 4,
            upsampling_scaling_factor=2, act_fn="relu", upsample_fn="nearest",
        )  # fmt: skip
    check(shapes_of(network.state_dict()), tensors, file.name)
    device, wanted = weights_device(device), network.state_dict()
    network.load_state_dict({key: tensors[key].to(device, torch.float32) for key in wanted}, assign=True)
    return TinyDecoder(network).eval().requires_grad_(False)


def decoder_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors under diffusers' names (`layers.0.weight`, ...)."""
    if f"{LAYERS}0.weight" in tensors:
        return {key.removeprefix("decoder."): value for key, value in tensors.items() if key.startswith(LAYERS)}
    numbered = ((key.split(".", 1), value) for key, value in tensors.items() if key.split(".", 1)[0].isdigit())
    return {f"layers.{int(number) - 1}.{rest}": value for (number, rest), value in numbered}
