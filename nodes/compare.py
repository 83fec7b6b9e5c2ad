"""A node for looking: pictures side by side."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from . import checks, compat, widgets

REMEDY = "show one frame ('frame') or compare fewer of them."


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
                pictures("first", tooltip="Usually the input: pictures, or a VIDEO, of which only 'frame' is kept."),
                pictures("second", tooltip="Usually the result. Same number of frames, or a single one."),
                pictures("third", optional=True, tooltip="Another result, or the original."),
                pictures("fourth", optional=True),
                compat.widget(
                    io.String, "labels", default="input, restored",
                    tooltip="One label per picture, separated by commas; missing ones are numbered.",
                ),
                compat.widget(
                    io.Int, "frame", default=-1, min=-1, max=1_000_000,
                    tooltip="Which frame to show, counted from 0; -1 compares all frames (a video of comparisons), "
                    "which then lie in memory.",
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
        first: Any,
        second: Any,
        labels: str = "",
        frame: int = -1,
        zoom: float = 4.0,
        centre_x: float = 0.5,
        centre_y: float = 0.5,
        direction: str = "row",
        third: Any = None,
        fourth: Any = None,
    ) -> io.NodeOutput:
        from .pictures import compare
        from .progress import NodeProgress

        def require_room(shape: tuple[int, ...]) -> None:
            count, height, width, channels = shape
            checks.require_memory(count, (height, width), channels, remedy=REMEDY)

        named = {"first": first, "second": second, "third": third, "fourth": fourth}
        chosen = [frames_of(given, frame, name) for name, given in named.items() if given is not None]
        written = [label.strip() for label in labels.split(",") if label.strip()]
        texts = [written[i] if i < len(written) else f"{i + 1}" for i in range(len(chosen))]
        image = compare(
            chosen, texts, direction=direction, zoom=zoom, centre=(centre_x, centre_y),
            require_room=require_room, on_frame=NodeProgress().count,
        )  # fmt: skip
        return io.NodeOutput(image.to(**compat.intermediate_options()))


def pictures(name: str, **keywords: Any) -> Any:
    """An input that takes frames and videos."""
    return io.MultiType.Input(name, [io.Image, io.Video], **keywords)


def frames_of(given: Any, frame: int, name: str) -> torch.Tensor:
    """Frame `frame` of an IMAGE or a VIDEO as a batch of one; a single picture serves every frame; -1: all of them."""
    from ..setevsr_core.errors import InputError

    if compat.is_file_video(given):
        frames, count = decoded(given, frame)
    else:
        frames = given if isinstance(given, torch.Tensor) else given.get_components().images
        checks.require_frames(frames, name)
        count = len(frames)
        if count > 1 and frame >= 0:
            frames = frames[frame : frame + 1]
    if count > 1 and frame >= count:
        raise InputError(f"frame {frame} does not exist: '{name}' has {count} frames, counted from 0.")
    return frames


def decoded(video: Any, frame: int) -> tuple[torch.Tensor, int]:
    """(frames (N,H,W,3), how many were read) of a video file: it is read up to the frame that is wanted, and holds but
    one in memory unless all of them are.
    """
    from .media import reader_of

    with reader_of(video) as reader:
        if frame < 0:
            frames = all_of(reader)
            return frames, len(frames)
        count, last = 0, torch.empty(0)
        for count, picture in enumerate(reader, 1):
            compat.check_interrupt()
            last = picture[None]
            if count == frame + 1:
                break
    return last, count


def all_of(reader: Any) -> torch.Tensor:
    """All frames of a video, each written to its place: a list of them would need as much memory again to be joined."""
    checks.require_memory(reader.expected_frames or 1, reader.size, 3, remedy=REMEDY)
    count, frames = 0, torch.empty((reader.expected_frames or 1, *reader.size, 3))
    for count, picture in enumerate(reader, 1):
        compat.check_interrupt()
        if count > len(frames):  # the file has more frames than it tells
            frames = torch.cat([frames, torch.empty_like(frames)])
        frames[count - 1] = picture
    return frames[:count]


NODES = [Compare]
