"""The denoiser: U-Net, LR encoder and the constant text embedding, as one module with one state dict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .lr_encoder import LREncoder
from .semantic_attention import SEMANTIC_CHANNELS, SemanticKeys
from .unet import DenoiserConfig, SeTeUNet

__all__ = ["Denoiser", "DenoiserConfig", "SemanticKeys", "TextKeys"]


@dataclass(frozen=True)
class TextKeys:
    """Key and value of every attention site for one text embedding, each (1|N, n, C)."""

    sites: tuple[tuple[Tensor, Tensor], ...]


class Denoiser(nn.Module):
    """Predicts the noise in latents, given the low-resolution latents, text and semantics.

    `empty_text` (1, n, context_dim) is the embedding of the empty prompt where the checkpoint stores it, else None:
    SeTe-VSR is never prompted, but its attention layers still want their constant context.
    """

    empty_text: Tensor | None

    def __init__(self, config: DenoiserConfig, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None,
                 empty_text: Tensor | None = None):
        super().__init__()
        kw: dict[str, Any] = {"ops": ops, "dtype": dtype, "device": device}
        self.config = config
        self.unet = SeTeUNet(config, **kw)
        self.lr_encoder = LREncoder(config.latent_channels, config.lr_channels, config.map_channels,
                                    config.lr_layers, config.lr_heads, **kw) if config.spade else None
        self.register_buffer("empty_text", empty_text)
        # Kept apart from the parameters: a host may hold those in another type than it computes in.
        self.dtype = dtype or torch.get_default_dtype()

    def get_dtype(self) -> torch.dtype:
        return self.dtype

    def encode_lr(self, lr_latents: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Scaled LR latents (B*T, 4, h, w), timesteps (B*T,) -> maps for SPADE, finest first; run at every step."""
        return [] if self.lr_encoder is None else self.lr_encoder(lr_latents, timesteps)

    def project_text(self, text: Tensor) -> TextKeys:
        """Text embedding (1|N, n, context_dim) -> keys and values of all sites, constant over the steps."""
        if text.shape[-1] != self.config.context_dim:
            raise InputError(f"the text embedding is {text.shape[-1]} wide, this denoiser needs "
                             f"{self.config.context_dim}: encode the prompt with the text model of its base network")
        return TextKeys(tuple(site.block.attn2.project(text) for site in self.unet.sites()))

    def project_semantics(self, semantics: Tensor | None) -> SemanticKeys:
        """SAM 2 embeddings (N, 256, gh, gw) -> keys and values of all sites; None switches SeAM off."""
        sites = self.unet.sites()
        if semantics is None:
            return SemanticKeys((None,) * len(sites))
        if semantics.shape[1] != SEMANTIC_CHANNELS:
            raise InputError(f"semantics have {semantics.shape[1]} channels, SeAM needs SAM 2's image embedding "
                             f"with {SEMANTIC_CHANNELS}")
        modules = [site.block.semantic_attention for site in sites]
        return SemanticKeys(tuple(None if m is None else m.project(semantics) for m in modules))

    def forward(self, latents: Tensor, timesteps: Tensor, *, num_frames: int, lr_maps: list[Tensor],
                text: Tensor | TextKeys | None = None, semantics: Tensor | SemanticKeys | None = None) -> Tensor:
        """Noisy latents (B*T, 4, h, w) at timesteps (B*T,) -> predicted noise, the same shape.

        text: embedding (1|B*T, n, context_dim) or its keys; None takes the stored empty prompt.
        semantics: embeddings (B*T, 256, gh, gw) or their keys; None switches SeAM off.
        """
        if text is None:
            text = self.empty_text
        if text is None:
            raise InputError("this denoiser stores no embedding of the empty prompt: give a text embedding "
                             "(in ComfyUI: connect the CONDITIONING of an empty prompt)")
        text_keys = self.project_text(text.to(latents)) if isinstance(text, Tensor) else text
        if not isinstance(semantics, SemanticKeys):
            semantics = self.project_semantics(semantics)
        return self.unet(latents, timesteps, num_frames=num_frames, lr_maps=lr_maps, text=text_keys.sites,
                         semantics=semantics.sites)
