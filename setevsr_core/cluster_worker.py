"""The far end of `cluster`: networks from bytes, and one segment after another. Needs no Ray itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import load_preset
from .devices import usable_device
from .memory import readable_memory_error
from .progress import SegmentProgress
from .restorer import Restorer
from .segment_run import SegmentRun
from .video.segments import Span

STORED = "stored"
"""The number type that means: every network in the one its file is stored in."""


class SegmentWorker:
    """files: name -> bytes of a preset's folder. device None: CUDA if this machine has one, else its CPU. dtype:
    "float32" and so on, `STORED`, or None for the device's own. threads: of the CPU, 0 leaves them.
    Errors: SettingsError for a device that is not there, and when the memory is full.
    """

    def __init__(self, files: Mapping[str, bytes], device: str | None, dtype: str | None, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            with readable_memory_error():
                self._restorer = _load(folder, usable_device(device), dtype)
        self._job = ""
        self._run: SegmentRun | None = None

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """As `Restorer.fingerprint`."""
        return self._restorer.fingerprint(**settings)

    def restore(
        self, job: str, settings: Mapping[str, Any], text: Tensor | None, span: tuple[int, int], segment: Tensor
    ) -> Tensor:
        """The pictures of one segment. What consecutive segments of one `job` share is computed once."""
        if self._run is None or job != self._job:
            chosen = self._restorer.settings(**settings)
            silent = SegmentProgress(None, None, chosen.steps, has_semantics=False)
            self._job, self._run = job, SegmentRun(self._restorer, chosen, silent, text)
        with readable_memory_error():
            return self._run.restore(Span(*span), segment).cpu()


def _load(folder: str, device: torch.device, dtype: str | None) -> Restorer:
    if dtype != STORED:
        return Restorer.from_preset(folder, device, None if dtype is None else getattr(torch, dtype))
    preset = load_preset(folder, device=device)
    return Restorer(preset.denoiser, preset.vae, preset.encoder, device=device, defaults=preset.defaults)
