"""From widget values to settings of the core: "preset's own" entries become open choices."""

from __future__ import annotations

from typing import Any

from ..setevsr_core.errors import SettingsError
from .widgets import DECODER_ONLY, PRESETS_OWN, SCENE_CUTS


def sampling_choices(*, steps: int, sampler: str, strength: float) -> dict[str, Any]:
    """`steps`, `sampler` and `strength` for the core; None where the preset decides, steps 0 for the decoder alone."""
    return {
        "steps": 0 if sampler == DECODER_ONLY else steps or None,
        "sampler": None if sampler in (PRESETS_OWN, DECODER_ONLY) else sampler,
        "strength": strength or None,
    }


def cut_choice(scene_cuts: str) -> str | tuple[int, ...]:
    """`cuts` for the core: found while reading, or none at all. `SettingsError` for any other text, which a link may
    bring.
    """
    if scene_cuts not in SCENE_CUTS:
        raise SettingsError(f"scene_cuts must be one of {', '.join(SCENE_CUTS)}, got {scene_cuts!r}")
    return "auto" if scene_cuts == "auto" else ()
