"""What tiles of the VAE save in memory, cost in time and change in the picture.

    python -m benchmarks.vae_tiles --count-only [--frames 5] [--dtype bfloat16]
    python -m benchmarks.vae_tiles [--size 512 512] [--frames 5] [--tiles 0 48 32] [--threads N] [--dtype float32]
    python -m benchmarks.vae_tiles --clip CLIP [--frames 5] [--tiles 0 48 32]

The first form prints, for sizes of results, the counted bytes of decoding a segment and the tiles that a run chooses
by free memory; this does not depend on the machine. The second decodes a segment with the full-size VAE, random
weights, each row in a process of its own: seconds, the peak of memory above what was there before, and the bytes
counted. The third restores a clip with nano without diffusion and compares each result with that of whole frames.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from setevsr_core import Restorer, stages
from setevsr_core.evaluation.metrics import psnr
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig
from setevsr_core.precision import automatic_dtype
from setevsr_core.sampling.tiles import latent_grid
from setevsr_core.training.sources import read_window
from setevsr_core.vae_tiles import HEADROOM, bytes_per_latent, fitting_tile

from . import process_memory
from .denoiser_step import filled
from .measuring import begin

SCALE = 4
FULL = VAEConfig.sd21()


@torch.no_grad()
def decode(size: tuple[int, int], frames: int, tile: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds and the peak of memory in bytes of one segment; the skip features are computed as well."""
    vae = filled(TemporalVAE(FULL, device="meta", dtype=dtype), "cpu")
    pictures = torch.rand(frames, size[0] // SCALE, size[1] // SCALE, 3)
    latents = torch.randn(frames, 4, *latent_grid(size, vae.config.downscale))
    before = process_memory.resident()
    process_memory.restart_peak()
    started = time.perf_counter()
    stages.decode_span(vae, latents, pictures, SCALE, colour="none", tile=tile)
    return time.perf_counter() - started, process_memory.peak() - before


def count(frames: int, dtype: torch.dtype) -> None:
    """Prints the counted memory and the chosen tiles."""
    free = (4, 6, 12, 24, 80)
    print("| VAE | result | counted, GB | " + " | ".join(f"tile with {gib} GB free" for gib in free) + " |")
    print("|---" * (3 + len(free)) + "|")
    for name, config in {"full size": FULL, "nano": Restorer.from_preset("nano").vae.config}.items():
        vae = TemporalVAE(config, device="meta")
        for height, width in ((720, 1280), (1080, 1920), (2160, 3840)):
            grid = latent_grid((height, width), vae.config.downscale)
            needed = grid[0] * grid[1] * bytes_per_latent(config, dtype, frames)
            tiles = [fitting_tile(config, dtype, grid, frames, gib * 2**30) or "whole" for gib in free]
            cells = [name, f"{width}x{height}", f"{needed / 2**30:.1f}", *map(str, tiles)]
            print("| " + " | ".join(cells) + " |")


def restore(clip: Tensor, tile: int) -> tuple[Tensor, float]:
    """The clip restored with so much memory that the VAE takes this tile, and the seconds."""
    restorer = Restorer.from_preset("nano")
    each = bytes_per_latent(restorer.vae.config, restorer.vae.dtype, restorer.settings().length)
    free = int(each * tile**2 / HEADROOM) + 1 if tile else 2**62
    restorer.free_memory = lambda device: free
    started = time.perf_counter()
    return restorer.restore(clip, steps=0), time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    native = str(automatic_dtype("cpu")).removeprefix("torch.")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("W", "H"), help="of the result")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 48, 32], help="in latents; 0: whole frames")
    parser.add_argument("--count-only", action="store_true", help="count alone, for sizes of results")
    parser.add_argument("--clip", type=Path, help="restore this video with nano instead")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=native,
                        help="default: bfloat16 where the processor computes in it")
    args = parser.parse_args(arguments)
    dtype, size = getattr(torch, args.dtype), (args.size[1], args.size[0])
    if args.count_only:
        begin(f"decoding {args.frames} frames", dtype=dtype, threads=args.threads)
        count(args.frames, dtype)
        return
    if args.clip:
        clip = torch.from_numpy(np.stack(read_window(args.clip, 0, args.frames))).float() / 255
        begin(f"nano, {args.frames} frames of {clip.shape[2]}x{clip.shape[1]}", threads=args.threads)
        print("| tile | s/frame | PSNR to whole frames |\n|---|---|---|")
        whole, _ = restore(clip, 0)
        for tile in args.tiles:
            result, seconds = restore(clip, tile)
            print(f"| {tile or 'whole'} | {seconds / len(clip):.2f} | {psnr(result, whole):.1f} |", flush=True)
        return
    begin(f"full size, {args.frames} frames of {size[1]}x{size[0]}", dtype=dtype, threads=args.threads)
    print("| tile | s/frame | peak memory, GB | counted, GB |\n|---|---|---|---|")
    each = bytes_per_latent(FULL, dtype, args.frames)
    area = latent_grid(size, FULL.downscale)
    for tile in args.tiles:
        seconds, peak = process_memory.in_own_process(args.threads, decode, size, args.frames, tile, dtype)
        counted = each * (tile**2 if tile else area[0] * area[1])
        print(f"| {tile or 'whole'} | {seconds / args.frames:.2f} | {peak / 2**30:.2f} | {counted / 2**30:.2f} |",
              flush=True)


if __name__ == "__main__":
    main()
