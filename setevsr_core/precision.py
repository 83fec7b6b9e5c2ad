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


def gpu_computes_bfloat16(device: torch.device) -> bool:
    """Whether this very GPU multiplies bfloat16 natively: NVIDIA's since Ampere, and AMD's.

    `torch.cuda.is_bf16_supported` would ask the current GPU, whichever is meant.
    """
    if not torch.cuda.is_available():
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8


def automatic_dtype(device: Any) -> torch.dtype:
    """bfloat16 where the device computes in it natively; elsewhere float16 on CUDA and float32 on others.

    bfloat16 comes before float16 because SD 2.1's attention can overflow float16.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if gpu_computes_bfloat16(device) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_computes_bfloat16() else torch.float32


def training_precision(device: Any) -> str:
    """`automatic_dtype` as `setevsr train --precision` names it: bf16, fp16 (with its loss scaling) or fp32."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(automatic_dtype(device), "fp32")


def warn_of_emulation(device: Any, dtype: torch.dtype | None) -> None:
    """Say so where a half-precision type was asked of a processor that has to emulate it."""
    half = dtype is not None and dtype != torch.float32
    if half and torch.device(device).type == "cpu" and not cpu_computes_bfloat16():
        log.warning("this processor has no instructions for %s and emulates it, which takes many times as long; "
                    "float32 (or the automatic choice) is fast here", str(dtype).removeprefix("torch."))


def overflow_message(network: str, dtype: torch.dtype) -> str:
    """Why what a network gives is not finite, and what to do: float16 is too narrow for some, no other type is."""
    if dtype == torch.float16:
        return f"{network} overflowed in {dtype}; load it in bf16 or fp32 (--dtype bfloat16 on the command line)"
    return (f"{network} gives NaN or infinite values in {dtype}: its weights are damaged, or what it is given (text, "
            "semantics) is; download the weights again")
