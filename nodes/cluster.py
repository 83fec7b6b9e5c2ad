"""The networks of a node on a Ray cluster: written as the files that workers load."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import compat
from .hosting import ComponentHandle


@contextmanager
def cluster_restorer(
    address: str, denoiser: ComponentHandle, vae: ComponentHandle, encoder: ComponentHandle | None
) -> Iterator[Any]:
    """A `ClusterRestorer` with these networks, each computing in its own number type.

    Errors: SettingsError for a denoiser changed by Load LoRA (its patches live in ComfyUI), and as `ClusterRestorer`.
    """
    from ..setevsr_core.checkpoints import save_preset
    from ..setevsr_core.cluster import ClusterRestorer
    from ..setevsr_core.cluster_worker import STORED
    from ..setevsr_core.errors import SettingsError

    if denoiser.patcher is not None and getattr(denoiser.patcher, "patches", None):
        raise SettingsError("A denoiser with Load LoRA cannot be sent to a cluster; store it with "
                            "'setevsr convert --lora' and load that file instead.")  # fmt: skip
    denoiser.load()  # a Load LoRA of the same weights may have left its patches in them: this takes them out
    modules = (denoiser.module, vae.module, encoder.module if encoder is not None else None)
    with tempfile.TemporaryDirectory() as folder:
        save_preset(Path(folder), *modules, defaults=denoiser.defaults)
        restorer = ClusterRestorer(address, folder, dtype=STORED, check_cancel=compat.check_interrupt)
    with restorer:
        yield restorer
