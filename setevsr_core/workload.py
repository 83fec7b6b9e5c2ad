"""How much a network call computes and holds, counted on tensors without data: exact, for any size, at no cost. What
machines make of such counts is a measured law beside it.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

LAW = Path(__file__).with_name("estimate_law.json")


@lru_cache(maxsize=1)
def law() -> dict[str, Any]:
    """The measured law: efficiency of every stage, how much more memory is used than counted, and where it is from."""
    return json.loads(LAW.read_text("utf-8"))


@dataclass(frozen=True)
class Work:
    """flops: floating point operations (a multiply-add is two). peak_bytes: most bytes of tensors that live at once,
    weights and the call's own inputs not counted.
    """

    flops: float
    peak_bytes: float

    def times(self, factor: float) -> Work:
        """So many calls, one after the other."""
        return Work(self.flops * factor, self.peak_bytes)


class _Counter(TorchDispatchMode):
    """Adds up the operations, and follows the storages that they make until Python lets go of them."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.live, self.peak = 0.0, 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # in inference mode composite operations arrive whole: count their parts
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        known = {id_of(value) for value in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        for value in _tensors(result):
            storage = value.untyped_storage()
            key = id_of(value)
            if key not in self._seen and key not in known:
                self._seen.add(key)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def id_of(value: Tensor) -> int:
    """The same for all views of one storage."""
    return value.untyped_storage()._cdata


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it, without its matrix of weights. Holds in this thread alone: others may be
    computing meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        pairs = query[..., 0].numel() * key.shape[-2]
        self.flops += 2.0 * pairs * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])


@torch.no_grad()
def count(call: Callable[[], Any]) -> Work:
    """What `call` computes and holds; its tensors and networks should be on the meta device."""
    with _FusedAttention() as attention, _Counter() as counter:
        call()
    return Work(counter.flops + attention.flops, counter.peak)
