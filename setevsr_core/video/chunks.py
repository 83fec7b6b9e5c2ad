"""Encoder-ready frames as lossless chunks: what the encoder is given is kept, bit for bit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import VideoError, require
from .source import reason_of


def pack_frames(frames: Sequence[Any]) -> bytes:
    """PyAV frames of one size and pixel format -> a small file: FFV1, PNG for packed RGB, raw where neither can."""
    av = require("av", "av", "writing a video")
    if frames[0].format.name.startswith("rgb"):
        return _encode(frames, "png", {})
    try:
        return _encode(frames, "ffv1", {"level": "3", "slicecrc": "1"})
    except av.error.FFmpegError:  # pictures of a few pixels
        return _encode(frames, "rawvideo", {})


def _encode(frames: Sequence[Any], codec: str, options: dict[str, str]) -> bytes:
    av = require("av", "av", "writing a video")
    first, memory = frames[0], io.BytesIO()
    with av.open(memory, "w", format="nut", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = first.height, first.width, first.format.name
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(frames):
            copy = copy_frame(frame)
            copy.pts = index
            container.mux(stream.encode(copy))
        container.mux(stream.encode(None))
    return memory.getvalue()


def unpack_frames(data: bytes, pixel_format: str) -> Iterator[Any]:
    """The frames of `pack_frames`, without colour tags and times. Errors: VideoError if they cannot be decoded."""
    av = require("av", "av", "reading a video")
    try:
        with av.open(io.BytesIO(data)) as container:
            for frame in container.decode(video=0):
                if frame.format.name != pixel_format:
                    frame = frame.reformat(format=pixel_format)
                yield copy_frame(frame)
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(f"a chunk of the unfinished work cannot be read: {reason_of(error)}") from error


def copy_frame(frame: Any) -> Any:
    """The pixels of a PyAV frame in a fresh one: no picture type, time or tag of a decoder gets into the encoder."""
    av = require("av", "av", "writing a video")
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, copy.planes, strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(-1, source.line_size)
        width = min(source.line_size, target.line_size)
        np.frombuffer(target, np.uint8).reshape(-1, target.line_size)[: source.height, :width] = rows[
            : source.height, :width
        ]
    return copy
