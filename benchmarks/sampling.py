"""What steps, strength, sampler and colour do to quality, on packed segments: the figures behind a preset's defaults.

    python -m benchmarks.sampling PACK --lpips-weights alexnet_features.safetensors [--segments 16]

PACK is a folder made by `setevsr pack`; take one that training did not draw from, and never the test clips.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from setevsr_core import Restorer
from setevsr_core.evaluation.metrics import LPIPS, psnr, warping_error
from setevsr_core.training.data import PackedDataset

RUNS: list[dict[str, object]] = [
    {"steps": 0},
    *({"steps": n, "sampler": "ddim", "strength": s} for s in (0.5, 1.0) for n in (2, 4, 8)),
    *({"steps": n, "sampler": "ddim", "strength": 0.5, "colour": c} for c in ("none", "adain") for n in (0, 2)),
    {"steps": 8, "sampler": "dpmpp_2m", "strength": 1.0},
    {"steps": 15, "sampler": "ddpm", "strength": 1.0},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--lpips-weights", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="only these lines of the table, from 0")
    args = parser.parse_args()

    data, lpips, restorer = PackedDataset(args.pack), LPIPS(args.lpips_weights), Restorer.from_preset(args.preset)
    stride = max(len(data) // args.segments, 1)
    pairs = [tuple(torch.from_numpy(x.copy()).float() / 255 for x in data.segment(i * stride))
             for i in range(args.segments)]
    print(f"{args.segments} segments of {data.frames} frames, {data.size} px, noise seed 0, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")
    print("| setting | LPIPS | PSNR | E_warp | s/frame |\n|---|---|---|---|---|")
    for run in [RUNS[n] for n in args.only] if args.only else RUNS:
        started = time.perf_counter()
        results = [restorer.restore(lr, scale=data.scale, seed=0, **run) for lr, _ in pairs]  # type: ignore[arg-type]
        seconds = (time.perf_counter() - started) / (len(pairs) * data.frames)
        figures = [sum(f(result, hr) for result, (_, hr) in zip(results, pairs, strict=True)) / len(pairs)
                   for f in (lpips, psnr, warping_error)]
        setting = ", ".join(f"{key} {value}" for key, value in run.items())
        print(f"| {setting} | {figures[0]:.4f} | {figures[1]:.2f} | {figures[2]:.2f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
