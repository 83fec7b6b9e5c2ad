"""Load Sample Video and Degrade Video: test material inside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl, io

from . import compat, folders, widgets

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
        from ..setevsr_core.training.degradation import Degradation
        from ..setevsr_core.training.degraded_video import degrade_footage
        from .media import open_video
        from .progress import NodeProgress

        progress, path = NodeProgress(), folders.temporary_path("degraded")
        with open_video(video) as source:
            degrade_footage(
                Degradation(), source, path, scale, seed, NEARLY_LOSSLESS,
                on_frame=lambda done: progress.count(done, source.expected_frames or done + 1),
                check_cancel=compat.check_interrupt,
            )  # fmt: skip
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


NODES = [LoadSampleVideo, DegradeVideo]
