"""Tiles over a latent grid and the windows that blend their predictions. Pure functions of sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import SettingsError

GRID = 8  # the U-Net halves three times, so every tile side must be a multiple of this many latent pixels
WINDOW_VARIANCE = 0.01  # of the Gaussian, in units of the tile side squared (MGLD-VSR)
# Weights span fp16's normal numbers: summed or cast in half precision they neither vanish nor overflow, so that
# "weighted sum / sum of weights" is never 0/0 at the corners of a frame.
WINDOW_PEAK, WINDOW_FLOOR = 1024.0, 2.0**-14


@dataclass(frozen=True)
class Tile:
    """Half-open box in latent pixels: rows top..bottom, columns left..right."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def cut(self, grid: torch.Tensor) -> torch.Tensor:
        """The tile's part of a (..., h, w) tensor, a view."""
        return grid[..., self.top : self.bottom, self.left : self.right]


def latent_grid(size: tuple[int, int], downscale: int) -> tuple[int, int]:
    """(h, w) of the latents of frames of `size` (H, W) pixels, padded to what the U-Net needs; `downscale` pixels a
    side make one latent.
    """
    multiple = downscale * GRID
    return (-(-size[0] // multiple) * GRID, -(-size[1] // multiple) * GRID)


def check_tiling(tile: int, overlap: int) -> None:
    """`SettingsError` unless tile is 0 (off) or a positive multiple of 8 latent pixels and 0 <= overlap < tile."""
    if tile < 0 or tile % GRID:
        raise SettingsError(f"tile must be 0 (off) or a multiple of {GRID} latent pixels, got {tile}")
    if overlap < 0 or (tile and overlap >= tile):
        raise SettingsError(f"tile_overlap must be at least 0 and smaller than the tile ({tile}), got {overlap}")


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Tile starts along one side: regular strides, the last one moved inward so that every tile is full."""
    if tile >= size:
        return [0]
    starts = list(range(0, size - tile, tile - overlap))
    return [*starts, size - tile]


def plan_tiles(h: int, w: int, tile: int, overlap: int) -> tuple[Tile, ...]:
    """Tiles that cover an h x w latent grid, row by row. `tile` 0, or at least as large as the grid: a single one."""
    check_tiling(tile, overlap)
    if h < 1 or w < 1:
        raise SettingsError(f"a latent grid to tile needs at least one row and column, got {h} x {w}")
    tile_h, tile_w = min(tile or h, h), min(tile or w, w)
    return tuple(
        Tile(top, left, top + tile_h, left + tile_w)
        for top in _starts(h, tile_h, overlap)
        for left in _starts(w, tile_w, overlap)
    )


def gaussian_window(height: int, width: int) -> torch.Tensor:
    """fp32 (height, width) weights, symmetric about the centre, from `WINDOW_PEAK` down to `WINDOW_FLOOR`."""

    def bell(size: int) -> torch.Tensor:
        offset = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / size
        return torch.exp(-offset.square() / (2 * WINDOW_VARIANCE))

    window = WINDOW_PEAK * bell(height)[:, None] * bell(width)[None, :]
    return window.clamp(min=WINDOW_FLOOR).float()


def blend_tiles(tiles: tuple[Tile, ...], shape: torch.Size, predict: Callable[[Tile], torch.Tensor]) -> torch.Tensor:
    """Predictions of all tiles as one fp32 tensor of `shape` (T,C,h,w), on the predictions' device.

    `predict(tile)` returns (T,C,tile.height,tile.width). A single tile is returned as it is.
    """
    if len(tiles) == 1:
        return predict(tiles[0]).float()
    total: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    for tile in tiles:
        part = predict(tile).float()
        window = gaussian_window(tile.height, tile.width).to(part.device)
        if total is None or weights is None:
            total = torch.zeros(shape, device=part.device)
            weights = torch.zeros(shape[-2:], device=part.device)
        tile.cut(total).add_(part * window)
        tile.cut(weights).add_(window)
    if total is None or weights is None:
        raise SettingsError("there are no tiles to blend")
    return total / weights
