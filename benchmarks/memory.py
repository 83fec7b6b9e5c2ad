"""Memory of a long restoration: resident set size at frame 100 and at the last frame of a generated clip.

    python -m benchmarks.memory --frames 3000            # a video file to a video file
    python -m benchmarks.memory --frames 3000 --images   # a batch of frames to a batch of frames, which lie in memory

With `--images` the result is taken off: what is left must not grow with the number of frames either. Decoder only,
which is the fast setting; the denoiser's memory does not depend on the length of a video at all.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from .measuring import begin

MEGABYTE = 2**20
FIRST = 100  # frames until all that is made once is there


def make_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    """A clip of moving noise, so that neither decoder nor encoder has it easy."""
    from setevsr_core.video.writing import VideoWriter

    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    with VideoWriter(path, 24, size, quality=30) as writer:
        for index in range(frames):
            writer.write(picture.roll(index, 1))


def measure(frames: int, size: tuple[int, int], scale: float) -> dict[int, float]:
    """Frame number -> resident megabytes, at frame `FIRST`, every 500 frames, and the last one."""
    from setevsr_core import Restorer
    from setevsr_core.video.reading import VideoReader
    from setevsr_core.video_job import Output, footage_of, restore_video

    process, seen, done = psutil.Process(), {}, 0

    def on_frames(count: int) -> None:
        nonlocal done
        done += count
        if done in (FIRST, frames) or done % 500 == 0:
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


def measure_images(frames: int, size: tuple[int, int], scale: float) -> dict[int, float]:
    """Frame number -> resident megabytes beyond the frames that are restored so far, at frame `FIRST` and the last."""
    from setevsr_core import Restorer
    from setevsr_core.video.resize import target_size

    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    batch = torch.stack([picture.roll(index, 1) for index in range(frames)])
    frame = 3 * 4 * math.prod(target_size(*size, scale)) / MEGABYTE
    process, seen = psutil.Process(), {}

    def report(done: float, message: str, preview: object) -> None:
        finished = int(done * frames)
        for number in (FIRST, frames):
            if finished >= number and number not in seen:
                seen[number] = process.memory_info().rss / MEGABYTE - finished * frame
                print(f"frame {number}: {seen[number]:.0f} MB beside {finished * frame:.0f} MB of result", flush=True)

    Restorer.from_preset("nano").restore(batch, scale=scale, steps=0, progress=report)
    return seen


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--height", type=int, default=32)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--scale", type=float, default=2)
    parser.add_argument("--images", action="store_true", help="a batch of frames in memory instead of files")
    args = parser.parse_args(arguments)
    begin(f"{args.frames} frames of {args.width}x{args.height}, enlarged {args.scale:g} times, nano without diffusion")
    seen = (measure_images if args.images else measure)(args.frames, (args.height, args.width), args.scale)
    print(f"growth from frame {FIRST} to frame {args.frames}: {seen[args.frames] - seen[FIRST]:+.0f} MB")


if __name__ == "__main__":
    main()
