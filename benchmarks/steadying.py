"""What averaging frames along their motion (`steady`, `steady_result`) does to quality, flicker and time, on clips.

    python -m benchmarks.steadying CLIPS --lpips-weights alexnet_features.safetensors [--frames 10] [--crop 320 240]

CLIPS is a folder as `setevsr evaluate` takes it; take clips that training did not see, and never the test clips.
Each is measured twice: degraded as training degrades (seeded), and clean, only made smaller by bicubic interpolation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from setevsr_core import Restorer
from setevsr_core.evaluation.datasets import Clip, ClipLoader
from setevsr_core.evaluation.metrics import LPIPS
from setevsr_core.video.layouts import find_clips
from setevsr_core.video.steadying import MAX_RADIUS, steady_video

from .measuring import Pair, begin, measure


def clean(clip: Clip) -> Tensor:
    assert clip.truth is not None, "clips that are degraded here have one"
    return clip.truth


def reduced(clip: Clip) -> Tensor:
    """The clean frames at the size of the degraded ones, by bicubic interpolation with an antialiasing filter."""
    size = (clip.lr.shape[1], clip.lr.shape[2])
    planes = functional.interpolate(clean(clip).movedim(-1, 1), size, mode="bicubic", antialias=True)
    return planes.clamp(0, 1).movedim(1, -1)


def seconds_of(videos: Sequence[Tensor], radius: int) -> float:
    """Seconds that steadying takes per frame."""
    started = time.perf_counter()
    for video in videos:
        steady_video(video, radius)
    return (time.perf_counter() - started) / sum(map(len, videos))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--lpips-weights", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--crop", type=int, nargs=2, metavar=("W", "H"), help="the centre of each frame (default: all)")
    parser.add_argument("--radii", type=int, nargs="+", default=list(range(MAX_RADIUS + 1)), help="values of steady")
    parser.add_argument("--result-radii", type=int, nargs="+", default=[0], help="values of steady_result for each")
    args = parser.parse_args(argv)

    loader = ClipLoader(4, args.frames, tuple(args.crop) if args.crop else None, 1000)
    clips = [loader.load(files) for files in find_clips(args.clips, "folder", "degrade")]
    restorer, lpips = Restorer.from_preset(args.preset), LPIPS(args.lpips_weights)
    begin(f"{len(clips)} clips, {args.frames} frames, x{loader.scale}", dtype=restorer.denoiser.dtype,
          seed="degradation 1000..")  # fmt: skip
    print("| input | steady | steady_result | LPIPS | PSNR | E_warp | s/frame | steadying of the input |\n"
          "|---|---|---|---|---|---|---|---|")
    for kind in ("degraded", "clean"):
        pairs: list[Pair] = [(clip.lr if kind == "degraded" else reduced(clip), clean(clip)) for clip in clips]
        for radius, after in product(args.radii, args.result_radii):
            restore = partial(restorer.restore, scale=loader.scale, steady=radius, steady_result=after)
            figures = measure(restore, pairs, lpips.distance).means()
            print(f"| {kind} | {radius} | {after} | {figures[0]:.4f} | {figures[1]:.2f} | {figures[2]:.2f} | "
                  f"{figures[3]:.2f} | {seconds_of([lr for lr, _ in pairs], radius):.3f} |", flush=True)


if __name__ == "__main__":
    main()
