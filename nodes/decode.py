"""Temporal Decode: latents become pictures again, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from . import compat, sockets, widgets
from .hosting import ComponentHandle, fitting_tiles, vae_memory
from .payloads import LatentNote, SegmentSet, read_latent, require_same_plan
from .segments import require_room


class TemporalDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRTemporalDecode",
            display_name="Temporal Decode (SeTe-VSR)",
            category=widgets.STAGES,
            description="Decodes every segment's latents with the temporal VAE, which looks at neighbouring frames "
            "and at the features of the input. Latents straight from Encode Latents give the decoder-only result.",
            search_aliases=widgets.ALIASES,
            inputs=[
                io.Latent.Input("latents", tooltip="From Denoise (or from Encode Latents, without diffusion)."),
                sockets.Segments.Input("segments", tooltip="From the same Split Segments as the latents."),
                sockets.TemporalVAE.Input("vae", tooltip="The VAE that encoded the latents."),
                widgets.fusion(),
            ],
            outputs=[sockets.Segments.Output("segments", tooltip="For Stitch Segments.")],
        )

    @classmethod
    def execute(
        cls, latents: dict[str, Any], segments: SegmentSet, vae: ComponentHandle, fusion: float = 1.0
    ) -> io.NodeOutput:
        from ..setevsr_core.stages import decode_span
        from .progress import NodeProgress

        note = read_latent(latents, wanted_from="Denoise")
        require_same_plan(segments, note)
        require_room(segments)  # once more: Split Segments may have run when more was free
        progress = NodeProgress()
        longest = max(len(span) for span in segments.spans)
        module = vae.load(vae_memory(vae, segments.size, longest))
        tiles = fitting_tiles(vae, segments.size, longest, "lower 'length' of Split Segments, or 'scale'.")
        decoded: list[torch.Tensor] = []

        def decode(tile: int, part: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
            return decode_span(
                module, part, frames, segments.scale, fusion=fusion, colour="none", tile=tile,
                device=vae.device, check_cancel=compat.check_interrupt,
            )  # fmt: skip

        for span, part in zip(segments.spans, span_latents(note), strict=True):
            frames = segments.frames[span.start : span.stop, ..., :3]
            decoded.append(tiles.run(partial(decode, part=part, frames=frames)))
            progress.count(len(decoded), len(segments.spans))
        tiles.report()
        return io.NodeOutput(replace(segments, decoded=tuple(decoded)))


def span_latents(note: LatentNote) -> Iterator[torch.Tensor]:
    """The latents (T,4,h,w) of every span, whether denoised (stored span by span) or not (stored frame by frame)."""
    begin = 0
    for span in note.spans:
        start = begin if note.denoised else span.start
        yield note.scaled[start : start + len(span)]
        begin += len(span)


NODES = [TemporalDecode]
