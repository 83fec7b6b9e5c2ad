"""The law behind `setevsr estimate`: how fast each stage is, against the machine's matrix multiplications.

    python -m benchmarks.estimate_law [--threads 1] [--write]

Runs the preset's stages on the bundled clip, divides the counted operations by the processor time and by the measured
rate of matrix multiplications, and compares the counted peak of memory with the growth of the process. `--write`
stores the law in setevsr_core/estimate_law.json. On other devices and sizes the same shares are assumed: an estimate
there is a guess by the counted operations, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from setevsr_core import stages
from setevsr_core.checkpoints import load_preset
from setevsr_core.estimate import decode_work, encode_work, matmul_rate, semantics_work, step_work
from setevsr_core.precision import automatic_dtype
from setevsr_core.sampling.tiles import latent_grid
from setevsr_core.settings import RestoreSettings
from setevsr_core.video.resize import target_size
from setevsr_core.workload import LAW
from tools.clips import read_clip

from . import process_memory
from .measuring import begin

CLIP = Path(__file__).resolve().parent.parent / "assets" / "city_lq.mp4"
WIDTH, LENGTH = 128, 5


def processor_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Least processor time of two calls, and the last result."""
    best, result = float("inf"), None
    for _ in range(2):
        started = time.process_time()
        result = call()
        best = min(best, time.process_time() - started)
    return best, result


def peak_growth(call: Callable[[], Any]) -> float:
    """Bytes by which the process grows at most during a call (Linux)."""
    process_memory.restart_peak()
    before = process_memory.resident()
    call()
    return process_memory.peak() - before


@torch.inference_mode()
def measure(threads: int) -> dict[str, Any]:
    dtype = automatic_dtype("cpu")
    real, empty = (load_preset("nano", dtype=dtype, device=device) for device in ("cpu", "meta"))
    frames = torch.from_numpy(read_clip(CLIP).frames[:LENGTH, :, :WIDTH].copy()).float() / 255
    size = target_size(frames.shape[1], frames.shape[2], 4.0)
    grid = latent_grid(size, empty.vae.config.downscale)
    settings = RestoreSettings(steps=1, tile=0, tile_overlap=0)
    begin(f"{LENGTH} frames of {WIDTH}x{frames.shape[1]}, nano", dtype=dtype, threads=threads)
    rate = matmul_rate("cpu", dtype)
    semantics = stages.encode_semantics(real.encoder, frames)
    encoded = stages.encode_latents(real.vae, frames, 4.0, keep_features=True)
    latents = encoded.latents

    def step() -> Any:
        return stages.denoise_span(real.denoiser, latents, semantics, range(LENGTH), steps=1, sampler="ddim", tile=0,
                                   tile_overlap=0, content=encoded.content)

    def decode() -> Any:
        return stages.decode_span(real.vae, latents, frames, 4.0, features=encoded.features, colour="none")

    runs = {
        "encode": (lambda: stages.encode_latents(real.vae, frames, 4.0), encode_work(empty.vae, size).times(LENGTH)),
        "semantics": (lambda: stages.encode_semantics(real.encoder, frames),
                      semantics_work(empty.encoder, *frames.shape[1:3]).times(LENGTH)),
        "denoise": (step, step_work(empty.denoiser, empty.encoder, grid, LENGTH, settings)[0]),
        "decode": (decode, decode_work(empty.vae, size, LENGTH)[0]),
    }  # fmt: skip
    print(f"matrix multiplications: {rate / 1e9:.0f} GFLOP/s\n\n"
          "| stage | TFLOP | processor s | share of the rate |\n|---|---|---|---|")
    efficiency = {}
    for name, (call, work) in runs.items():
        seconds, _ = processor_seconds(call)
        efficiency[name] = round(work.flops / (seconds * rate), 3)
        print(f"| {name} | {work.flops / 1e12:.3f} | {seconds:.2f} | {efficiency[name]:.2f} |", flush=True)
    counted = runs["decode"][1].peak_bytes
    grown = peak_growth(decode)
    print(f"decode: counted peak {counted / 2**20:.0f} MB, the process grew by {grown / 2**20:.0f} MB")
    return {
        "efficiency": efficiency,
        "memory_factor": round(max(1.0, grown / counted), 2),
        "measured": f"law measured with nano on a {platform.machine()} CPU in {str(dtype).removeprefix('torch.')}; "
                    "elsewhere the same shares of the measured matrix-multiplication rate are assumed",
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="store the law")
    args = parser.parse_args(arguments)
    found = measure(args.threads)
    if args.write:
        LAW.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
