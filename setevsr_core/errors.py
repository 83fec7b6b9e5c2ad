"""Every error this package raises on purpose: one sentence that names the thing and the remedy."""

from __future__ import annotations


class SeTeVSRError(Exception):
    """Base class; catching it catches all errors that are meant for the user."""


class CheckpointError(SeTeVSRError):
    """A weight file is missing, damaged, or not what was expected."""


class InputError(SeTeVSRError):
    """Frames, latents or semantics that cannot be processed (empty, NaN, mismatching)."""


class SettingsError(SeTeVSRError, ValueError):
    """An argument is outside its range."""


class VideoError(SeTeVSRError):
    """A video file cannot be read or written."""


class TrainingError(SeTeVSRError):
    """Training cannot go on: its losses are no numbers any more."""


class ClusterError(SeTeVSRError):
    """A cluster cannot be reached, or its workers failed."""


class MissingPackageError(SeTeVSRError, ImportError):
    """An optional package is needed for this step and is not installed."""


def require(module: str, package: str | None = None, purpose: str = "this step"):
    """Import `module` at use; `MissingPackageError` names the pip package and the purpose if it is absent."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise MissingPackageError(
            f"{purpose} needs the Python package '{name}', which could not be imported ({error}); "
            f"install it into ComfyUI's Python with: pip install {name}"
        ) from error
