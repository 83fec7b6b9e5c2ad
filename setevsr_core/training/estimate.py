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
from torch.utils._pytree import tree_leaves

from .activations import Call, forgetful, wrapped_blocks
from .batches import Batch
from .trainer import Stage, TrainSettings
from .vae_stages import PictureStage

SLACK = 1.15
"""Workspaces of convolutions, the allocator's fragmentation and the CUDA context, as a factor on all of it."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device: weights of all networks, gradients + Adam + averages of what learns, kept activations.

    The networks of the losses (VGG16, the discriminator) and a teacher count as the others do.
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

    With checkpointing the activations are what is kept outside of the blocks, all inputs of blocks, and the inside of
    the largest block, which the backward pass computes again.
    """
    weights = _bytes(tensor for network in taking_part(stage) for tensor in network.state_dict().values())
    learning = 4 * _bytes(stage.parameters())  # gradients, two moments of Adam, and the averaged weights
    adversary = stage.adversary if isinstance(stage, PictureStage) else None
    kept, judged = _Kept(), _Kept()
    with played(stage, settings, device, scale) as batch, adversary.counted() if adversary else nullcontext():
        with kept, wrapped_blocks(_forgetting(stage, settings), kept.forgotten):
            stage.losses(batch)
        with judged:
            if isinstance(stage, PictureStage):
                stage.judge()
    if adversary:
        learning += 3 * _bytes(adversary.network.parameters())  # it is not averaged
    # The discriminator judges after the backward pass, which has let go of all that the losses kept.
    return MemoryEstimate(weights, learning, max(kept.bytes + kept.largest, judged.bytes))


def _forgetting(stage: Stage, settings: TrainSettings) -> list[nn.Module]:
    """The networks whose blocks forget their activations."""
    return stage.gradient_path() if settings.checkpointing else []


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

    Counted are matrix multiplications, convolutions and attention, and with checkpointing its second pass.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with played(stage, settings, device, scale) as batch, wrapped_blocks(_forgetting(stage, settings), forgetful):
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
        # Where the weights say they lie: a CPU may be called "cpu:0", which fake tensors take for another device.
        lr = torch.zeros(count, 3, small, small, device=first.device)
        hr = torch.zeros(count, 3, settings.crop, settings.crop, device=first.device)
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
    """Adds up the storages that autograd keeps, each once, without the weights themselves.

    bytes: all but the insides of blocks that are called through `forgotten`; largest: the largest of those.
    """

    def __init__(self) -> None:
        self._alive: dict[int, Any] = {}  # a storage's address may be used again once it is gone
        self.asked = False
        self.bytes = self.largest = 0
        super().__init__(self._pack, lambda tensor: tensor)

    def forgotten(self, call: Call) -> Call:
        """The call of a block that keeps its inputs alone, as `checkpoint` does, and only if it has a gradient."""

        def block(*args: Any, **kwargs: Any) -> Any:
            inside = _Kept()
            with inside:
                result = call(*args, **kwargs)
            if inside.asked:
                given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
                for tensor in given:
                    self._pack(tensor)
                own = inside._alive.keys() - {tensor.untyped_storage()._cdata for tensor in given}
                self.largest = max(self.largest, sum(inside._alive[key].nbytes() for key in own))
            return result

        return block

    def _pack(self, tensor: Tensor) -> Tensor:
        self.asked = True
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            return tensor  # a weight, or a view of one
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage
            self.bytes += storage.nbytes()
        return tensor
