"""Load Sample Video and Degrade Video: test material inside the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl, io

from . import compat, widgets

ASSETS = Path(__file__).parent.parent / "assets"
SAMPLES = {"low quality": "city_lq.mp4", "reference": "city_reference.mp4"}
NEARLY_LOSSLESS = 8
"""Constant rate factor of a degraded video: what is bad about it shall be the degradation alone."""


class LoadSampleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRSampleVideo",
            display_name="Load Sample Video (SeTe-VSR)",
            category=widgets.TOOLS,
            description="The bundled clip (CC0, a city from above), so that a workflow runs without any upload.",
            search_aliases=["sample", "example", "test video", "demo"],
            inputs=[
                compat.widget(
                    io.Combo, "version", options=list(SAMPLES), default="low quality",
                    tooltip="low quality: small, blurred, noisy, compressed: something to restore. "
                    "reference: the same moments before that, 4 times as large, for Compare.",
                ),
            ],
            outputs=[io.Video.Output("video")],
        )

    @classmethod
    def execute(cls, version: str = "low quality") -> io.NodeOutput:
        from ..setevsr_core.errors import VideoError

        path = ASSETS / SAMPLES[version]
        if not path.is_file():
            raise VideoError(f"The sample clip {path} is missing; install the node pack again.")
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


class DegradeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRDegradeVideo",
            display_name="Degrade Video (SeTe-VSR)",
            category=widgets.TOOLS,
            description="Makes a good video bad as real cameras and web sites do: blur, noise, JPEG and video "
            "compression, twice over, changing from frame to frame. For tests against a known original; sound is kept.",
            search_aliases=["degrade", "downscale", "compress", "test material"],
            inputs=[
                io.Video.Input("video", tooltip="A clean video."),
                compat.widget(
                    io.Int, "scale", default=4, min=1, max=8,
                    tooltip="How many times smaller each side becomes; restore with the same scale to compare.",
                ),
                widgets.seed(
                    "Draws the kind and strength of every step: another seed, another kind of bad. "
                    "Same seed: same result."
                ),
            ],
            outputs=[io.Video.Output("video", tooltip="The degraded video, written nearly without further loss.")],
        )

    @classmethod
    def execute(cls, video: Any, scale: int = 4, seed: int = 0) -> io.NodeOutput:
        from .media import open_video

        with open_video(video) as source:
            path = degrade(source, scale, seed)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


def degrade(source: Any, scale: int, seed: int) -> Path:
    """Write the degraded frames of `Footage` to a temporary file, one by one."""
    import torch

    from ..setevsr_core.errors import VideoError
    from ..setevsr_core.training.degradation import Degradation
    from .media import writer_for
    from .progress import NodeProgress
    from .upscale import temporary_path

    progress = NodeProgress()
    writer = None
    try:
        for done, frame in enumerate(Degradation().stream(eight_bit(source.frames), seed, scale), 1):
            if writer is None:
                writer = writer_for(source, temporary_path("degraded"), frame.shape[:2], NEARLY_LOSSLESS)
            prepared = writer.prepare(torch.from_numpy(frame).float() / 255)
            writer.add(prepared, None if source.times is None else source.times(writer.num_frames))
            progress.count(done, source.expected_frames or done + 1)
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    if writer is None:
        raise VideoError("The video has no frames; nothing can be degraded.")
    writer.close()
    return writer.path


def eight_bit(frames: Iterable[Any]) -> Iterator[Any]:
    """Frames (H,W,3) in 0..1 as uint8 arrays, as the degradation takes them."""
    for frame in frames:
        compat.check_interrupt()
        yield frame.clamp(0, 1).mul(255).round().byte().cpu().numpy()


NODES = [LoadSampleVideo, DegradeVideo]
