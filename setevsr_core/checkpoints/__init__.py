"""Weights in and out: every known format is told by its tensor names, converted, checked and loaded."""

from ..errors import CheckpointError
from .denoiser import load_denoiser
from .native import save_native
from .presets import Preset, list_presets, load_preset, save_preset
from .registry import FileInfo, identify
from .semantic import load_semantic_encoder
from .vae import load_temporal_vae

__all__ = [
    "CheckpointError",
    "FileInfo",
    "Preset",
    "identify",
    "list_presets",
    "load_denoiser",
    "load_preset",
    "load_semantic_encoder",
    "load_temporal_vae",
    "save_native",
    "save_preset",
]
