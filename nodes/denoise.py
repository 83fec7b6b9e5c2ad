"""Encode Latents and Denoise: from frames to latents, from low-resolution latents to restored ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from . import compat, sockets, widgets
from .hosting import ComponentHandle, denoiser_memory, fitting_tiles, free_memory, vae_memory
from .payloads import LatentNote, SegmentSet, SemanticSet, read_latent, require_same_video

MEMORY_REMEDY = "lower 'tile' of Denoise, or 'length' of Split Segments."


class EncodeLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSREncodeLatents",
            display_name="Encode Latents (SeTe-VSR)",
            category=widgets.STAGES,
            description="Enlarges every frame by bicubic interpolation and encodes it with the VAE, frame by frame.",
            search_aliases=widgets.ALIASES,
            inputs=[
                sockets.Segments.Input("segments", tooltip="From Split Segments."),
                sockets.TemporalVAE.Input("vae", tooltip="From Load Temporal VAE or Load Preset."),
            ],
            outputs=[io.Latent.Output("latents", tooltip="For Denoise, or for Temporal Decode without diffusion.")],
        )

    @classmethod
    def execute(cls, segments: SegmentSet, vae: ComponentHandle) -> io.NodeOutput:
        from ..setevsr_core.stages import encode_latents, join_frames
        from .progress import NodeProgress

        module, progress = vae.load(vae_memory(vae, segments.size, 1)), NodeProgress()
        tiles = fitting_tiles(vae, segments.size, 1, "lower 'scale' of Split Segments.")

        def encode(tile: int, frame: torch.Tensor) -> Any:
            return encode_latents(
                module, frame, segments.scale, tile=tile, device=vae.device, check_cancel=compat.check_interrupt
            )

        parts: list[Any] = []
        for frame in segments.frames[..., :3].split(1):  # what is done stays when tiles become smaller
            parts.append(tiles.run(partial(encode, frame=frame)))
            progress.count(len(parts), len(segments.frames))
        tiles.report()
        encoded = join_frames(parts)
        note = LatentNote(
            segments.identity, segments.spans, segments.scale, vae.module.config.scaling_factor,
            encoded.latents, encoded.content, encoded.preview_matrix,
        )  # fmt: skip
        return io.NodeOutput(note.latent())


class Denoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRDenoise",
            display_name="Denoise (SeTe-VSR)",
            category=widgets.STAGES,
            description="Restores the latents of every segment by diffusion, guided by the low-resolution latents "
            "and, if connected, by the semantics.",
            search_aliases=widgets.ALIASES,
            inputs=[
                sockets.Denoiser.Input("denoiser", tooltip="From Load Denoiser or Load Preset."),
                io.Latent.Input("latents", tooltip="From Encode Latents."),
                widgets.seed(),
                widgets.steps(),
                widgets.sampler(),
                widgets.strength(),
                widgets.tile(),
                widgets.tile_overlap(),
                sockets.Semantics.Input(
                    "semantics", optional=True,
                    tooltip="From Encode Semantics, of the same video; without it semantic attention is off.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True,
                    tooltip="Text of the denoiser's own base model (SD 2.1's text encoder); without it the empty "
                    "prompt that the weights bring along.",
                ),
            ],
            outputs=[io.Latent.Output("latents", tooltip="For Temporal Decode: a latent per frame of each segment.")],
        )

    @classmethod
    def execute(
        cls,
        denoiser: ComponentHandle,
        latents: dict[str, Any],
        seed: int,
        steps: int = 0,
        sampler: str = widgets.PRESETS_OWN,
        strength: float = 0.0,
        tile: int = 64,
        tile_overlap: int = 16,
        semantics: SemanticSet | None = None,
        conditioning: list[Any] | None = None,
    ) -> io.NodeOutput:
        from ..setevsr_core.settings import resolve_settings
        from .choices import sampling_choices

        note = read_latent(latents, wanted_from="Encode Latents")
        require_encoded(note)
        if semantics is not None:
            require_same_video(semantics.identity, note.identity, ("Semantics", "latents"))
        chosen = sampling_choices(steps=steps, sampler=sampler, strength=strength)
        chosen |= {"seed": seed, "tile_overlap": tile_overlap, "tile": tile}
        settings = resolve_settings(chosen, denoiser.defaults)
        with compat.readable_memory_error(MEMORY_REMEDY):
            restored = denoise_all(denoiser, note, semantics, text_of(conditioning), settings)
        return io.NodeOutput(replace(note, scaled=restored, denoised=True).latent())


def require_encoded(note: LatentNote) -> None:
    """`InputError` for latents that were denoised already."""
    from ..setevsr_core.errors import InputError

    if note.denoised:
        raise InputError("These latents are denoised already; connect the output of 'Encode Latents' to 'Denoise'.")


def text_of(conditioning: list[Any] | None) -> torch.Tensor | None:
    """The text embedding (1,n,ctx) of a CONDITIONING, its first entry; None stays None."""
    from ..setevsr_core.errors import InputError

    if conditioning is None:
        return None
    if not conditioning:
        raise InputError("The conditioning is empty; disconnect it or connect the output of a text encoder.")
    return conditioning[0][0][:1]


def denoise_all(
    denoiser: ComponentHandle, note: LatentNote, semantics: SemanticSet | None, text: torch.Tensor | None, settings: Any
) -> torch.Tensor:
    """Every span's restored latents, one after the other: (sum of span lengths, 4, h, w), scaled. Where the memory is
    full, tiles become smaller.
    """
    from ..setevsr_core.segment_run import denoiser_tiles
    from ..setevsr_core.stages import denoise_span
    from .progress import NodeProgress, latent_pictures

    progress, preview = NodeProgress(), latent_pictures(denoiser)
    height, width = (side * 8 for side in note.scaled.shape[-2:])
    longest = max(len(span) for span in note.spans)
    module = denoiser.load(denoiser_memory((height, width), longest, settings.tile, denoiser.module.dtype))
    latents = note.scaled[:longest]
    tiles = denoiser_tiles(module, settings.tile, latents, denoiser.device, free_memory, MEMORY_REMEDY)
    restored: list[torch.Tensor] = []
    for number, span in enumerate(note.spans):

        def on_step(index: int, steps: int, noisy: torch.Tensor, clean: torch.Tensor, number: int = number) -> None:
            picture = preview(clean[:1], note.preview_matrix)[0]
            progress.report((number + (index + 1) / steps) / len(note.spans), preview=picture)

        def denoise(tile: int, span: Any = span, on_step: Any = on_step) -> torch.Tensor:
            part, chosen = slice(span.start, span.stop), settings.in_tiles(tile)
            return denoise_span(
                module, note.scaled[part], semantics.embeddings[part] if semantics is not None else None, span.indices,
                seed=chosen.seed, steps=chosen.steps, sampler=chosen.sampler, strength=chosen.strength,
                text=text, tile=chosen.tile, tile_overlap=chosen.tile_overlap, content=note.content,
                device=denoiser.device, on_step=on_step, check_cancel=compat.check_interrupt,
            )  # fmt: skip

        restored.append(tiles.run(denoise))
    tiles.report()
    return torch.cat(restored)


NODES = [EncodeLatents, Denoise]
