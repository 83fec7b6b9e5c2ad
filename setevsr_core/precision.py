"""Which number type to compute in when nobody chooses one."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def cpu_computes_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 natively (AVX512-BF16 or AMX).

    There the networks run faster in bfloat16 than in float32, and the results cannot be told apart
    (`python -m benchmarks.precision` measures both). Elsewhere bfloat16 is emulated and slow. torch says so only by
    private names; a torch without them counts as a processor without it.
    """
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        try:
            if getattr(torch.cpu, name)():
                return True
        except (AttributeError, RuntimeError, TypeError):
            continue
    return False


def automatic_dtype(device: Any) -> torch.dtype:
    """float16 on CUDA; bfloat16 on a CPU that computes in it; float32 elsewhere."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.float16
    return torch.bfloat16 if kind == "cpu" and cpu_computes_bfloat16() else torch.float32


def training_precision(device: Any) -> str:
    """The number type of autocast, as `setevsr train --precision` names it: bf16 where the device computes in it,
    else fp16 on CUDA (with its loss scaling) and fp32 elsewhere."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if kind == "cpu" and cpu_computes_bfloat16() else "fp32"


def warn_of_emulation(device: Any, dtype: torch.dtype | None) -> None:
    """Say so where a half-precision type was asked of a processor that has to emulate it."""
    half = dtype is not None and dtype != torch.float32
    if half and torch.device(device).type == "cpu" and not cpu_computes_bfloat16():
        log.warning("this processor has no instructions for %s and emulates it, which takes many times as long; "
                    "float32 (or the automatic choice) is fast here", str(dtype).removeprefix("torch."))
