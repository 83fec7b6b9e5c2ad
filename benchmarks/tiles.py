"""How many denoiser tiles a frame takes at each step, against the scheme of the baseline's own script.

    python -m benchmarks.tiles [--tile 64] [--overlap 16]

The baseline cuts frames over 960 pixels into pixel tiles of 960 (stride 750) and runs every step in latent tiles of 64
(overlap 32) inside each of them (fact sheet, sections 5.1 and 5.2). Here the latent tiles lie over the whole frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from setevsr_core.sampling.tiles import plan_tiles

from .measuring import begin

SIZES = ((512, 512), (1024, 576), (1280, 720), (1920, 1080), (2560, 1440))
PIXELS_PER_LATENT, GRID = 8, 8


def padded(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def baseline_tiles(width: int, height: int) -> int:
    """Latent tiles of a frame in the baseline's scheme. An aligned side is padded too if the other one is not."""
    if width % 32 or height % 32:
        width, height = (side + 32 - side % 32 for side in (width, height))
    side, stride = 960, 750
    rows, columns = (max(0, -(-(length - side) // stride)) + 1 for length in (height, width))
    latents = [min(length, side) // PIXELS_PER_LATENT for length in (height, width)]
    return rows * columns * len(plan_tiles(*latents, 64, 32))


def our_tiles(width: int, height: int, tile: int, overlap: int) -> int:
    latents = [padded(length, PIXELS_PER_LATENT * GRID) // PIXELS_PER_LATENT for length in (height, width)]
    return len(plan_tiles(*latents, tile, overlap))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--overlap", type=int, default=16)
    args = parser.parse_args(arguments)
    begin(f"tiles of {args.tile} latents, overlap {args.overlap}")
    print("| result | tiles, baseline's scheme | tiles here | ratio |\n|---|---|---|---|")
    for width, height in SIZES:
        theirs, ours = baseline_tiles(width, height), our_tiles(width, height, args.tile, args.overlap)
        print(f"| {width}x{height} | {theirs} | {ours} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
