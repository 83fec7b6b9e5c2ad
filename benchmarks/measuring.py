"""What the benchmarks on packed segments share: held-out pairs, and the figures of a way to restore them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from setevsr_core.errors import InputError
from setevsr_core.evaluation.measures import Instruments
from setevsr_core.evaluation.metrics import FrameDistance, mean_distance, psnr, warping_error
from setevsr_core.training.data import PackedDataset

Pair = tuple[Tensor, Tensor]
"""Degraded (T, h, w, 3) and clean (T, H, W, 3) frames in 0..1."""


@dataclass(frozen=True)
class Figures:
    """One figure per segment, and the seconds of a frame. others: further ones by name, without the segments that they
    could not be measured on.
    """

    lpips: list[float]
    psnr: list[float]
    warping: list[float]
    seconds: float
    others: Mapping[str, list[float]] = field(default_factory=dict)

    def means(self) -> tuple[float, float, float, float]:
        """LPIPS, PSNR, E_warp, s/frame."""
        mean = [sum(values) / len(values) for values in (self.lpips, self.psnr, self.warping)]
        return mean[0], mean[1], mean[2], self.seconds


def held_out(data: PackedDataset, segments: int) -> list[Pair]:
    """So many segments, spread evenly over the pack. Errors: InputError where it has fewer."""
    if not 1 <= segments <= len(data):
        raise InputError(f"'{data.folder}' has {len(data)} segments, {segments} were asked for: change --segments")
    stride = len(data) // segments
    pairs = []
    for index in range(segments):
        lr, hr = (torch.from_numpy(frames.copy()).float() / 255 for frames in data.segment(index * stride))
        pairs.append((lr, hr))
    return pairs


def measure(
    restore: Callable[[Tensor], Tensor], pairs: list[Pair], distance: FrameDistance, others: Instruments | None = None
) -> Figures:
    """Restore every segment and compare it with the truth; `distance` is LPIPS of two frames."""
    started = time.perf_counter()
    results = [restore(lr) for lr, _ in pairs]
    seconds = (time.perf_counter() - started) / sum(len(lr) for lr, _ in pairs)
    both = [(result, hr) for result, (_, hr) in zip(results, pairs, strict=True)]
    others = others or Instruments()
    more = [others.measure(others.figures, *pair) for pair in both]
    found = {name: [value for row in more if (value := row.get(name)) is not None] for name in others.figures}
    return Figures([mean_distance(distance, *pair) for pair in both], [psnr(*pair) for pair in both],
                   [warping_error(*pair) for pair in both], seconds, found)
