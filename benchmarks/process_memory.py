"""Memory of this process as Linux counts it (needs /proc), and fresh processes whose peak is one thing's alone."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SEED = 0
"""Of all that is random in the benchmarks, unless they say otherwise."""


def resident() -> float:
    """Bytes that the process has now."""
    return _status("VmRSS")


def peak() -> float:
    """Most bytes that the process ever had, or had since `restart_peak`."""
    return _status("VmHWM")


def restart_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024


def in_own_process(threads: int | None, call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process, so that memory of one measurement does not count for the next. Random
    numbers begin with `SEED`.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_limited, (threads, call, *arguments))


def _limited(threads: int | None, call: Callable[..., Any], *arguments: Any) -> Any:
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    return call(*arguments)
