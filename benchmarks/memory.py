"""Memory of a long restoration: resident set size at frame 100 and at the last frame of a generated clip.

python -m benchmarks.memory --frames 3000
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import psutil
import torch

MEGABYTE = 2**20


def make_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    """A clip of moving noise, so that neither decoder nor encoder has it easy."""
    from setevsr_core.video.writing import VideoWriter

    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    with VideoWriter(path, 24, size, quality=30) as writer:
        for index in range(frames):
            writer.write(picture.roll(index, 1))


def measure(frames: int, size: tuple[int, int], scale: float) -> dict[int, float]:
    """Frame number -> resident megabytes, at frame 100, every 500 frames, and the last one."""
    from setevsr_core import Restorer
    from setevsr_core.video.reading import VideoReader
    from setevsr_core.video_job import Output, footage_of, restore_video

    process, seen, done = psutil.Process(), {}, 0

    def on_frames(count: int) -> None:
        nonlocal done
        done += count
        if done in (100, frames) or done % 500 == 0:
            seen[done] = process.memory_info().rss / MEGABYTE
            print(f"frame {done}: {seen[done]:.0f} MB", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.mp4", Path(folder) / "out.mp4"
        make_clip(source, frames, size)
        with VideoReader(source) as reader:
            output = Output(target, journal=Path(folder) / "out.mp4.setevsr")
            settings = {"scale": scale, "steps": 0, "cuts": "auto"}
            restore_video(Restorer.from_preset("nano"), footage_of(reader), output, settings, on_frames=on_frames)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--height", type=int, default=32)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--scale", type=float, default=2)
    args = parser.parse_args()
    seen = measure(args.frames, (args.height, args.width), args.scale)
    print(f"growth from frame 100 to frame {args.frames}: {seen[args.frames] - seen[100]:+.0f} MB")


if __name__ == "__main__":
    main()
