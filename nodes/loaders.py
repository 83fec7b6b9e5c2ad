"""Nodes that load networks: a whole preset, or one network from a file."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import compat, folders, sockets, widgets
from .hosting import DENOISER, ENCODER, PLAIN_LAYERS, VAE, ComponentHandle, choose_dtype, host_component, stores_fp8

log = logging.getLogger(__name__)


def load_component(kind: str, path: str, name: str, precision: str, **options: Any) -> ComponentHandle:
    """Read one network from a file and hand it to ComfyUI's memory management."""
    from ..setevsr_core import checkpoints

    readers: dict[str, Any] = {
        DENOISER: checkpoints.load_denoiser,
        VAE: checkpoints.load_temporal_vae,
        ENCODER: checkpoints.load_semantic_encoder,
    }
    if kind not in PLAIN_LAYERS:
        options["ops"] = compat.operations()
    dtype = choose_dtype(kind, precision)
    module = readers[kind](path, dtype=dtype, device="cpu", **options)
    log.info("SeTe-VSR: loaded the %s from %s", kind.replace("_", " "), name)
    return host_component(kind, module, name, dtype, fp8=stores_fp8(precision))


def load_preset(name: str, precision: str) -> tuple[ComponentHandle, ComponentHandle, ComponentHandle | None]:
    """(denoiser, VAE, semantic encoder or None) of a preset; the one used last is kept: a second run starts at once."""
    return _load_preset(folders.preset_folder(name), precision, preset_stamp(name))


def preset_stamp(name: str | None) -> int:
    """Changes when a preset on disk does: the newest time stamp of its files. None, a preset that a link will bring:
    of all presets' files.
    """
    names = folders.preset_names(widgets.DEFAULT_PRESET) if name is None else [name]
    return folders.newest(folders.preset_folder(each) for each in names)


def file_stamp(kind: str, name: str | None) -> int:
    """Changes when a weight file does. None, a file that a link will bring: when any file of its kind does."""
    names = folders.weight_files(kind) if name is None else [name]
    return max(Path(folders.find_weights(kind, each)).stat().st_mtime_ns for each in names)


@lru_cache(maxsize=1)
def _load_preset(
    folder: Path, precision: str, stamp: int
) -> tuple[ComponentHandle, ComponentHandle, ComponentHandle | None]:
    """`stamp` is only a part of the cache's key: a preset that changed on disk is read again."""
    from ..setevsr_core import checkpoints

    preset = checkpoints.load_preset(folder, device="cpu", ops=compat.operations())
    log.info("SeTe-VSR: loaded the preset %s from %s", preset.name, folder)

    def host(kind: str, module: Any) -> ComponentHandle:
        dtype = choose_dtype(kind, precision)
        return host_component(kind, module, folder.name, dtype, preset.defaults, fp8=stores_fp8(precision))

    encoder = host(ENCODER, preset.encoder) if preset.encoder is not None else None
    return host(DENOISER, preset.denoiser), host(VAE, preset.vae), encoder


