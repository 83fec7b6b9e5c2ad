"""How much memory a training takes, before it starts: one step is played through without computing or storing.

PyTorch's fake tensors have shapes and types but no data, so a step of the full-size network "runs" in seconds on any
machine; what autograd would keep for the backward pass is added up. Left out: the libraries' workspaces and
fragmentation, for which `SLACK` stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .trainer import Stage, TrainSettings
from .vae_stages import PictureStage

SLACK = 1.15
"""Workspaces of convolutions, the allocator's fragmentation and the CUDA context, as a factor on all of it."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device: weights of all networks, gradients + Adam + averages of what learns, kept activations.

    The networks of the losses (VGG16, the discriminator) count as the others do.
    """

    weights: int
    learning: int
    activations: int

    @property
    def total(self) -> int:
        return round(SLACK * (self.weights + self.learning + self.activations))

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients, Adam, averages": self.learning, "activations": self.activations}
        listed = ", ".join(f"{name} {value / 2**30:.1f}" for name, value in parts.items())
        return f"about {self.total / 2**30:.1f} GiB of device memory ({listed}, and {SLACK - 1:.0%} on top)"


class _FakeBatch(Batch):
    """Branches that are drawn take their costlier side: diffusion and semantics on."""

    def chance(self) -> float:
        return 0.999


def estimate_memory(stage: Stage, settings: TrainSettings, device: torch.device, scale: int = 4) -> MemoryEstimate:
    """Memory of one step of `stage`, whose networks lie on `device` or are fake tensors.

    Activation checkpointing is not counted: with it, activations take a fraction of the figure.
    """
    weights = _bytes(tensor for network in taking_part(stage) for tensor in network.state_dict().values())
    learning = 4 * _bytes(stage.parameters())  # gradients, two moments of Adam, and the averaged weights
    adversary = stage.adversary if isinstance(stage, PictureStage) else None
    kept, judged = _Kept(), _Kept()
    with played(stage, settings, device, scale) as batch, adversary.counted() if adversary else nullcontext():
        with kept:
            stage.losses(batch)
        with judged:
            if isinstance(stage, PictureStage):
                stage.judge()
    if adversary:
        learning += 3 * _bytes(adversary.network.parameters())  # it is not averaged
    # The discriminator judges after the backward pass, which has let go of all that the losses kept.
    return MemoryEstimate(weights, learning, max(kept.bytes, judged.bytes))


def taking_part(stage: Stage) -> list[nn.Module]:
    """Every network of a stage, each once: what is trained, what stands beside it, and what its losses compute with."""
    found = [*vars(stage).values(), *stage.networks.values()]
    if isinstance(stage, PictureStage):
        found += stage.helpers()
    return list({id(value): value for value in found if isinstance(value, nn.Module)}.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step_flops(stage: Stage, settings: TrainSettings, device: torch.device, scale: int = 4) -> float:
    """Floating point operations of one optimiser step in one process, forward and backward (a multiply-add is two).

    Counted are matrix multiplications, convolutions and attention, each once: without checkpointing's second pass.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with played(stage, settings, device, scale) as batch:
        with FlopCounterMode(display=False, custom_mapping=_cpu_attention()) as counter:
            torch.stack([loss.float() for loss in stage.losses(batch).values()]).sum().backward()
    for parameter in stage.parameters():
        parameter.grad = None
    return float(counter.get_total_flops()) * settings.accumulate


@contextmanager
def played(stage: Stage, settings: TrainSettings, device: torch.device, scale: int) -> Iterator[Batch]:
    """A batch without data; inside the block everything computes on shapes alone."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    first = stage.parameters()[0]
    mode = first.fake_mode if isinstance(first, FakeTensor) else FakeTensorMode(allow_non_fake_inputs=True)
    dtype = settings.on(device).autocast_dtype
    count, small = settings.batch * settings.frames, settings.crop // scale
    with mode, torch.autocast(device.type, dtype, enabled=dtype is not None):
        lr = torch.zeros(count, 3, small, small, device=device)
        hr = torch.zeros(count, 3, settings.crop, settings.crop, device=device)
        yield _FakeBatch(lr, hr, settings.frames, torch.Generator())


def _cpu_attention() -> dict[Any, Any]:
    """Operations of attention as CPUs spell it, which PyTorch's own counter leaves out."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    aten = torch.ops.aten
    return {aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward}


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the storages that autograd keeps, each once, without the weights themselves."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # a storage's address may be used again once it is gone
        self.bytes = 0
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            return tensor  # a weight, or a view of one
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(storage)
            self.bytes += storage.nbytes()
        return tensor
