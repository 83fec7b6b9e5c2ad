"""ComfyUI's VIDEO as footage for the core's engine."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..setevsr_core.errors import InputError, require
from ..setevsr_core.video.reading import VideoReader
from ..setevsr_core.video.source import video_errors
from ..setevsr_core.video_job import Footage, footage_of
from . import checks, compat, folders

log = logging.getLogger(__name__)

AAC_FRAME = 1024
"""Samples per AAC frame."""


def reader_of(video: Any) -> VideoReader:
    """The frames of a VIDEO that is backed by a file, as far as 'Trim Video' has left them."""
    start, duration = compat.trim_window(video)
    return VideoReader(video.get_stream_source(), start, duration)


@contextmanager
def open_video(video: Any) -> Iterator[Footage]:
    """A VIDEO of any kind as footage: a file is decoded lazily, one made in the graph is taken from memory."""
    if compat.is_file_video(video):
        with reader_of(video) as reader:
            yield footage_of(reader)
        return
    parts = video.get_components()
    checks.require_frames(parts.images, "video")
    images, sound = parts.images, None
    if images.shape[-1] == 4 and any(bool((image[..., 3] < 1).any()) for image in images):
        log.warning("SeTe-VSR: the video has transparency, which the result does not keep")
    try:
        if parts.audio is not None:
            sound = write_sound(parts.audio)
        rate, size = Fraction(parts.frame_rate), (images.shape[1], images.shape[2])
        yield Footage(
            FramesInMemory(images), rate, size, identity_of(images, parts.audio, rate), len(images),
            compat.bit_depth(video), options={"audio_from": sound},
        )  # fmt: skip
    finally:
        if sound is not None:
            sound.unlink(missing_ok=True)


def identity_of(images: Tensor, audio: Any, rate: Fraction) -> str:
    """Known again when the same graph is run again: made of every frame, and of the sound."""
    digest = hashlib.sha256(repr((tuple(images.shape), rate)).encode())
    for image in images:
        compat.check_interrupt()
        digest.update(image.float().cpu().contiguous().numpy().tobytes())
    if audio is not None:
        digest.update(audio["waveform"].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class FramesInMemory:
    """The colours of frames in memory (N,H,W,3|4), one by one, as often as asked for."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __iter__(self) -> Iterator[Tensor]:
        return (image[..., :3].float() for image in self._images)


def write_sound(audio: Mapping[str, Any]) -> Path | None:
    """ComfyUI's AUDIO as a temporary AAC file, so that its packets can be copied beside the pictures; None for silence
    of no length.

    Up to six channels are kept, seven and eight are mixed to 5.1, since PyAV, with which ComfyUI would read them again,
    reads beyond the planes of eight; more are mixed to one. A rate that AAC does not know becomes the next it does.
    """
    from ..setevsr_core.video.recoding import USUAL_LAYOUTS

    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    if waveform.ndim != 3 or 0 in waveform.shape[:2]:
        raise InputError(f"The video's sound has the shape {tuple(waveform.shape)}; it must be (1, channels, samples).")
    if rate < 1:
        raise InputError(f"The video's sound has a sample rate of {rate}; it must be at least 1 per second.")
    if not waveform.shape[2]:
        return None
    if not waveform.isfinite().all():
        raise InputError("The video's sound contains NaN or infinite values; find the step before that produces them.")
    layout = USUAL_LAYOUTS.get(waveform.shape[1])
    samples = waveform[0].float().cpu()
    if layout is None:
        samples, layout = samples.mean(0, keepdim=True), "mono"
    path = folders.temporary_path("sound", ".m4a")
    try:
        with video_errors(str(path), "cannot be written"):
            _encode_sound(path, samples, layout, rate)
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return path


def _encode_sound(path: Path, samples: Tensor, layout: str, rate: int) -> None:
    """Samples (channels, N) in FFmpeg's `layout` as an AAC file."""
    from ..setevsr_core.video.recoding import encodable_rate

    av = require("av", "av", "writing sound")
    with av.open(str(path), mode="w", format="mp4") as container:
        written = layout if samples.shape[0] <= 6 else "5.1"
        stream = container.add_stream("aac", rate=encodable_rate("aac", rate), layout=written)
        for begin in range(0, samples.shape[1], AAC_FRAME):
            part = samples[:, begin : begin + AAC_FRAME].T.reshape(1, -1).numpy()  # channels side by side
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
