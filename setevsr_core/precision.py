"""Which number type to compute in when nobody chooses one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


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
