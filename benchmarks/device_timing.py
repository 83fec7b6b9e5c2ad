"""Time, memory and kernels of work on a GPU: CUDA events, captured graphs, the allocator's peak, the profiler.

On a processor the same calls take its clock (a graph is the call itself, memory is not known), so that what is written
for a GPU can be tried without one.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType

Call = Callable[[], Any]


def chosen(name: str) -> torch.device:
    """The device of a benchmark, made the current one: events, graphs and the profiler look at no other."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def nothing() -> None:
    """Between two calls, where nothing is to be made anew."""


def median_seconds(call: Call, device: torch.device, *, calls: int = 10, warm_up: int = 3, each: int = 1,
                   between: Call = nothing) -> float:
    """Median seconds of `call` over `calls` measurements of `each` calls; `between` comes before each, not timed.

    On a GPU the calls queue up behind each other, so what it waits for its processor counts only where it does wait.
    """
    gpu = device.type == "cuda"
    for _ in range(warm_up):
        between()
        call()
    if gpu:
        torch.cuda.synchronize(device)
    marks = []
    for _ in range(calls):
        between()
        marks.append(_mark(gpu))
        for _ in range(each):
            call()
        marks.append(_mark(gpu))
    if gpu:
        torch.cuda.synchronize(device)
    pairs = zip(marks[::2], marks[1::2], strict=True)
    return statistics.median(a.elapsed_time(b) / 1e3 if gpu else b - a for a, b in pairs) / each


def _mark(gpu: bool) -> Any:
    if not gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def products_rate(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """Operations a second of products of random square matrices: the median of twenty, after ten."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / median_seconds(lambda: torch.mm(a, b, out=out), device, calls=20, warm_up=10)


def captured(call: Call, device: torch.device) -> Call:
    """`call` as a CUDA graph: one launch for all its kernels. It reads and writes the same memory at every replay."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # libraries set themselves up outside the capture
        for _ in range(2):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def captured_seconds(call: Call, device: torch.device, **options: Any) -> float:
    """`median_seconds` of the call as a CUDA graph; not a number, with the reason on stderr, where it cannot be one."""
    try:
        return median_seconds(captured(call, device), device, **options)
    except RuntimeError as error:
        print(f"no CUDA graph: {error}", file=sys.stderr, flush=True)
        return math.nan


def restart_peak(device: torch.device) -> None:
    """Give back what nobody holds any more, and let `peak` begin anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """Most bytes of tensors at once since `restart_peak`, weights included; not known (0) on a processor."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def profiled(call: Call, device: torch.device) -> tuple[list[tuple[str, int, float]], list[tuple[str, int, float]]]:
    """(name, count, seconds) of all kernels of one call and of the operations that launched them, longest first.

    On a processor there are no kernels, and operations count with its own time.
    """
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        call()
        if gpu:
            torch.cuda.synchronize(device)
    kernels, operations = [], []
    for row in profiler.key_averages():
        on_cpu = row.device_type == DeviceType.CPU
        spent = row.self_device_time_total if gpu else row.self_cpu_time_total
        if spent:
            (operations if on_cpu else kernels).append((str(row.key), row.count, spent / 1e6))
    return (sorted(kernels, key=lambda entry: -entry[2]), sorted(operations, key=lambda entry: -entry[2]))
