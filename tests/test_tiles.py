"""Tiles cover a grid, windows survive half precision, blending is a true average."""

from __future__ import annotations

import pytest
import torch

from setevsr_core.errors import SettingsError
from setevsr_core.sampling.tiles import Tile, blend_tiles, gaussian_window, plan_tiles


def test_a_frame_that_fits_is_one_tile() -> None:
    assert plan_tiles(64, 40, 64, 16) == (Tile(0, 0, 64, 40),)
    assert plan_tiles(200, 300, 0, 16) == (Tile(0, 0, 200, 300),)


def test_last_tile_moves_inward_and_all_are_full() -> None:
    tiles = plan_tiles(64, 160, 64, 16)
    assert [(tile.left, tile.right) for tile in tiles] == [(0, 64), (48, 112), (96, 160)]
    tiles = plan_tiles(72, 120, 64, 16)
    assert {(tile.top, tile.bottom) for tile in tiles} == {(0, 64), (8, 72)}
    assert {(tile.left, tile.right) for tile in tiles} == {(0, 64), (48, 112), (56, 120)}


@pytest.mark.parametrize(
    ("h", "w", "tile", "overlap"), [(8, 8, 8, 0), (96, 168, 64, 32), (72, 64, 24, 23), (40, 88, 16, 0)]
)
def test_every_cell_is_covered(h: int, w: int, tile: int, overlap: int) -> None:
    covered = torch.zeros(h, w)
    for part in plan_tiles(h, w, tile, overlap):
        assert (part.height, part.width) == (min(tile, h), min(tile, w))
        part.cut(covered).add_(1)
    assert covered.min() >= 1


def test_tile_counts_of_common_frame_sizes() -> None:
    grids = ((72, 128), (96, 160), (136, 240))  # 1024x576, 1280x720 and 1920x1080, padded to multiples of 64
    assert [len(plan_tiles(h, w, 64, 32)) for h, w in grids] == [6, 8, 28]
    assert [len(plan_tiles(h, w, 64, 16)) for h, w in grids] == [6, 6, 15]


@pytest.mark.parametrize(("tile", "overlap"), [(-8, 0), (60, 0), (64, 64), (64, -1)])
def test_impossible_layouts_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(SettingsError):
        plan_tiles(128, 128, tile, overlap)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (8, 128), (256, 256)])
def test_window_is_symmetric_and_survives_fp16(height: int, width: int) -> None:
    window = gaussian_window(height, width)
    assert window.dtype == torch.float32
    assert torch.equal(window, window.flip(0)) and torch.equal(window, window.flip(1))
    half = window.half()
    assert (half >= torch.finfo(torch.float16).tiny).all() and torch.isfinite(half * 8).all()
    assert torch.isfinite(half / half).all()


def test_blending_what_agrees_changes_nothing() -> None:
    picture = torch.randn(2, 4, 72, 120, generator=torch.Generator().manual_seed(0))
    tiles = plan_tiles(72, 120, 64, 16)
    torch.testing.assert_close(blend_tiles(tiles, picture.shape, lambda tile: tile.cut(picture)), picture)


def test_blending_is_smooth_across_tile_borders() -> None:
    tiles = plan_tiles(8, 112, 64, 16)
    blended = blend_tiles(
        tiles, torch.Size((1, 1, 8, 112)), lambda tile: torch.full((1, 1, 8, 64), float(tile.left > 0))
    )
    row = blended[0, 0, 0]
    assert torch.equal(row[:48], torch.zeros(48)) and torch.equal(row[64:], torch.ones(48))
    assert (row.diff() >= 0).all() and row.diff().max() < 0.2
    assert row[55] + row[56] == pytest.approx(1.0)


def test_a_single_tile_passes_through_untouched() -> None:
    picture = torch.randn(1, 4, 16, 16)
    assert torch.equal(blend_tiles(plan_tiles(16, 16, 64, 16), picture.shape, lambda tile: tile.cut(picture)), picture)
