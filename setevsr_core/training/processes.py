"""Training on several GPUs and machines: one process per device, started by `accelerate launch`.

Every process draws its own batches, and gradients are averaged after the backward pass. So N processes with
`accumulate` K see what one process sees with `accumulate` N * K, and a stage needs no wrapper around its networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import Tensor

from ..devices import usable_device
from ..errors import SettingsError, require

PATIENCE = timedelta(days=1)
"""How long processes wait for one another: the first may pack all the material meanwhile."""


class Processes:
    """The processes of this training. Without `accelerate launch` (or torchrun) there is one.

    device: "auto" (this process's GPU, else the CPU) or a torch device; with several processes "auto" or "cpu".
    """

    def __init__(self, device: str = "auto") -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self._state = None
        if self.count > 1:
            if device not in ("auto", "cpu"):
                raise SettingsError(f"device is {device}; with several processes each takes its own: leave it out")
            accelerate = require("accelerate", purpose="training in several processes")
            self._state = accelerate.PartialState(cpu=device == "cpu", timeout=PATIENCE)
            self.rank, self.device = self._state.process_index, self._state.device
        else:
            self.rank, self.device = 0, usable_device(None if device == "auto" else device)

    @property
    def main(self) -> bool:
        """True for the one process that writes files."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over all processes; a process that has none counts as zero."""
        if self.count == 1:
            return
        chosen = [p for p in parameters if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        flat = torch.cat([g.reshape(-1) for g in gradients])  # one message instead of hundreds
        torch.distributed.all_reduce(flat)
        means = flat.div_(self.count).split([g.numel() for g in gradients])
        for parameter, gradient in zip(chosen, means, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def from_first(self, value: float) -> float:
        """The first process's value, in every process; all have to call it."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()
