"""Presets: a folder with a config.json and the native files of denoiser, VAE and (optionally) semantic encoder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..networks.denoiser import Denoiser
from ..networks.semantic_encoder import SemanticEncoder
from ..networks.temporal_vae import TemporalVAE
from .denoiser import load_denoiser
from .files import listing
from .native import save_native
from .semantic import load_semantic_encoder
from .vae import load_temporal_vae

PRESETS = Path(__file__).parent.parent / "presets"


@dataclass(frozen=True)
class Preset:
    """Networks that belong together and the settings they were trained for.

    `defaults` holds restore settings by name (e.g. {"steps": 10}) that apply where the caller says nothing.
    """

    name: str
    denoiser: Denoiser
    vae: TemporalVAE
    encoder: SemanticEncoder | None
    defaults: dict[str, Any] = field(default_factory=dict)


def list_presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(entry.parent.name for entry in PRESETS.glob("*/config.json"))


def preset_folder(preset: str | Path) -> Path:
    """The folder of a preset given by name or by path."""
    if not isinstance(preset, str | os.PathLike):
        raise CheckpointError(f"A preset is a name or a folder, got {preset!r}; installed presets: "
                              f"{', '.join(list_presets()) or 'none'}.")
    named, given = PRESETS / str(preset), Path(preset).expanduser()
    for folder in (named, given):
        if (folder / "config.json").is_file():
            return folder
    if given.is_dir():
        raise CheckpointError(f"The folder {given} is not a preset: it has no config.json, only {listing(given)}.")
    names = ", ".join(list_presets()) or "none"
    raise CheckpointError(f"There is no preset '{preset}'; installed presets: {names}. Give one of them or a preset's "
                          "folder.")


def save_preset(
    folder: Path, denoiser: nn.Module, vae: nn.Module, encoder: nn.Module | None, *, defaults: Mapping[str, Any]
) -> None:
    """Write networks as a preset, each in the number type it computes in. Their names are those of `load_preset`."""
    networks = {"denoiser": denoiser, "vae": vae, "semantic_encoder": encoder}
    for name, network in networks.items():
        if network is not None:
            save_native(network, folder / f"{name}.safetensors", dtype=getattr(network, "dtype", None))
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "defaults": dict(defaults)}), "utf-8")


def preset_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a preset folder."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); restore the file.") from error
    if not isinstance(values, dict) or not isinstance(values.get("defaults", {}), dict):
        raise CheckpointError(f"{path} must hold an object, with an object under \"defaults\".")
    return values


def load_preset(preset: str | Path, *, dtype: torch.dtype | None = None, device: Any = "cpu", ops: Any = nn) -> Preset:
    """Load a preset by name ("nano") or from a folder; the semantic encoder is left out where there is no file."""
    folder = preset_folder(preset)
    values = preset_config(folder)
    files = {"denoiser": "denoiser.safetensors", "vae": "vae.safetensors",
             "semantic_encoder": "semantic_encoder.safetensors"} | values.get("files", {})
    encoder_path = folder / files["semantic_encoder"]
    options: dict[str, Any] = {"dtype": dtype, "device": device, "ops": ops}
    return Preset(
        str(values.get("name", folder.name)),
        load_denoiser(folder / files["denoiser"], **options),
        load_temporal_vae(folder / files["vae"], **options),
        load_semantic_encoder(encoder_path, **options) if encoder_path.is_file() else None,
        dict(values.get("defaults", {})),
    )
