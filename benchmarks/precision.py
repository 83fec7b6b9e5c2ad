"""What bfloat16 changes on this CPU: time and difference to float32, network by network.

    python -m benchmarks.precision [--frames 5] [--width 128] [--repeat 2] [--threads 1]

Restores the first frames of the bundled clip with a preset at its own settings, once per choice of number types. On a
machine that is busy with something else take one thread and look at the processor time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from setevsr_core import Restorer
from setevsr_core.evaluation.metrics import psnr
from setevsr_core.precision import cpu_computes_bfloat16
from tools.clips import read_clip

from .measuring import begin

CLIP = Path(__file__).resolve().parent.parent / "assets" / "city_lq.mp4"
FULL, HALF = torch.float32, torch.bfloat16
CHOICES = {
    "all float32": (FULL, FULL, FULL),
    "denoiser bfloat16": (HALF, FULL, FULL),
    "denoiser, encoder bfloat16": (HALF, FULL, HALF),
    "all bfloat16": (HALF, HALF, HALF),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=2, help="runs per choice; the fastest counts")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(arguments)

    frames = torch.from_numpy(read_clip(CLIP).frames[: args.frames, :, : args.width].copy()).float() / 255
    count, height, width, _ = frames.shape
    native = "yes" if cpu_computes_bfloat16() else "no"
    begin(f"{count} frames of {width}x{height}, preset {args.preset}, native bfloat16: {native}", threads=args.threads)
    print("| number types | s/frame | processor s/frame | times less | PSNR to float32 |\n|---|---|---|---|---|")
    restorer = Restorer.from_preset(args.preset, device="cpu", dtype=FULL)
    reference, first = None, 0.0
    for name, dtypes in CHOICES.items():
        for module, dtype in zip((restorer.denoiser, restorer.vae, restorer.encoder), dtypes, strict=True):
            if module is not None:
                module.to(dtype)
                module.dtype = dtype
        wall = work = float("inf")
        for _ in range(args.repeat):
            started, used = time.perf_counter(), time.process_time()
            result = restorer.restore(frames, seed=0)
            wall = min(wall, (time.perf_counter() - started) / count)
            work = min(work, (time.process_time() - used) / count)
        if reference is None:
            reference, first = result, work
        quality = "-" if result is reference else f"{psnr(result, reference):.1f} dB"
        print(f"| {name} | {wall:.2f} | {work:.2f} | {first / work:.2f} | {quality} |", flush=True)


if __name__ == "__main__":
    main()
