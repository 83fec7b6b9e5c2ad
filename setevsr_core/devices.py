"""Which device to compute on: the automatic choice, and whether a named one is there."""

from __future__ import annotations

import torch

from .errors import SettingsError


def automatic_device() -> torch.device:
    """CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device called `name` ("cpu", "cuda:1", ...), the automatic one for None.

    Errors: SettingsError for a name that PyTorch does not know, and for a device that does not compute here.
    """
    if name is None:
        return automatic_device()
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise SettingsError(f"device is '{name}'; give cpu, cuda, cuda:0 or mps") from error
    try:
        torch.zeros(1, device=device).item()  # every kind of device says in its own way that it is not there
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")  # the rest may fill a page
        raise SettingsError(f"device is '{name}', which cannot compute here ({reason or type(error).__name__}); "
                            "leave it out or give cpu") from error
    return device
