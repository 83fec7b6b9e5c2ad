"""Tiny clips made with PyAV, and what is read back from files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def gradient_frames(count: int, height: int = 48, width: int = 64) -> Tensor:
    """(N,H,W,3) in 0..1: a smooth picture that grows brighter frame by frame, so that every frame can be told apart."""
    y = torch.linspace(0, 0.5, height).view(1, height, 1)
    x = torch.linspace(0, 0.3, width).view(1, 1, width)
    t = torch.linspace(0, 0.2, count).view(count, 1, 1)
    base = y + x + t
    return torch.stack([base, base.flip(1), base.flip(2)], dim=-1)


def make_clip(
    path: Path,
    count: int = 12,
    size: tuple[int, int] = (48, 64),
    rate: Fraction = Fraction(24),
    audio: str | None = "aac",
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """A clip of grey frames whose brightness rises by 10 levels a frame, with a 440 Hz tone as long as the pictures."""
    import av

    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=rate, options=options or {"crf": "4", "g": "4"})
        video.height, video.width, video.pix_fmt = *size, pixel_format
        sound: Any = container.add_stream(audio, rate=48000, layout="mono") if audio else None
        for index in range(count):
            picture = np.full((*size, 3), 20 + 10 * index, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            samples = int(48000 * count / rate)
            for start in range(0, samples, 1024):
                tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(start, min(start + 1024, samples)) / 48000)
                frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48000, start
                frame.time_base = Fraction(1, 48000)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def audio_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """(time in seconds, data) of every audio packet of a file."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.pts is not None]
        return [(packet.pts * Fraction(packet.time_base), bytes(packet)) for packet in packets]


def stream_facts(path: Path) -> dict[str, Any]:
    """What a player sees: exact rate, frame times, pixel format, colour tags, metadata."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return {
            "rate": stream.average_rate,
            "times": [frame.pts * Fraction(stream.time_base) for frame in frames],
            "pix_fmt": stream.codec_context.pix_fmt,
            "size": (stream.height, stream.width),
            "tags": (frames[0].colorspace, frames[0].color_range),
        }
