"""A whole video through the degradation of training, frame by frame in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..video.writing import VideoWriter
from ..video_job import Footage
from .degradation import Degradation, target_size


def degrade_footage(
    degradation: Degradation,
    footage: Footage,
    path: str | Path,
    scale: int,
    seed: int,
    quality: float,
    *,
    on_frame: Callable[[int], None] | None = None,
    check_cancel: Callable[[], None] | None = None,
) -> VideoWriter:
    """Writes the degraded frames of `footage` with its times, colours and sound, and returns the closed writer.

    They are written with 8 bits, which is all that a degraded frame has. on_frame(done) is called for every frame that
    is written, check_cancel() for every one that is read. Errors: VideoError, SettingsError.
    """
    with VideoWriter(
        path, footage.frame_rate, target_size(*footage.size, scale), quality=quality, time_base=footage.time_base,
        **footage.options,
    ) as writer:  # fmt: skip
        frames = degradation.stream(_as_uint8(footage.frames, check_cancel), seed, scale)
        for index, frame in enumerate(frames):
            prepared = writer.prepare(torch.from_numpy(frame).float() / 255)
            writer.add(prepared, None if footage.times is None else footage.times(index))
            if on_frame is not None:
                on_frame(writer.num_frames)
    return writer


def _as_uint8(frames: Iterable[Any], check_cancel: Callable[[], None] | None) -> Iterator[Any]:
    """Tensors (H,W,3) in 0..1 -> uint8 arrays, as the degradation takes them."""
    for frame in frames:
        if check_cancel is not None:
            check_cancel()
        yield frame.clamp(0, 1).mul(255).round().byte().cpu().numpy()
