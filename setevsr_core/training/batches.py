"""The batches of a training: cut from its packed data ahead of the step that needs them, and put on the device."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..networks.sharpening import unsharp_mask
from .data import PackedDataset
from .processes import Processes

if TYPE_CHECKING:
    from .trainer import TrainSettings

Drawn = tuple[Tensor, Tensor, torch.Generator]
"""A batch before it goes to the device: lr and hr (B, T, H, W, 3) uint8, and the generator of its step."""

AHEAD = 3
"""Batches that are cut while a step is computed, each by a thread of its own."""


@dataclass(frozen=True)
class Batch:
    """lr (B*T, 3, h, w) and hr (B*T, 3, H, W) in -1..1; noise draws of this step come from `generator` (CPU)."""

    lr: Tensor
    hr: Tensor
    num_frames: int
    generator: torch.Generator

    def randn(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.hr.device)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.hr.device)

    def chance(self) -> float:
        """One number of [0, 1), to draw a branch by."""
        return float(torch.rand((), generator=self.generator))


class Batches:
    """Everything random in a batch follows from (seed, step, part), so a resumed run draws what it would have drawn."""

    def __init__(self, data: PackedDataset, settings: TrainSettings, processes: Processes) -> None:
        self._data, self._settings, self._processes = data, settings, processes
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[Drawn]] = {}

    @contextmanager
    def drawn_ahead(self) -> Iterator[None]:
        """Inside, `next` may be called."""
        with ThreadPoolExecutor(AHEAD) as self._pool:
            yield

    def next(self, step: int, part: int) -> Batch:
        """Batch `part` of this process's `accumulate` at `step`; those after it are on their way when it returns."""
        assert self._pool is not None, "inside drawn_ahead"
        parts = self._settings.accumulate
        number, end = step * parts + part, self._settings.steps * parts
        for following in range(number, min(number + AHEAD + 1, end)):
            if following not in self._pending:
                at, nth = divmod(following, parts)
                place = nth * self._processes.count + self._processes.rank
                self._pending[following] = self._pool.submit(self._draw, at, place)
        return self._on_device(self._pending.pop(number).result())

    def fixed(self, step: int, part: int) -> Batch:
        """A batch by itself, to compare runs and pictures by."""
        return self._on_device(self._draw(step, part))

    def _draw(self, step: int, part: int) -> Drawn:
        s = self._settings
        rng = np.random.default_rng([s.seed, step, part])
        pictures = (torch.from_numpy(x) for x in self._data.sample(rng, s.batch, s.crop, s.frames, flip=True))
        lr, hr = (x.pin_memory() if self._processes.device.type == "cuda" else x for x in pictures)
        return lr, hr, torch.Generator().manual_seed(int(rng.integers(2**63)))

    def _on_device(self, drawn: Drawn) -> Batch:
        lr, hr, generator = drawn
        s = self._settings
        return Batch(self._pixels(lr), unsharp_mask(self._pixels(hr), s.sharpen).clamp(-1, 1), s.frames, generator)

    def _pixels(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B*T, 3, H, W) in -1..1."""
        x = frames.to(self._processes.device, non_blocking=True).flatten(0, 1).permute(0, 3, 1, 2)
        return x.float().div_(127.5).sub_(1)
