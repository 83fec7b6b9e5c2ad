"""How fast training data is made and read: degraded segments per second and core, and batches from a pack.

    python -m benchmarks.training_data CLIP... [--segments 20] [--pack PACK] [--devices opencv cpu cuda]

A training step at full size takes seconds for 15 frames, so one core keeps a GPU fed when it makes segments faster than
that; from a pack, which is made once, reading is all that is left. The share of blurs, resizes and adding noise is the
most that `--device` of pack and degrade can save: codecs, JPEG and drawing the noise stay on the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from setevsr_core.training.data import PackedDataset
from setevsr_core.training.degradation import Degradation
from setevsr_core.training.sources import read_window

from .measuring import begin


def clean_crop(clip: Path, size: int, frames: int) -> np.ndarray:
    """The upper left `size` pixels of the first frames of a clip, (T, H, W, 3) uint8."""
    window = read_window(clip, 0.0, frames)
    side = min(size, *window[0].shape[:2])
    return np.stack([frame[:side, :side] for frame in window])


def degraded_per_second(clip: Path, size: int, segments: int, device: str | None = None, frames: int = 5) -> float:
    """Segments of `frames` frames, cut from a real clip and degraded one after the other, per second."""
    crop = clean_crop(clip, size, frames)
    degrade = Degradation(device=device)
    degrade(crop, 0)
    started = time.perf_counter()
    for seed in range(segments):
        degrade(crop, seed)
    return segments / (time.perf_counter() - started)


def pixel_work_share(clip: Path, size: int, segments: int, frames: int = 5) -> float:
    """Share of the degradation's time, by OpenCV, that goes into what `--device` moves."""
    degrade, spent = Degradation(), 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            result = call(*args)
            spent += time.perf_counter() - started
            return result

        return run

    for name in ("filter", "resize", "add", "clip"):
        setattr(degrade.work, name, timed(getattr(degrade.work, name)))
    crop = clean_crop(clip, size, frames)
    started = time.perf_counter()
    for seed in range(segments):
        degrade(crop, seed)
    return spent / (time.perf_counter() - started)


def read_per_second(data: PackedDataset, crop: int, batches: int = 50) -> float:
    """Batches of 8 crops from a pack, per second."""
    rng = np.random.default_rng(0)
    data.sample(rng, 8, crop)
    started = time.perf_counter()
    for _ in range(batches):
        data.sample(rng, 8, crop)
    return batches / (time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--devices", nargs="+", default=["opencv", "cpu"], metavar="DEVICE",
                        help="opencv, and devices on which torch takes its place (default: opencv cpu)")
    args = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    begin(f"training data on one core, OpenCV {cv2.__version__}", threads=1, seed=f"degradation 0..{args.segments - 1}")
    print("| what | size | per second |\n|---|---|---|")
    for size in (256, 512):
        shares = [pixel_work_share(clip, size, args.segments) for clip in args.clips]
        print(f"| share of blurs, resizes and adding noise | {size} px | {sum(shares) / len(shares):.0%} of the time |")
        for name in args.devices:
            device = None if name == "opencv" else name
            rates = [degraded_per_second(clip, size, args.segments, device) for clip in args.clips]
            by = "OpenCV" if device is None else f"torch on {device}"
            print(f"| segments of 5 frames degraded, {by} | {size} px | {sum(rates) / len(rates):.2f} |", flush=True)
    if args.pack:
        data = PackedDataset(args.pack)
        crop = min(256, data.size)
        print(f"| batches of 8 crops x {data.frames} frames read | {crop} px | {read_per_second(data, crop):.1f} |")


if __name__ == "__main__":
    main()
