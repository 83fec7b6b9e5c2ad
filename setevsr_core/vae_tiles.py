"""The VAE over tiles of a frame, where a whole frame's activations do not fit into the memory.

Norms and the attention of the middle see a tile instead of the frame, so what two tiles say of one pixel differs a
little. Tiles overlap by a quarter and are blended as those of the denoiser, by windows that leave out their borders.
A tile brings the skip features of its own pixels: nothing as large as a frame is kept but pixels and latents.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from .memory import Result, ShrinkingTiles, free_bytes
from .networks.temporal_vae import TemporalVAE, VAEConfig
from .sampling.tiles import GRID, Tile, blend_tiles, latent_grid, plan_tiles
from .workload import count, law

log = logging.getLogger(__name__)

WHOLE = 0
SMALLEST = 32  # latents along one side; smaller tiles are mostly border
COUNTED = 32  # side of the grid whose bytes are counted; activations grow with the area
HEADROOM = 0.8  # share of the free memory that activations may take; the rest is for pixels and fragments


def encode(vae: Any, pixels: Tensor, tile: int = WHOLE, check_cancel: Callable[[], None] | None = None) -> Tensor:
    """Pixels (1,3,H,W) in -1..1, in the VAE's type -> mean of the latents (1,4,h,w), fp32, unscaled."""
    factor = vae.config.downscale
    grid = (pixels.shape[-2] // factor, pixels.shape[-1] // factor)

    def mean(place: Tile) -> Tensor:
        if check_cancel is not None:
            check_cancel()
        return vae.encode(_enlarged(place, factor).cut(pixels))[0]

    return blend_tiles(_plan(grid, tile), torch.Size((1, vae.config.latent_channels, *grid)), mean)


def decode(
    vae: Any, latents: Tensor, pixels: Tensor, *, fusion: float = 1.0, tile: int = WHOLE,
    check_cancel: Callable[[], None] | None = None,
) -> Tensor:  # fmt: skip
    """Unscaled latents (T,4,h,w) of one segment and its enlarged pixels (T,3,H,W) in -1..1 -> pixels, fp32.

    The skip features are computed frame by frame, as `encode_latents` does, and only if the decoder takes them.
    """
    factor, needs_features = vae.config.downscale, uses_features(vae.config, fusion)

    def part(place: Tile) -> Tensor:
        own, features = _enlarged(place, factor).cut(pixels), None
        if needs_features:
            frames = []
            for frame in own.split(1):
                if check_cancel is not None:
                    check_cancel()
                frames.append(vae.encode(frame)[2])
            features = [torch.cat(level) for level in zip(*frames, strict=True)]
        if check_cancel is not None:
            check_cancel()
        return vae.decode(place.cut(latents), features, num_frames=len(latents), fusion=fusion)

    # Blended as pixels, so windows and sums are those of tiles of pixels.
    places = {_enlarged(place, factor): place for place in _plan((latents.shape[-2], latents.shape[-1]), tile)}
    return blend_tiles(tuple(places), pixels.shape, lambda enlarged: part(places[enlarged]))


def uses_features(config: VAEConfig, fusion: float) -> bool:
    """Whether decoding looks at the input's pixels: a residual VAE does so even without fusion."""
    return bool(fusion) or config.residual


def fitting_tile(config: VAEConfig, dtype: torch.dtype, grid: tuple[int, int], length: int, free: float) -> int:
    """The tile (latents along one side, `WHOLE` if the frame fits) with which a segment of `length` frames of `grid`
    (h, w) latents is decoded in `free` bytes.
    """
    area = HEADROOM * free / bytes_per_latent(config, dtype, length)
    if grid[0] * grid[1] <= area:
        return WHOLE
    return max(SMALLEST, int(area**0.5) // GRID * GRID)


@lru_cache(maxsize=16)
def bytes_per_latent(config: VAEConfig, dtype: torch.dtype, length: int) -> float:
    """Bytes of activations for every latent of the grid while `length` frames are decoded, with their skip features.

    Counted without data, times what the memory's law says is used beside (`workload.law`).
    """
    vae = TemporalVAE(config, dtype=dtype, device="meta").requires_grad_(False)
    empty = partial(torch.empty, dtype=dtype, device="meta")
    latents = empty(length, config.latent_channels, COUNTED, COUNTED)
    pixels = empty(length, 3, COUNTED * config.downscale, COUNTED * config.downscale)
    return law()["memory_factor"] * count(lambda: decode(vae, latents, pixels)).peak_bytes / COUNTED**2


class FittingTiles:
    """Tiles in which the VAE's work on `length` frames, enlarged to `size` (H, W), fits into a device's memory: chosen
    by what is free when the first work comes, then halved wherever the memory is full after all. remedy: what the
    error says when even the smallest tile does not fit.
    """

    def __init__(
        self, vae: Any, size: tuple[int, int], length: int, device: torch.device,
        free_memory: Callable[[torch.device], int] = free_bytes,
        remedy: str = "lower 'length' (frames that are decoded together) or 'scale'.",
    ) -> None:  # fmt: skip
        self._vae, self._length, self._device, self._free_memory = vae, length, device, free_memory
        self._remedy = remedy
        self._grid = latent_grid(size, vae.config.downscale)
        self._tiles: ShrinkingTiles | None = None

    def run(self, work: Callable[[int], Result]) -> Result:
        """`work(tile)`, `WHOLE` if a frame fits; otherwise as `ShrinkingTiles.run`."""
        if self._tiles is None:
            tile, whole = self._choose(), max(self._grid)
            self._tiles = ShrinkingTiles(tile, whole, SMALLEST, self._device, "the VAE", self._remedy)
        return self._tiles.run(work)

    def report(self) -> None:
        """As `ShrinkingTiles.report`."""
        if self._tiles is not None:
            self._tiles.report()

    def _choose(self) -> int:
        free = self._free_memory(self._device)
        dtype = getattr(self._vae, "dtype", torch.float32)
        tile = fitting_tile(self._vae.config, dtype, self._grid, self._length, free)
        if tile:
            log.info("the VAE works in tiles of %d latents, to fit into %.1f GiB", tile, free / 2**30)
        return tile


def _plan(grid: tuple[int, int], tile: int) -> tuple[Tile, ...]:
    overlap = tile // 4
    if tile:
        tile = max(_least_side(side, tile, overlap) for side in grid)
    return plan_tiles(*grid, tile, overlap)


def _least_side(side: int, tile: int, overlap: int) -> int:
    """The smallest tile that covers `side` latents with no more tiles than `tile` does: less is computed twice."""
    tiles = max(1, math.ceil((side - overlap) / (tile - overlap)))
    return math.ceil((side + (tiles - 1) * overlap) / tiles / GRID) * GRID


def _enlarged(place: Tile, factor: int) -> Tile:
    return Tile(factor * place.top, factor * place.left, factor * place.bottom, factor * place.right)
