"""The socket types of this pack; everything else uses ComfyUI's own (IMAGE, VIDEO, LATENT, CONDITIONING, AUDIO)."""

from __future__ import annotations

from comfy_api.latest import io

Denoiser = io.Custom("SETEVSR_DENOISER")
TemporalVAE = io.Custom("SETEVSR_VAE")
SemanticEncoder = io.Custom("SETEVSR_ENCODER")
Segments = io.Custom("SETEVSR_SEGMENTS")
Semantics = io.Custom("SETEVSR_SEMANTICS")

VideoInfo = io.Custom("VHS_VIDEOINFO")
