"""The training loop: mixed precision, EMA, curves, checkpoints that resume bit for bit."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingsError, TrainingError, require
from ..memory import is_out_of_memory
from ..precision import training_precision, warn_of_emulation
from ..video.durable import sync_file, sync_folder, write_atomically
from .activations import checkpoint_blocks
from .batches import Batch, Batches
from .data import PackedDataset
from .processes import Processes

log = logging.getLogger(__name__)

Curves = dict[str, Tensor | float]
"""Named values of a step. Tensors stay on their device until they are logged: reading one waits for the device."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

Bounds = dict[str, tuple[float, float]]
BOUNDS: Bounds = {
    **dict.fromkeys(("steps", "batch", "crop", "frames", "accumulate", "save_every", "log_every"), (1, math.inf)),
    **dict.fromkeys(("learning_rate", "seed", "warmup", "sharpen"), (0, math.inf)),
    **dict.fromkeys(("ema_decay", "decay_from"), (0, 1)),
}
"""Smallest and largest values of the loop's settings."""


def check_bounds(values: Mapping[str, Any], bounds: Bounds) -> None:
    """SettingsError for the first value that lies outside."""
    for name, (least, most) in bounds.items():
        if not least <= values[name] <= most:
            wanted = f"be at least {least}" if most == math.inf else f"lie in {least}..{most}"
            raise SettingsError(f"{name} is {values[name]:g}, it must {wanted}")


FREE = ("steps", "minutes", "save_every", "log_every", "device", "accumulate", "checkpointing", "vgg", "out")
"""Options that may change when a training goes on: it may take longer, elsewhere, with the same VGG at another place,
by more or fewer processes that see as many batches a step together.
"""


