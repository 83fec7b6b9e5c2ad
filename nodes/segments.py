"""Nodes at both ends of the composed graph: cut a video into segments, and put restored segments together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from comfy_api.latest import io

from . import checks, compat, sockets, widgets
from .payloads import SegmentSet, VideoIdentity

SEARCH_SHARE = 0.1
"""Share of Split Segments' time that the search for cuts takes, when frames are averaged after it."""


class SplitSegments(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRSplitSegments",
            display_name="Split Segments (SeTe-VSR)",
            category=widgets.STAGES,
            description="Plans which frames are restored together: overlapping segments that never cross a scene cut. "
            "Averages every frame with its neighbours along the motion, which takes away noise and flicker.",
            search_aliases=widgets.ALIASES,
            inputs=[
                io.Image.Input("images", tooltip="Frames of one video, in order. Alpha is enlarged along."),
                widgets.scale(),
                widgets.length(),
                widgets.overlap(),
                widgets.scene_cuts(),
                widgets.steady(),
            ],
            outputs=[
                sockets.Segments.Output("segments", tooltip="For all other stages: frames, plan and scale."),
                io.Int.Output("count", tooltip="Number of segments."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        scale: float,
        length: int = 5,
        overlap: int = 2,
        scene_cuts: str = "auto",
        steady: int = 4,
    ) -> io.NodeOutput:
        from ..setevsr_core.video.scenes import detect_cuts
        from ..setevsr_core.video.segments import plan_spans
        from ..setevsr_core.video.steadying import steady_video
        from .choices import cut_choice
        from .progress import NodeProgress

        checks.require_frames(images)
        progress, share = NodeProgress(), SEARCH_SHARE if steady else 1.0

        def searched() -> Iterator[torch.Tensor]:
            for done, image in enumerate(images, 1):
                yield image
                progress.report(share * done / len(images))

        def averaged(done: int, total: int) -> None:
            progress.report(share + (1 - share) * done / total)

        wanted = cut_choice(scene_cuts)
        cuts = detect_cuts(searched()) if isinstance(wanted, str) else wanted
        spans = plan_spans(len(images), length, overlap, cuts)
        require_room(SegmentSet(images, spans, scale, VideoIdentity.of(images)))
        frames = steady_video(images, steady, cuts, averaged)
        return io.NodeOutput(SegmentSet(frames, spans, scale, VideoIdentity.of(frames)), len(spans))


class StitchSegments(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRStitchSegments",
            display_name="Stitch Segments (SeTe-VSR)",
            category=widgets.STAGES,
            description="Corrects the colours of decoded segments against the input, averages their frames along the "
            "motion, and blends their overlaps.",
            search_aliases=widgets.ALIASES,
            inputs=[
                sockets.Segments.Input("segments", tooltip="From Temporal Decode."),
                widgets.colour(),
                widgets.steady_result(),
            ],
            outputs=[io.Image.Output("images", tooltip="The restored video, one picture per input frame.")],
        )

    @classmethod
    def execute(cls, segments: SegmentSet, colour: str = "wavelet", steady_result: int = 2) -> io.NodeOutput:
        from ..setevsr_core.streaming import fill
        from ..setevsr_core.video.stitch import Stitcher
        from .progress import NodeProgress

        pictures = require_decoded(segments)
        progress, stitcher = NodeProgress(), Stitcher()
        frames = segments.frames
        images = torch.empty((len(frames), *segments.size, frames.shape[-1]), **compat.intermediate_options())

        def blocks() -> Iterator[torch.Tensor]:
            for number, (span, picture) in enumerate(zip(segments.spans, pictures, strict=True), 1):
                part = frames[span.start : span.stop]
                with compat.readable_memory_error("lower 'length' of Split Segments, or choose 'none' for 'colour'."):
                    finished = finish_span(picture, part, segments, colour, steady_result)
                yield stitcher.push(span, finished)
                progress.count(number, len(segments.spans))
            yield stitcher.finish()

        fill(images, blocks())
        return io.NodeOutput(images)


def require_room(segments: SegmentSet) -> None:
    """`InputError` if the decoded segments and the result that is put together from them will not fit into memory."""
    decoded = sum(len(span) for span in segments.spans)
    checks.require_memory(len(segments.frames), segments.size, segments.frames.shape[-1], decoded=decoded)


def require_decoded(segments: SegmentSet) -> tuple[torch.Tensor, ...]:
    """The decoded pictures of all spans; `InputError` if the segments were not decoded."""
    from ..setevsr_core.errors import InputError

    if segments.decoded is None:
        raise InputError("These segments are not decoded yet; connect the output of 'Temporal Decode'.")
    return segments.decoded


def finish_span(
    pictures: torch.Tensor, frames: torch.Tensor, segments: SegmentSet, colour: str, steady_result: int
) -> torch.Tensor:
    """One span's pictures (T,sH,sW,3) as `decode_span` ends: with the input's colours, steadied, and with its alpha
    enlarged if it has one.
    """
    from ..setevsr_core.stages import recolour, upscale_alpha
    from ..setevsr_core.video.steadying import steady

    if colour != "none":
        pictures = recolour(pictures, frames[..., :3], colour, device=compat.compute_device())
    pictures = steady(pictures, steady_result)
    if frames.shape[-1] == 4:
        pictures = torch.cat([pictures, upscale_alpha(frames[..., 3:], segments.scale)], dim=-1)
    return pictures


NODES = [SplitSegments, StitchSegments]
