"""Estimate: memory and minutes of a run before it starts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from comfy_api.latest import io, ui

from . import checks, compat, folders, sockets, widgets
from .hosting import DENOISER, ENCODER, PLAIN_LAYERS, VAE, ComponentHandle, choose_dtype, devices, stores_fp8
from .loaders import preset_stamp

KINDS = {"denoiser": DENOISER, "vae": VAE, "encoder": ENCODER}


class Estimate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def replaces(kind: Any, name: str) -> Any:
            return kind.Input(name, optional=True, tooltip="Takes the place of the preset's own.")

        return compat.schema(
            node_id="SeTeVSREstimate",
            display_name="Estimate (SeTe-VSR)",
            category=widgets.TOOLS,
            description="Says how much memory and time an Upscale node will take with these settings, before it runs. "
            "Operations and memory are counted from the networks, the speed of this machine is measured for a moment.",
            search_aliases=[*widgets.ALIASES, "memory", "vram", "time"],
            is_output_node=True,
            inputs=[
                widgets.preset(),
                compat.widget(
                    io.Int, "width", default=480, min=1, max=16384, tooltip="Width of the input video, in pixels."
                ),
                compat.widget(
                    io.Int, "height", default=270, min=1, max=16384, tooltip="Height of the input video, in pixels."
                ),
                compat.widget(
                    io.Int, "frames", default=100, min=1, max=10_000_000, tooltip="Number of frames of the video."
                ),
                widgets.scale(),
                widgets.steps(),
                widgets.sampler(),
                widgets.strength(),
                widgets.length(),
                widgets.overlap(),
                widgets.tile(),
                widgets.tile_overlap(),
                widgets.precision(),
                replaces(sockets.Denoiser, "denoiser"),
                replaces(sockets.TemporalVAE, "vae"),
                replaces(sockets.SemanticEncoder, "encoder"),
            ],
            outputs=[
                io.String.Output("text", tooltip="The estimate in words, as shown on the node."),
                io.Float.Output("gigabytes", tooltip="Memory of the device with all networks on it."),
                io.Float.Output("minutes", tooltip="About how long the run will take on this machine."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, preset: str | None, **others: Any) -> int:
        return preset_stamp(preset)

    @classmethod
    def execute(
        cls,
        preset: str,
        width: int,
        height: int,
        frames: int,
        scale: float,
        steps: int = 0,
        sampler: str = widgets.PRESETS_OWN,
        strength: float = 0.0,
        length: int = 5,
        overlap: int = 2,
        tile: int = 64,
        tile_overlap: int = 16,
        precision: str = "auto",
        denoiser: ComponentHandle | None = None,
        vae: ComponentHandle | None = None,
        encoder: ComponentHandle | None = None,
    ) -> io.NodeOutput:
        from ..setevsr_core import estimate
        from ..setevsr_core.settings import resolve_settings
        from .choices import sampling_choices

        inputs = {"denoiser": denoiser, "vae": vae, "encoder": encoder}
        connected = {name: handle for name, handle in inputs.items() if handle is not None}
        dtypes = {
            name: connected[name].module.dtype if name in connected else choose_dtype(kind, precision)
            for name, kind in KINDS.items()
        }
        own, defaults = estimate.networks_on_meta(folders.preset_folder(preset), dtypes)
        networks: dict[str, Any] = {**own, **{name: empty_copy(handle) for name, handle in connected.items()}}
        stored: dict[str, float] = {name: estimate.weight_bytes(handle.module) for name, handle in connected.items()}
        if stores_fp8(precision) and denoiser is None:
            stored["denoiser"] = estimate.weight_bytes(networks["denoiser"]) / dtypes["denoiser"].itemsize
        denoiser_of, vae_of = (handle.name if handle is not None else preset for handle in (denoiser, vae))
        served = encoder is not None or denoiser_of == preset  # the preset's encoder serves its own denoiser only
        if not (served and networks["denoiser"].config.semantic_levels):
            networks["encoder"] = None
        chosen = sampling_choices(steps=steps, sampler=sampler, strength=strength)
        settings = resolve_settings(
            {**chosen, "scale": scale, "length": length, "overlap": overlap, "tile": tile,
             "tile_overlap": tile_overlap},
            defaults if denoiser is None else denoiser.defaults,
        )  # fmt: skip
        if settings.steps and denoiser_of != vae_of:
            checks.require_pair(networks["denoiser"], networks["vae"])
        rates = {name: measured_rate(devices(kind)[0], dtypes[name]) for name, kind in KINDS.items()}
        found = estimate.estimate(networks, height, width, frames, settings, rate=rates, stored=stored)
        text = f"{estimate.describe(found)}\n({estimate.law()['measured']})"
        minutes = (found.seconds or 0.0) / 60
        return io.NodeOutput(text, found.device_bytes / 2**30, minutes, ui=ui.PreviewText(text))


def empty_copy(handle: ComponentHandle) -> Any:
    """A network of the same sizes and number type on the meta device."""
    module = handle.module
    # SAM 2's trunk computes numbers while it is constructed, so it is built with weights and emptied then.
    place = "cpu" if handle.kind in PLAIN_LAYERS else "meta"
    empty = type(module)(module.config, dtype=module.dtype, device=place).to("meta").requires_grad_(False)
    if getattr(module, "empty_text", None) is not None:
        empty.empty_text = module.empty_text.to("meta")  # its length counts
    return empty


@lru_cache(maxsize=4)
def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """`matmul_rate`, once per session."""
    from ..setevsr_core.estimate import matmul_rate

    return matmul_rate(device, dtype)


NODES = [Estimate]
