"""Free memory of a device; where it is full, smaller tiles, and one sentence that names what to lower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from .errors import SettingsError, require
from .sampling.tiles import GRID

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_SIGNS = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")
"""In messages of PyTorch: a GPU's memory is full (CUDA, MPS and others), the machine's, that of a library of CUDA; no
way of computing a convolution got the workspace it asked for."""


def free_bytes(device: Any) -> int:
    """Bytes that a computation on `device` can still take: free ones and those that PyTorch keeps for new tensors."""
    device = torch.device(device)
    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type)
        free, _ = module.mem_get_info(device)
        return int(free + module.memory_reserved(device) - module.memory_allocated(device))
    psutil = require("psutil", "psutil", "choosing the VAE's tiles by free memory")
    return int(psutil.virtual_memory().available)  # a Mac's GPU shares it


def release_cached(device: Any) -> None:
    """Give memory that PyTorch keeps for new tensors back to the device."""
    kind = torch.device(device).type
    if kind in ("cuda", "xpu", "mps"):
        getattr(torch, kind).empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """True if `error` says that the memory of a device, or the machine's own, is full."""
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    return told or isinstance(error, MemoryError)


class ShrinkingTiles:
    """Tiles that are halved, for good, wherever the memory of `device` is full.

    tile: side in latents to begin with, 0 for none. whole: the longer side of a frame's grid. smallest: side of the
    last tiles to try. user: who works in them, and remedy: what to change when that was not enough, for the messages.
    widget: the setting that is `tile`, "" where there is none.
    """

    def __init__(
        self, tile: int, whole: int, smallest: int, device: Any, user: str, remedy: str, widget: str = ""
    ) -> None:
        self._tile, self._whole, self._smallest = tile, whole, smallest
        self._device, self._user, self._remedy, self._widget = device, user, remedy, widget
        self._halved = False

    def fit(self, needed: Callable[[int], float], free: float) -> None:
        """Begin in smaller tiles where `needed(tile)`, the least bytes that work in `tile` takes, exceeds `free`."""
        while needed(self._tile) > free and self._side > self._smallest:
            self._halve(f"{free / 2**30:.1f} GiB of memory are free, too little: %s begins in tiles of %d latents")

    def run(self, work: Callable[[int], Result]) -> Result:
        """`work(tile)`; called again with smaller tiles while it runs out of memory.

        Errors: SettingsError with the remedy, when even the smallest tile does not fit.
        """
        while True:
            try:
                return work(self._tile)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block on purpose: the traceback, and the tensors it holds, are gone by now.
            release_cached(self._device)
            if self._side <= self._smallest:
                raise SettingsError(f"The memory is full: {self._remedy}")
            self._halve("the memory is full: %s goes on in tiles of %d latents")

    def report(self) -> None:
        """At the end of a run: say what spares the next one the attempts, if there were any."""
        if self._halved:
            advice = f"set '{self._widget}' to {self._tile}" if self._widget else self._remedy.rstrip(".")
            log.warning("for want of memory %s ended in tiles of %d latents; %s to spare the attempts", self._user,
                        self._tile, advice)  # fmt: skip

    @property
    def _side(self) -> int:
        return min(self._tile or self._whole, self._whole)

    def _halve(self, message: str) -> None:
        self._tile = max(self._smallest, self._side // 2 // GRID * GRID)
        self._halved = True
        log.warning(message, self._user, self._tile)


@contextmanager
def readable_memory_error() -> Iterator[None]:
    """SettingsError that names the options to lower, in place of the error of a full memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError("the memory is full; give a smaller --tile (such as 32), then a smaller --length, then a "
                            "smaller --scale") from error
