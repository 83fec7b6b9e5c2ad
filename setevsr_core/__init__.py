"""SeTe-VSR: diffusion video super-resolution with semantic and temporal guidance, in plain PyTorch.

>>> from setevsr_core import Restorer
>>> restorer = Restorer.from_preset("nano")
>>> restored = restorer.restore(frames, scale=4)  # (N,H,W,3) 0..1 -> (N,4H,4W,3)

Names are imported at first use, so importing the package costs nothing and needs nothing but Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import checkpoints
    from .errors import (
        CheckpointError,
        InputError,
        MissingPackageError,
        SeTeVSRError,
        SettingsError,
        VideoError,
    )
    from .restorer import Restorer
    from .settings import RestoreSettings

_HOMES = {
    "Restorer": ".restorer",
    "RestoreSettings": ".settings",
    "SeTeVSRError": ".errors",
    "CheckpointError": ".errors",
    "InputError": ".errors",
    "SettingsError": ".errors",
    "VideoError": ".errors",
    "MissingPackageError": ".errors",
}

__all__ = [
    "CheckpointError",
    "InputError",
    "MissingPackageError",
    "RestoreSettings",
    "Restorer",
    "SeTeVSRError",
    "SettingsError",
    "VideoError",
    "__version__",
    "checkpoints",
]


def __getattr__(name: str) -> Any:
    if name == "checkpoints":
        return importlib.import_module(".checkpoints", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
