"""Short clips as whole arrays: for the demo, the bundled clip and the tests. Long videos go through setevsr_core."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Attributes:
        frames: (N, H, W, 3) uint8 RGB.
        rate: frames a second, exact.
        audio_s: length of the audio in seconds, 0 where there is none.
        metadata: what the file says about itself.
    """

    frames: np.ndarray
    rate: Fraction
    audio_s: float = 0.0
    metadata: dict[str, str] = field(default_factory=dict)


def read_clip(path: Path) -> Clip:
    """Decode a whole clip."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        rate, metadata = Fraction(stream.average_rate or 25), dict(container.metadata)
    audio_s = 0.0
    with av.open(str(path)) as container:
        if container.streams.audio:
            for block in container.decode(container.streams.audio[0]):
                audio_s += block.samples / block.sample_rate
    return Clip(np.stack(frames), rate, audio_s, metadata)


def write_clip(
    path: Path, frames: np.ndarray, rate: Fraction, *, crf: int = 16, preset: str = "medium", tone_hz: float = 0.0
) -> None:
    """Encode frames (N, H, W, 3) uint8 RGB as H.264, with a sine tone as AAC audio if ``tone_hz`` is not 0.

    The same frames give the same bytes. ``crf`` and ``preset`` are x264's quality and effort.
    """
    import av

    height, width = frames.shape[1:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without its macroblock tree, which reads past small frames, x264 gives the same bytes every time.
    options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=rate, options=options)
        video.width, video.height = width, height
        video.codec_context.thread_count = 1
        video.pix_fmt = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
        audio = container.add_stream("aac", rate=48000, layout="mono") if tone_hz else None
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            samples = np.arange(round(48000 * len(frames) / rate), dtype=np.float32)
            wave = 0.2 * np.sin(2 * np.pi * tone_hz / 48000 * samples, dtype=np.float32)
            block = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            block.sample_rate = 48000
            container.mux(audio.encode(block))
            container.mux(audio.encode())
