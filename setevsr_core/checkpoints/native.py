"""The native file: safetensors whose metadata says what it holds and how the network is configured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from .files import TensorFile
from .registry import DENOISER, SEMANTIC, VAE

VERSION = 1


def kind_of(module: nn.Module) -> str:
    """The native kind of a network."""
    from ..networks.denoiser import Denoiser
    from ..networks.semantic_encoder import SemanticEncoder
    from ..networks.temporal_vae import TemporalVAE

    for kind, network in ((DENOISER, Denoiser), (VAE, TemporalVAE), (SEMANTIC, SemanticEncoder)):
        if isinstance(module, network):
            return kind
    raise CheckpointError(f"A {type(module).__name__} cannot be stored; expected a Denoiser, TemporalVAE or "
                          "SemanticEncoder.")


def save_native(module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None, *,
                dtype: torch.dtype | None = None) -> Path:
    """Write a network as a native safetensors file and return its path.

    metadata: further text entries (training record, source); keys that start with "setevsr." are this format's own.
    dtype: stored type of floating-point tensors, None as they are. A stored `empty_text` goes along with the weights.
    The file appears only when it is complete: it is written beside its place and then renamed.
    """
    from safetensors.torch import save_file

    path = Path(path)
    tensors = {key: _stored(value, dtype) for key, value in module.state_dict().items()}
    entries = {str(key): str(value) for key, value in (metadata or {}).items()}
    entries |= {
        "format": "pt",
        "setevsr.format": str(VERSION),
        "setevsr.kind": kind_of(module),
        "setevsr.config": json.dumps(module.config.to_dict()),  # type: ignore[union-attr, operator]
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        save_file(tensors, part, metadata=entries)
        os.chmod(part, 0o644)  # safetensors writes files that only their owner can read
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _stored(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    value = value.detach().cpu()
    if value.is_meta:
        raise CheckpointError("The network has layers without weights and cannot be stored.")
    return (value.to(dtype) if dtype is not None and value.is_floating_point() else value).contiguous()


def stored_config(file: TensorFile) -> dict[str, Any] | None:
    """The configuration a native file carries, None for other files."""
    text = file.metadata.get("setevsr.config")
    version = file.metadata.get("setevsr.format")
    if text is None or version is None:
        return None
    if not version.isdigit() or int(version) > VERSION:
        raise CheckpointError(f"{file.name} is written in format {version}, this program reads up to {VERSION}: "
                              "update the pack.")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{file.name} carries a damaged configuration ({error}); download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file.name} carries a damaged configuration; download it again.")
    return values
