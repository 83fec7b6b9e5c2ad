"""ComfyUI's VIDEO as a lazy stream of frames, and the writer that continues it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..setevsr_core.errors import InputError, VideoError, require
from ..setevsr_core.video.reading import VideoReader
from ..setevsr_core.video.writing import VideoWriter
from . import checks, compat

AAC_FRAME = 1024
"""Samples per AAC frame."""


@dataclass(frozen=True)
class VideoStream:
    """An open VIDEO: frames (H,W,3) that are decoded as they are asked for, and what a writer must keep.

    size: (H, W). expected_frames: for progress bars, None if unknown. options: further arguments of `VideoWriter`.
    """

    frames: Iterable[Tensor]
    frame_rate: Fraction
    size: tuple[int, int]
    expected_frames: int | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def writer(self, path: Path, size: tuple[int, int], quality: float) -> VideoWriter:
        """A writer of `size` (H, W) with this video's rate, colours and sound.

        Sound that MP4 cannot hold makes it an MKV file: nothing is encoded again.
        """
        options = {**self.options, "quality": quality}
        try:
            return VideoWriter(path, self.frame_rate, size, **options)
        except VideoError:
            if self.options.get("audio_from") is None:
                raise
            return VideoWriter(path.with_suffix(".mkv"), self.frame_rate, size, **options)


@contextmanager
def open_video(video: Any) -> Iterator[VideoStream]:
    """A VIDEO of any kind as a stream: a file is decoded lazily, one made in the graph is taken from memory."""
    if compat.is_file_video(video):
        start, duration = compat.trim_window(video)
        with VideoReader(video.get_stream_source(), start, duration) as reader:
            # Wide-gamut tags must stay; anything else is tagged as its new size wants it.
            colour = reader.tags if reader.tags.wide else None
            options = {"colour": colour, "pixel_aspect": reader.pixel_aspect}
            options["audio_from"] = reader if reader.has_audio else None
            yield VideoStream(reader, reader.frame_rate, reader.size, reader.expected_frames, options)
        return
    parts = video.get_components()
    checks.require_frames(parts.images, "video")
    sound = None
    try:
        if parts.audio is not None:
            sound = write_sound(parts.audio)
        images = parts.images
        rate, size = Fraction(parts.frame_rate), (images.shape[1], images.shape[2])
        yield VideoStream(FramesInMemory(images), rate, size, len(images), {"audio_from": sound})
    finally:
        if sound is not None:
            sound.unlink(missing_ok=True)


class FramesInMemory:
    """The colours of frames in memory (N,H,W,3|4), one by one, as often as asked for."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __iter__(self) -> Iterator[Tensor]:
        return (image[..., :3].float() for image in self._images)


def write_sound(audio: Mapping[str, Any]) -> Path:
    """ComfyUI's AUDIO as a temporary AAC file, so that its packets can be copied beside the pictures."""
    from .upscale import temporary_path

    av = require("av", "av", "writing sound")
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    if waveform.ndim != 3 or 0 in waveform.shape:
        raise InputError(f"The video's sound has the shape {tuple(waveform.shape)}; it must be (1, channels, samples).")
    layout = {1: "mono", 2: "stereo", 6: "5.1"}.get(waveform.shape[1])
    samples = waveform[0].float().cpu().contiguous()
    if layout is None:
        samples, layout = samples.mean(0, keepdim=True), "mono"
    path = temporary_path("sound", ".m4a")
    with av.open(str(path), mode="w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        for begin in range(0, samples.shape[1], AAC_FRAME):
            part = samples[:, begin : begin + AAC_FRAME].numpy()
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
