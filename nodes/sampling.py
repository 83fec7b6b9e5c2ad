"""Native sampling: the denoiser as a MODEL, its conditioning segment by segment, and what brings the results together.

    Load Denoiser -> Denoiser as Model ------------.
    Encode Latents -> Sampling Conditioning -> KSampler (or SamplerCustomAdvanced) -> Join Latents -> Temporal Decode

Sampling Conditioning gives lists with one entry per segment; ComfyUI runs the sampler once for each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from . import compat, sockets, widgets
from .denoise import require_encoded, text_of
from .hosting import ComponentHandle
from .payloads import LatentNote, SemanticSet, read_latent, require_same_video

SPAN_KEY = "setevsr_span"
"""Key inside the LATENT of one segment under which its `SpanNote` rides through the sampler."""


@dataclass(frozen=True)
class SpanNote:
    """Which segment of which latents a LATENT is."""

    note: LatentNote
    index: int


class DenoiserModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRDenoiserModel",
            display_name="Denoiser as Model (SeTe-VSR)",
            category=widgets.STAGES,
            description="Gives the denoiser as a MODEL, for KSampler, SamplerCustomAdvanced and every sampler and "
            "scheduler of ComfyUI. Its conditioning comes from Sampling Conditioning.",
            search_aliases=[*widgets.ALIASES, "ksampler", "native sampling"],
            inputs=[sockets.Denoiser.Input("denoiser", tooltip="From Load Denoiser, Load Preset or Load LoRA.")],
            outputs=[io.Model.Output("model", tooltip="For Sampling Conditioning and a sampler.")],
        )

    @classmethod
    def execute(cls, denoiser: ComponentHandle) -> io.NodeOutput:
        return io.NodeOutput(denoiser.patcher.clone())


class SamplingConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRSamplingConditioning",
            display_name="Sampling Conditioning (SeTe-VSR)",
            category=widgets.STAGES,
            description="What a native sampler needs to restore latents: conditioning with the low-resolution latents "
            "and semantics, and the latents of every segment. All outputs are lists: the sampler runs once a segment.",
            search_aliases=[*widgets.ALIASES, "ksampler", "native sampling"],
            inputs=[
                io.Model.Input("model", tooltip="From Denoiser as Model."),
                io.Latent.Input("latents", tooltip="From Encode Latents."),
                widgets.tile(halved=False),
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
            outputs=[
                io.Conditioning.Output(
                    "positive", is_output_list=True, tooltip="With text and semantics, for the sampler's positive."
                ),
                io.Conditioning.Output(
                    "negative", is_output_list=True,
                    tooltip="Without text and semantics, for the sampler's negative. Only used when cfg is not 1; "
                    "the networks are trained for 1.",
                ),
                io.Latent.Output(
                    "latents", is_output_list=True,
                    tooltip="One segment each, for the sampler. A frame that two segments share gets the same noise.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        latents: dict[str, Any],
        tile: int = 64,
        tile_overlap: int = 16,
        semantics: SemanticSet | None = None,
        conditioning: list[Any] | None = None,
    ) -> io.NodeOutput:
        from ..setevsr_core.sampling.tiles import check_tiling
        from . import native_model

        check_tiling(tile, tile_overlap)
        denoiser = native_model.denoiser_in(model)
        note = read_latent(latents, wanted_from="Encode Latents")
        require_encoded(note)
        if semantics is not None:
            require_same_video(semantics.identity, note.identity, ("Semantics", "latents"))
        text = text_of(conditioning)
        empty = empty_prompt(denoiser, text)
        fit_preview_colours(model.model.latent_format, note.preview_matrix)
        positive, negative, samples = [], [], []
        for index, span in enumerate(note.spans):
            part = slice(span.start, span.stop)
            shared = {
                native_model.LR: note.scaled[part],
                native_model.PLAN: (tile, tile_overlap, tuple(note.content)),
            }
            meaning = {native_model.SEMANTICS: semantics.embeddings[part]} if semantics is not None else {}
            positive.append([[empty if text is None else text, {**shared, **meaning}]])
            negative.append([[empty, dict(shared)]])
            samples.append({
                "samples": note.scaled[part] / native_model.LATENT_FACTOR,
                "batch_index": list(span.indices),
                SPAN_KEY: SpanNote(note, index),
            })
        return io.NodeOutput(positive, negative, samples)


class FrameNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRFrameNoise",
            display_name="Frame Noise (SeTe-VSR)",
            category=widgets.STAGES,
            description="Start noise for SamplerCustomAdvanced that depends only on seed and frame, the same that "
            "Denoise uses: with it a native sampler starts from the very same latents.",
            search_aliases=[*widgets.ALIASES, "noise", "native sampling"],
            inputs=[widgets.seed()],
            outputs=[io.Noise.Output("noise", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(FrameNoiseSource(seed))


class FrameNoiseSource:
    """A NOISE of ComfyUI."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise of the shape of the latents; their `batch_index` says which frames they are."""
        from ..setevsr_core.sampling.noise import START, frames_noise

        samples = input_latent["samples"]
        indices = input_latent.get("batch_index", range(len(samples)))
        return frames_noise(self.seed, indices, START, samples.shape[1:])


class JoinLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRJoinLatents",
            display_name="Join Latents (SeTe-VSR)",
            category=widgets.STAGES,
            description="Brings the sampled segments together again, for Temporal Decode.",
            search_aliases=[*widgets.ALIASES, "native sampling"],
            is_input_list=True,
            inputs=[io.Latent.Input("latents", tooltip="Of the sampler behind Sampling Conditioning, all segments.")],
            outputs=[io.Latent.Output("latents", tooltip="For Temporal Decode.")],
        )

    @classmethod
    def execute(cls, latents: list[dict[str, Any]]) -> io.NodeOutput:
        return io.NodeOutput(join_spans(latents).latent())


def empty_prompt(denoiser: Any, text: Tensor | None) -> Tensor:
    """The embedding of the empty prompt, or zeros like `text` for weights that bring none (only cfg looks at it)."""
    from ..setevsr_core.sampling.loop import text_for

    if denoiser.empty_text is not None:
        return denoiser.empty_text.detach().float().cpu()
    return torch.zeros_like(text_for(denoiser, text))


def fit_preview_colours(latent_format: Any, matrix: Tensor) -> None:
    """Let ComfyUI's previews use the colours that were fitted to this video's latents: they suit any VAE.

    `matrix` (C+1,3) maps latents and a constant to 0..1; ComfyUI wants -1..1 and one row of three per channel.
    """
    colours = (2 * matrix.detach().float().cpu()).tolist()
    latent_format.latent_rgb_factors = colours[:-1]
    latent_format.latent_rgb_factors_bias = [value - 1.0 for value in colours[-1]]


def join_spans(latents: list[dict[str, Any]]) -> LatentNote:
    """The note of all segments' sampled latents; `InputError` if one is missing, foreign or of another shape."""
    from ..setevsr_core.errors import InputError
    from .native_model import LATENT_FACTOR

    spans = {entry[SPAN_KEY].index: entry for entry in latents if isinstance(entry.get(SPAN_KEY), SpanNote)}
    if not latents or any(not isinstance(entry.get(SPAN_KEY), SpanNote) for entry in latents):
        raise InputError(
            "These latents are no segments of 'Sampling Conditioning'; connect the sampler that ran on its latents."
        )
    note = next(iter(spans.values()))[SPAN_KEY].note
    whole = len(latents) == len(spans) == len(note.spans)  # none twice, none missing
    if not whole or any(entry[SPAN_KEY].note is not note for entry in latents):
        raise InputError(
            f"{len(latents)} segments came ({len(spans)} different ones), but the video has {len(note.spans)}; "
            "connect one sampler that ran on all latents of one 'Sampling Conditioning'."
        )
    parts = []
    for index, span in enumerate(note.spans):
        samples = spans[index]["samples"].to(note.scaled) * LATENT_FACTOR
        if samples.shape != (len(span), *note.scaled.shape[1:]):
            raise InputError(
                f"Segment {index + 1} has the shape {tuple(samples.shape)}; do not cut, repeat or resize latents "
                "between Sampling Conditioning and Join Latents."
            )
        parts.append(samples)
    return replace(note, scaled=torch.cat(parts), denoised=True)


NODES = [DenoiserModel, SamplingConditioning, FrameNoise, JoinLatents]
