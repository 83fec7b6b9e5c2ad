"""Quality of a preset on clips it never saw: bicubic, decoder only, few and many steps, in one table.

    python -m benchmarks.quality CLIP... --lpips-weights alexnet_features.safetensors [--steps 0 1 10] [--out DIR]

Each clip's centre is cut out, degraded with a fixed seed (1000 + its place in the list) and restored; the figures are
means over the frames. Prints Markdown; --out also writes table.csv and one comparison picture per clip.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from setevsr_core import Restorer
from setevsr_core.evaluation.metrics import LPIPS, psnr, sharpness, ssim, warping_error
from setevsr_core.training.degradation import Degradation
from setevsr_core.video.reading import VideoReader
from setevsr_core.video.resize import upscale_bicubic

COLUMNS = ("PSNR", "SSIM", "LPIPS", "LPIPS / bicubic", "E_warp", "E_warp / truth", "sharpness", "s/frame")


@dataclass(frozen=True)
class Clip:
    name: str
    lr: Tensor
    hr: Tensor


def load_clip(path: Path, seed: int, frames: int, scale: int = 4) -> Clip:
    """The centre (at most 512x384, multiples of 64) of the first frames, at the clip's own resolution."""
    with VideoReader(path) as reader:
        video = np.stack([np.asarray(frame) for frame in itertools.islice(reader, frames)])
    video = (video * 255).round().astype(np.uint8)
    height, width = (min(limit, side // 64 * 64) for side, limit in zip(video.shape[1:3], (384, 512), strict=False))
    top, left = (video.shape[1] - height) // 2, (video.shape[2] - width) // 2
    hr = np.ascontiguousarray(video[:, top : top + height, left : left + width])
    lr = Degradation()(hr, seed, scale)
    return Clip(path.stem, torch.from_numpy(lr).float() / 255, torch.from_numpy(hr).float() / 255)


def bicubic(clip: Clip) -> Tensor:
    return upscale_bicubic(clip.lr.movedim(-1, 1), size=(clip.hr.shape[1], clip.hr.shape[2])).movedim(1, -1)


def measure(result: Tensor, clip: Clip, lpips: LPIPS, seconds: float) -> dict[str, float]:
    return {"PSNR": psnr(result, clip.hr), "SSIM": ssim(result, clip.hr), "LPIPS": lpips(result, clip.hr),
            "E_warp": warping_error(result, clip.hr), "sharpness": sharpness(result),
            "s/frame": seconds / len(result), "truth": warping_error(clip.hr, clip.hr)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--lpips-weights", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 4, 10])
    parser.add_argument("--sampler")
    parser.add_argument("--strength", type=float)
    parser.add_argument("--colour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    lpips = LPIPS(args.lpips_weights)
    restorer = Restorer.from_preset(args.preset)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for i, path in enumerate(args.clips):
        clip = load_clip(path, 1000 + i, args.frames)
        results = {"bicubic": (bicubic(clip), 0.0)}
        for steps in args.steps:
            started = time.perf_counter()
            restored = restorer.restore(clip.lr, scale=4, steps=steps, seed=args.seed, sampler=args.sampler,
                                        strength=args.strength, colour=args.colour)
            name = "decoder only" if steps == 0 else f"{steps} steps"
            results[name] = (restored, time.perf_counter() - started)
        for name, (result, seconds) in results.items():
            rows.setdefault(name, {})[clip.name] = measure(result, clip, lpips, seconds)
            print(clip.name, name, {k: round(v, 4) for k, v in rows[name][clip.name].items()}, flush=True)
        if args.out:
            save_picture(args.out / f"{clip.name}.jpg", {name: r for name, (r, _) in results.items()}, clip)
    print(f"\n{len(args.clips)} clips x {args.frames} frames, x4, degradation seeds 1000.., noise seed {args.seed}; "
          f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table(rows))
    if args.out:
        write_csv(args.out / "table.csv", rows)


def means(rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean of each column over the clips, and the ratios of the means."""
    result = {}
    for name, clips in rows.items():
        values = {key: sum(v[key] for v in clips.values()) / len(clips) for key in next(iter(clips.values()))}
        base = sum(v["LPIPS"] for v in rows["bicubic"].values()) / len(clips)
        values |= {"LPIPS / bicubic": values["LPIPS"] / base, "E_warp / truth": values["E_warp"] / values["truth"]}
        result[name] = values
    return result


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, values in means(rows).items():
        lines.append(f"| {name} | " + " | ".join(f"{values[c]:.3f}" for c in COLUMNS) + " |")
    return "\n".join(lines)


def write_csv(path: Path, rows: dict[str, dict[str, dict[str, float]]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [c for c in COLUMNS if "/" not in c or c == "s/frame"]
        writer.writerow(["clip", "method", *columns])
        for name, clips in rows.items():
            for clip, values in clips.items():
                writer.writerow([clip, name, *(f"{values[c]:.5f}" for c in columns)])


def save_picture(path: Path, results: dict[str, Tensor], clip: Clip) -> None:
    """The middle frame of every method and the truth, in a row."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    middle = len(clip.hr) // 2
    row = torch.cat([*(r[middle] for r in results.values()), clip.hr[middle]], dim=1)
    Image.fromarray((row.clamp(0, 1) * 255).round().byte().numpy()).save(path, quality=92)


if __name__ == "__main__":
    main()
