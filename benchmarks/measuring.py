"""What benchmarks share: the line that says where and with what they ran; and for those on packed segments, held-out
pairs and the figures of a way to restore them.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from setevsr_core.errors import InputError

from .process_memory import SEED

if TYPE_CHECKING:  # imported here, they would be part of the memory that other benchmarks measure
    from setevsr_core.evaluation.measures import Instruments
    from setevsr_core.evaluation.metrics import FrameDistance
    from setevsr_core.training.data import PackedDataset

Pair = tuple[Tensor, Tensor]
"""Degraded (T, h, w, 3) and clean (T, H, W, 3) frames in 0..1."""


def begin(
    what: str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", threads: int | None = None,
    seed: str = "",
) -> None:  # fmt: skip
    """The first line of a benchmark: what it measures, the number type, torch, the machine and the seed. Random numbers
    of torch begin anew with that seed.

    threads: of the processor, None leaves them. seed: what more is seeded, such as "degradation 1000..".
    """
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    number = f", {str(dtype).removeprefix('torch.')}" if dtype is not None else ""
    more = f", {seed}" if seed else ""
    print(f"{what}{number}, torch {torch.__version__}, {machine(device)}, seed {SEED}{more}\n", flush=True)


def machine(device: str | torch.device = "cpu") -> str:
    """Names of the processor and of the GPU that is computed on, with the cores and the threads in use."""
    device = torch.device(device)
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{gpu}{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def processor() -> str:
    """The name on the processor where Linux tells it, else what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


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
    from setevsr_core.evaluation.measures import Instruments
    from setevsr_core.evaluation.metrics import mean_distance, psnr, warping_error

    started = time.perf_counter()
    results = [restore(lr) for lr, _ in pairs]
    seconds = (time.perf_counter() - started) / sum(len(lr) for lr, _ in pairs)
    both = [(result, hr) for result, (_, hr) in zip(results, pairs, strict=True)]
    others = others or Instruments()
    more = [others.measure(others.figures, *pair) for pair in both]
    found = {name: [value for row in more if (value := row.get(name)) is not None] for name in others.figures}
    return Figures([mean_distance(distance, *pair) for pair in both], [psnr(*pair) for pair in both],
                   [warping_error(*pair) for pair in both], seconds, found)
