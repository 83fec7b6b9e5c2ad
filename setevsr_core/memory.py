"""Free memory of a device, and a full one, said as one sentence that names what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .errors import SettingsError, require

_SIGNS = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")
"""In messages of PyTorch: a GPU's memory is full (CUDA, MPS and others), the machine's, that of a library of CUDA."""


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
