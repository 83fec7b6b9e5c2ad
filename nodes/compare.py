"""A node for looking: pictures side by side."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from . import checks, compat, widgets


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRCompare",
            display_name="Compare (SeTe-VSR)",
            category=widgets.TOOLS,
            description="Puts two to four pictures or videos side by side, labelled, with an enlarged crop below each. "
            "Smaller ones are enlarged without smoothing.",
            search_aliases=["compare", "side by side", "before after", "zoom"],
            inputs=[
                io.Image.Input("first", tooltip="Usually the input."),
                io.Image.Input("second", tooltip="Usually the result. Same number of frames, or a single one."),
                io.Image.Input("third", optional=True, tooltip="Another result, or the original."),
                io.Image.Input("fourth", optional=True),
                compat.widget(
                    io.String, "labels", default="input, restored",
                    tooltip="One label per picture, separated by commas; missing ones are numbered.",
                ),
                compat.widget(
                    io.Int, "frame", default=-1, min=-1, max=1_000_000,
                    tooltip="Which frame to show, counted from 0; -1 compares all frames (a video of comparisons).",
                ),
                compat.widget(
                    io.Float, "zoom", default=4.0, min=0.0, max=16.0, step=0.5,
                    tooltip="Enlargement of the crop below each picture; 0 leaves it out. Pixels stay square.",
                ),
                compat.widget(
                    io.Float, "centre_x", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="Middle of the crop from the left edge (0) to the right edge (1).",
                ),
                compat.widget(
                    io.Float, "centre_y", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="Middle of the crop from the upper edge (0) to the lower edge (1).",
                ),
                compat.widget(
                    io.Combo, "direction", options=["row", "column"], default="row", advanced=True,
                    tooltip="row: side by side. column: one above the other, for wide pictures.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The comparison: one picture, or one per frame.")],
        )

    @classmethod
    def execute(
        cls,
        first: torch.Tensor,
        second: torch.Tensor,
        labels: str = "",
        frame: int = -1,
        zoom: float = 4.0,
        centre_x: float = 0.5,
        centre_y: float = 0.5,
        direction: str = "row",
        third: torch.Tensor | None = None,
        fourth: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        from .pictures import compare
        from .progress import NodeProgress

        def require_room(shape: tuple[int, ...]) -> None:
            count, height, width, channels = shape
            checks.require_memory(
                count, (height, width), channels, remedy="show one frame ('frame') or compare fewer of them."
            )

        named = {"first": first, "second": second, "third": third, "fourth": fourth}
        batches = {name: batch for name, batch in named.items() if batch is not None}
        for name, batch in batches.items():
            checks.require_frames(batch, name)
        chosen = [pick_frame(batch, frame, name) for name, batch in batches.items()]
        written = [label.strip() for label in labels.split(",") if label.strip()]
        texts = [written[i] if i < len(written) else f"{i + 1}" for i in range(len(chosen))]
        image = compare(
            chosen, texts, direction=direction, zoom=zoom, centre=(centre_x, centre_y),
            require_room=require_room, on_frame=NodeProgress().count,
        )  # fmt: skip
        return io.NodeOutput(image.to(**compat.intermediate_options()))


def pick_frame(batch: torch.Tensor, frame: int, name: str) -> torch.Tensor:
    """Frame `frame` of a batch as a batch of one; a single picture serves every frame; -1 keeps the batch."""
    from ..setevsr_core.errors import InputError

    if frame < 0 or len(batch) == 1:
        return batch
    if frame >= len(batch):
        raise InputError(f"frame {frame} does not exist: '{name}' has {len(batch)} frames, counted from 0.")
    return batch[frame : frame + 1]


NODES = [Compare]
