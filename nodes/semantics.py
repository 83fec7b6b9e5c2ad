"""Encode Semantics: what is where in every frame, for the semantic attention."""

from __future__ import annotations

from comfy_api.latest import io

from . import compat, sockets, widgets
from .hosting import ComponentHandle
from .payloads import SegmentSet, SemanticSet


class EncodeSemantics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSREncodeSemantics",
            display_name="Encode Semantics (SeTe-VSR)",
            category=widgets.STAGES,
            description="Reads every low-resolution frame with SAM 2's image encoder; the denoiser looks these "
            "meanings up while it restores. The preview shows regions of like meaning in like colours.",
            search_aliases=[*widgets.ALIASES, "sam2", "segment anything"],
            inputs=[
                sockets.Segments.Input("segments", tooltip="From Split Segments."),
                sockets.SemanticEncoder.Input("encoder", tooltip="From Load SAM2 Encoder or Load Preset."),
            ],
            outputs=[
                sockets.Semantics.Output("semantics", tooltip="For Denoise: one embedding of 256 channels per frame."),
                io.Image.Output("preview", tooltip="The embeddings' three strongest components as colours."),
            ],
        )

    @classmethod
    def execute(cls, segments: SegmentSet, encoder: ComponentHandle | None) -> io.NodeOutput:
        from ..setevsr_core.errors import InputError
        from ..setevsr_core.stages import encode_semantics
        from ..setevsr_core.video.embeddings import principal_colours
        from .progress import NodeProgress

        if encoder is None:
            raise InputError(
                "This preset has no semantic encoder; connect 'Load SAM2 Encoder', or leave this node out: the input "
                "'semantics' of Denoise may stay open."
            )
        with compat.readable_memory_error("load a smaller SAM 2 encoder, or choose 'bf16' in its loader."):
            embeddings = encode_semantics(
                encoder.load(), segments.frames[..., :3],
                device=encoder.device, on_frame=NodeProgress().count, check_cancel=compat.check_interrupt,
            )  # fmt: skip
        preview = principal_colours(embeddings, (segments.identity.height, segments.identity.width))
        return io.NodeOutput(
            SemanticSet(embeddings, segments.identity), preview.to(**compat.intermediate_options())
        )


NODES = [EncodeSemantics]