class LoadPreset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRLoadPreset",
            display_name="Load Preset (SeTe-VSR)",
            category=widgets.LOADERS,
            description="Loads the three networks of a preset: denoiser, temporal VAE and semantic encoder.",
            search_aliases=widgets.ALIASES,
            inputs=[widgets.preset(), widgets.precision()],
            outputs=[
                sockets.Denoiser.Output("denoiser", tooltip="For Denoise or an Upscale node."),
                sockets.TemporalVAE.Output("vae", tooltip="For Encode Latents, Temporal Decode or an Upscale node."),
                sockets.SemanticEncoder.Output("encoder", tooltip="For Encode Semantics or an Upscale node."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, preset: str | None, **others: Any) -> int:
        return preset_stamp(preset)

    @classmethod
    def execute(cls, preset: str, precision: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(*load_preset(preset, precision))


class LoadDenoiser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRLoadDenoiser",
            display_name="Load Denoiser (SeTe-VSR)",
            category=widgets.LOADERS,
            description="Loads a denoising U-Net with its low-resolution encoder: a SeTe-VSR file, mgldvsr_unet.ckpt "
            "of MGLD-VSR, or Stable Diffusion 2.1 as a start for training.",
            search_aliases=widgets.ALIASES,
            inputs=[
                widgets.weight_file(DENOISER, "models/setevsr, diffusion_models, checkpoints or diffusers"),
                widgets.precision(),
                compat.widget(
                    io.Int, "head_dim", default=64, min=8, max=256, step=8, advanced=True,
                    tooltip="Channels per attention head, which no foreign file states: 64 for Stable Diffusion 2.1 "
                    "and MGLD-VSR. SeTe-VSR files know their own; ignored for them.",
                ),
                compat.widget(
                    io.Int, "lr_heads", default=4, min=1, max=64, advanced=True,
                    tooltip="Attention heads of the low-resolution encoder, which no foreign file states: 4 for "
                    "MGLD-VSR. SeTe-VSR files know their own; ignored for them.",
                ),
            ],
            outputs=[sockets.Denoiser.Output("denoiser")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **others: Any) -> int:
        return file_stamp(DENOISER, file)

    @classmethod
    def execute(cls, file: str, precision: str = "auto", head_dim: int = 64, lr_heads: int = 4) -> io.NodeOutput:
        path = folders.find_weights(DENOISER, file)
        return io.NodeOutput(load_component(DENOISER, path, file, precision, head_dim=head_dim, lr_heads=lr_heads))


class LoadTemporalVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRLoadTemporalVAE",
            display_name="Load Temporal VAE (SeTe-VSR)",
            category=widgets.LOADERS,
            description="Loads a VAE whose decoder looks along time and at the input's features: a SeTe-VSR file, "
            "video_vae_cfw.ckpt of MGLD-VSR, or a plain Stable Diffusion VAE (then without both).",
            search_aliases=widgets.ALIASES,
            inputs=[widgets.weight_file(VAE, "models/setevsr, vae, checkpoints or diffusers"), widgets.precision()],
            outputs=[sockets.TemporalVAE.Output("vae")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **others: Any) -> int:
        return file_stamp(VAE, file)

    @classmethod
    def execute(cls, file: str, precision: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(load_component(VAE, folders.find_weights(VAE, file), file, precision))


class LoadSemanticEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRLoadSemanticEncoder",
            display_name="Load SAM2 Encoder (SeTe-VSR)",
            category=widgets.LOADERS,
            description="Loads the image encoder of SAM 2 or SAM 2.1 (any size), or a SeTe-VSR semantic encoder.",
            search_aliases=[*widgets.ALIASES, "sam2", "segment anything"],
            inputs=[widgets.weight_file(ENCODER, "models/setevsr or models/sam2"), widgets.precision()],
            outputs=[sockets.SemanticEncoder.Output("encoder")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **others: Any) -> int:
        return file_stamp(ENCODER, file)

    @classmethod
    def execute(cls, file: str, precision: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(load_component(ENCODER, folders.find_weights(ENCODER, file), file, precision))


class LoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRLoadLoRA",
            display_name="Load LoRA (SeTe-VSR)",
            category=widgets.LOADERS,
            description="Changes a denoiser by a LoRA: of Stable Diffusion 2.1 (its part of the U-Net keeps that "
            "model's names) or of this denoiser. Several can be put one after the other.",
            search_aliases=[*widgets.ALIASES, "lora"],
            inputs=[
                sockets.Denoiser.Input("denoiser", tooltip="From Load Denoiser, Load Preset or another Load LoRA."),
                widgets.weight_file(folders.LORA, "models/setevsr or models/loras"),
                compat.widget(
                    io.Float, "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="How much of the change is added: 1 as trained, 0 nothing, negative values go the other "
                    "way.",
                ),
            ],
            outputs=[sockets.Denoiser.Output("denoiser", tooltip="Changed; the given one stays as it is.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **others: Any) -> int:
        return file_stamp(folders.LORA, file)

    @classmethod
    def execute(cls, denoiser: ComponentHandle, file: str, strength: float = 1.0) -> io.NodeOutput:
        return io.NodeOutput(with_lora(denoiser, folders.find_weights(folders.LORA, file), strength))


def with_lora(denoiser: ComponentHandle, path: str, strength: float) -> ComponentHandle:
    """The denoiser with a LoRA as a patch: ComfyUI adds it when it loads the weights and takes it out again."""
    from ..setevsr_core.checkpoints import lora
    from .native_model import PREFIX

    lora.check_strength(strength)
    shapes = {key: tuple(value.shape) for key, value in denoiser.module.state_dict().items()}
    _, updates = lora.read_lora(path, shapes)
    patcher = denoiser.patcher.clone()
    patcher.add_patches({PREFIX + key: compat.lora_patch(update) for key, update in updates.items()}, strength)
    file = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return replace(denoiser, patcher=patcher, identity=f"{denoiser.identity} {file} x {strength!r}")


NODES = [LoadPreset, LoadDenoiser, LoadTemporalVAE, LoadSemanticEncoder, LoadLoRA]