def require_same(kept: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """SettingsError for the first three values that `wanted` has other than `kept`; what: the folder, as a sentence's
    start. Names that only one of them knows belong to another version of this software and say nothing.
    """
    changed = [name for name in kept if name in wanted and kept[name] != wanted[name]]
    if changed:
        said = ", ".join(f"{name} {kept[name]!r} and not {wanted[name]!r}" for name in changed[:3])
        raise SettingsError(f"{what} with {said}: give another --out, or the options of then")


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimiser steps (of `accumulate` batches each); minutes: stop earlier, at the first step past them.

    The learning rate decays with whichever of the two is nearer to its end, so runs are repeatable bit for bit only
    without a time limit.

    crop: side of the training crops in HR pixels; frames: consecutive frames per crop.
    batch and accumulate count per process: N processes see N times as much at each step.
    precision: what autocast computes in; auto as in `precision.training_precision`.
    checkpointing: blocks compute their activations twice instead of keeping them.
    sharpen: amount of an unsharp mask (sigma 1 pixel) on the clean frames. What a network is unsure of comes out soft;
    asked for more contrast of fine detail than there is, it lands nearer to what there is (Real-ESRGAN's remedy).
    """

    steps: int
    batch: int
    crop: int
    frames: int
    learning_rate: float
    seed: int = 0
    accumulate: int = 1
    ema_decay: float = 0.999
    warmup: int = 50
    decay_from: float = 1.0
    precision: str = "auto"
    device: str = "auto"
    checkpointing: bool = False
    sharpen: float = 0.0
    minutes: float = float("inf")
    save_every: int = 200
    log_every: int = 10

    def __post_init__(self) -> None:
        check_bounds(vars(self), BOUNDS)
        if not self.minutes > 0:
            raise SettingsError(f"minutes is {self.minutes:g}, it must be more than 0")
        if self.precision not in PRECISIONS:
            raise SettingsError(f"precision is '{self.precision}', choose {', '.join(PRECISIONS)}")

    def on(self, device: torch.device) -> TrainSettings:
        """The same with the precision that `auto` means on this device."""
        return replace(self, precision=training_precision(device)) if self.precision == "auto" else self

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What autocast computes in; None where it stays off."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)


class Stage(ABC):
    """What one training stage is: networks, what of them learns, and the loss of a batch."""

    name: str
    networks: dict[str, nn.Module]
    processes: Processes
    """Set by the trainer; who has an optimiser of its own averages its gradients over them. No default: made at import,
    it would start the process group on the CPU before anyone chose a device."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser changes."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars whose sum is minimised."""

    def gradient_path(self) -> list[nn.Module]:
        """The networks that a gradient passes, learning or frozen: those whose activations are kept."""
        return list(self.networks.values())

    def after_step(self, batch: Batch, step: int) -> Curves:
        """For what has an optimiser of its own (a discriminator); returns values for the curves."""
        return {}

    def finish(self, next_batch: Callable[[], Batch]) -> dict[str, Any]:
        """Called with the averaged weights in place, before they are written; returns entries for the record."""
        return {}

    def sample(self, batch: Batch) -> list[Tensor]:
        """Rows of pictures, each (N, 3, H, W) in -1..1, that show what the stage has learnt."""
        return []

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides networks, optimiser and averages."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        assert not state, "a stage with a state of its own takes it back itself"


def learn_alone(network: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freeze all of `network` but these of its parameters: no gradient is computed that no optimiser takes."""
    network.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


class Trainer:
    """Runs a stage in a folder: `state.pt` to resume, `log.csv` with the curves, `samples/*.jpg`, and its networks.

    With several `processes` each holds the whole stage (built with the same seed), and the first writes the folder. All
    read `state.pt` and go by the first one's clock, so that they stop, and lower the learning rate, at the same step.
    """

    def __init__(self, stage: Stage, data: PackedDataset, settings: TrainSettings, folder: Path,
                 save: Callable[[Stage, Path, dict[str, Any]], None], processes: Processes | None = None,
                 options: dict[str, Any] | None = None):
        self.stage, self.data, self.folder, self._save_networks = stage, data, folder, save
        self.processes = stage.processes = processes or Processes(settings.device)
        self.device = self.processes.device
        self.settings = settings = settings.on(self.device)
        options = {**(options or asdict(settings)), "precision": settings.precision}
        self.options = {name: value for name, value in options.items() if value is not None and value != math.inf}
        self._deciding = self._what_decides(options)
        warn_of_emulation(self.device, settings.autocast_dtype)
        if settings.checkpointing:
            for network in stage.gradient_path():
                checkpoint_blocks(network)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = stage.parameters()
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, betas=(0.9, 0.99))
        ema = require("diffusers.training_utils", "diffusers", "training")
        self.ema = ema.EMAModel(self.parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75,
                                foreach=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.step = 0
        self.seconds = 0.0
        self.batches = Batches(data, settings, self.processes)

    def _what_decides(self, options: dict[str, Any]) -> dict[str, Any]:
        """All that a resumed run must have in common with what it goes on from, as it reads back from a file."""
        found = {"stage": self.stage.name, "data": _identity(self.data.meta), **asdict(self.settings), **options,
                 "accumulate times processes": self.settings.accumulate * self.processes.count}
        return json.loads(json.dumps({name: value for name, value in found.items() if name not in FREE}))

    def run(self) -> dict[str, Any]:
        """Train to the end (or to the time limit) and write the averaged networks; returns the training record.

        Errors: SettingsError where the folder holds another training, or a process finds another state there than the
        first one.
        """
        self._resume()
        if self.processes.main:
            self._forget_later_rows()
        if self.processes.from_first(self.step) != self.step:
            raise SettingsError(f"the processes of this training do not see the same {self.folder}: give --out on a "
                                "folder that all machines share")
        started = time.monotonic() - self.seconds
        with self.batches.drawn_ahead():
            while self.step < self.settings.steps and self.seconds < self.settings.minutes * 60:
                values = self._optimise()
                self.step += 1
                self.seconds = self.processes.from_first(time.monotonic() - started)
                if self.step % self.settings.log_every == 0:
                    self._log(values)
                if self.step % self.settings.save_every == 0:
                    self._checkpoint()
        self._checkpoint()
        return self._finish()

    def _optimise(self) -> Curves:
        progress = max(self.step / self.settings.steps, self.seconds / 60 / self.settings.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._rate(progress)
        values: Curves = {}
        batch = None
        for part in range(self.settings.accumulate):
            batch = self.batches.next(self.step, part)
            with self._autocast():
                losses = self.stage.losses(batch)
                total = torch.stack([loss.float() for loss in losses.values()]).sum() / self.settings.accumulate
            self.scaler.scale(total).backward()
            values = {name: loss.detach() for name, loss in losses.items()}
        self.processes.average(self.parameters)
        self.scaler.unscale_(self.optimizer)
        self._require_finite(nn.utils.clip_grad_norm_(self.parameters, 1.0), values)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        assert batch is not None
        with self._autocast():
            values |= self.stage.after_step(batch, self.step)
        return values

    def _require_finite(self, norm: Tensor, values: Curves) -> None:
        """Stop before a gradient that is no number spoils the weights.

        In fp16 some overflow; the scaler skips their step and lowers its scale. Training has diverged where that does
        not end. Errors: TrainingError.
        """
        lost = self.scaler.get_scale() < 1 if self.scaler.is_enabled() else not norm.isfinite()
        if lost:
            said = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            raise TrainingError(f"training diverged at step {self.step + 1} ({said}): take a lower --learning-rate, or "
                                f"--precision fp32, and another --out; {self.folder} keeps its last saved step")

    def _rate(self, progress: float) -> float:
        """Linear warm-up, constant, and a linear decay to zero from `decay_from` (a share of all steps) on."""
        warm = min(1.0, (self.step + 1) / max(self.settings.warmup, 1))
        start = self.settings.decay_from
        return warm if progress <= start else warm * max((1 - progress) / (1 - start), 0.02)

    def _autocast(self) -> Any:
        dtype = self.settings.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _log(self, values: Curves) -> None:
        if not self.processes.main:
            return
        curves = {name: round(float(value), 6) for name, value in values.items()}
        row = {"step": self.step, "seconds": round(self.seconds, 1), **curves}
        path = self.folder / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        log.info("%s %s", self.stage.name, " ".join(f"{k}={v}" for k, v in row.items()))

    def _checkpoint(self) -> None:
        if self.processes.main:
            self._write_state()
            self._strip()
        self.processes.wait()

    def _write_state(self) -> None:
        state = {
            "options": self._deciding, "shards": self.data.shards,
            "step": self.step, "seconds": self.seconds, "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(), "scaler": self.scaler.state_dict(), "stage": self.stage.state(),
            "networks": {name: network.state_dict() for name, network in self.stage.networks.items()},
        }
        partial = self.folder / "state.pt.part"
        torch.save(state, partial)
        sync_file(partial)
        partial.replace(self.folder / "state.pt")
        sync_folder(self.folder)

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        # To the CPU: on a GPU it would lie there beside what it is copied to, and Adam would ask the GPU at every step
        # for each count of steps, which is not moved back.
        state = torch.load(path, map_location="cpu", weights_only=True)
        require_same(state.get("options", {}), self._deciding, f"'{self.folder}' holds a training")
        self.data.take(state.get("shards", self.data.shards))  # earlier versions took what was finished by then
        try:
            self._take_back(state)
        except (KeyError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise SettingsError(f"'{self.folder}' holds a training of another stage or of other networks ({reason}): "
                                "give another --out, or the options of then") from error
        log.info("%s resumes at step %d", self.stage.name, self.step)

    def _take_back(self, state: dict[str, Any]) -> None:
        for name, network in self.stage.networks.items():
            network.load_state_dict(state["networks"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(device=self.device)
        self.scaler.load_state_dict(state["scaler"])
        self.stage.load_state(state["stage"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _forget_later_rows(self) -> None:
        """Take out of the curves what a killed run logged after its last checkpoint: those steps come again."""
        path = self.folder / "log.csv"
        if not path.exists():
            return
        header, *rows = path.read_text(encoding="utf-8").splitlines() or [""]
        whole = [row for row in rows if row.count(",") == header.count(",")]
        kept = [row for row in whole if int(row.partition(",")[0]) <= self.step]
        if kept:
            write_atomically(path, "".join(f"{row}\r\n" for row in (header, *kept)).encode())
        else:  # nothing was saved before the kill
            path.unlink()

    @torch.no_grad()
    def _strip(self) -> None:
        """Write a strip of pictures of one fixed batch (what the stage shows, side by side)."""
        with self._autocast():
            rows = self.stage.sample(self.batches.fixed(2**31, 0))
        if not rows:
            return
        from PIL import Image

        first = [row[:4].float() for row in rows]
        height = max(row.shape[-2] for row in first)
        first = [nn.functional.interpolate(row, (height, height), mode="nearest-exact") for row in first]
        picture = torch.cat([torch.cat(list(row), dim=-1) for row in first], dim=-2)
        pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        target = self.folder / "samples" / f"{self.step:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(target, quality=92)

    def _finish(self) -> dict[str, Any]:
        self.ema.copy_to(self.parameters)
        counter = iter(range(10**6))
        with torch.no_grad(), self._autocast():
            extra = self.stage.finish(lambda: self.batches.fixed(2**31 + 1, next(counter)))
        record = {"stage": self.stage.name, "steps": self.step, "seconds": round(self.seconds), **extra,
                  "options": self.options,
                  "data": [_without_path(source) for source in self.data.meta.get("sources", [])],
                  "segments": len(self.data), "pack": _what_was_done(self.data.meta),
                  "processes": self.processes.count,
                  "torch": torch.__version__}
        if self.processes.main:
            self._save_networks(self.stage, self.folder, record)
        self.processes.wait()
        return record


def _without_path(source: dict[str, Any]) -> dict[str, Any]:
    """A source of the data for the record: the folder's name says what it was, its place on this machine does not."""
    return {**source, "folder": Path(source["folder"]).name}


def _identity(meta: dict[str, Any]) -> str:
    """Names the data's folders, with a digest of what was drawn from them and how; a pack may grow meanwhile."""
    names = [Path(source["folder"]).name for source in meta.get("sources", [])]
    settings = {name: value for name, value in meta["settings"].items() if value and name != "segments"}
    decides = [names, meta.get("videos"), meta.get("photos"), settings]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return f"{', '.join(names)} ({digest[:8]})"


def _what_was_done(meta: dict[str, Any]) -> dict[str, Any]:
    """What a pack's frames went through after they were drawn and degraded."""
    settings = meta["settings"]
    return {name: settings[name] for name in ("steady", "sharpen_weight") if settings.get(name)}
