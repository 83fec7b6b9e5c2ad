"""The settings of a restoration, checked once before anything expensive starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from .errors import SettingsError

DTYPES = ("float32", "float16", "bfloat16")
"""Number types of networks for the command line, as PyTorch calls them."""


@dataclass(frozen=True)
class RestoreSettings:
    """All that decides the result besides frames and weights.

    scale: 1..8, any real number. steps: 0..1000, 0 decodes the low-resolution latents without diffusion.
    seed: 0..2^64-1. strength: above 0 to 1; lower starts from less noise, takes fewer steps and stays closer to the
    input. sampler: ddpm, ddim, dpmpp_2m, unipc, lcm or tcd. length, overlap: frames restored together and shared with
    the next segment. cuts: None, "auto" (found while reading), or the frame indices at which a new scene begins.
    fusion: 0..1, weight of the decoder's skip features (1 as trained). colour: wavelet, adain, lab or none.
    steady: 0..4, frames on each side that every frame is averaged with along the motion before it is restored; 0 = off.
    steady_result: 0..4, the same with the restored frames of a segment, which takes flicker out of invented detail.
    tile, tile_overlap: latent pixels (8 times as many output pixels), 0 = no tiles; tile is a multiple of 8.
    """

    scale: float = 4.0
    steps: int = 50
    seed: int = 0
    strength: float = 1.0
    sampler: str = "ddpm"
    length: int = 5
    overlap: int = 2
    cuts: str | tuple[int, ...] | None = None
    fusion: float = 1.0
    colour: str = "wavelet"
    tile: int = 64
    tile_overlap: int = 16
    steady: int = 0
    steady_result: int = 0

    def __post_init__(self) -> None:
        from .sampling.samplers import CONSISTENCY_STEPS, SAMPLERS
        from .sampling.tiles import check_tiling
        from .video.colour import METHODS
        from .video.steadying import MAX_RADIUS

        if not isinstance(self.cuts, str) and self.cuts is not None:
            object.__setattr__(self, "cuts", _cut_indices(self.cuts))
        _number("scale", self.scale, 1, 8)
        _whole("steps", self.steps, 0, 1000)
        _whole("seed", self.seed, 0, 2**64 - 1)
        _number("strength", self.strength, 0, 1)
        if self.strength == 0:
            raise SettingsError("strength must be above 0; for no diffusion at all set steps to 0")
        _choice("sampler", self.sampler, SAMPLERS)
        if self.sampler in ("lcm", "tcd") and self.steps > CONSISTENCY_STEPS:
            raise SettingsError(f"steps must be at most {CONSISTENCY_STEPS} for {self.sampler}, got {self.steps}")
        _whole("length", self.length, 1, 1000)
        _whole("overlap", self.overlap, 0, self.length - 1, f"below the length of {self.length}, ")
        if isinstance(self.cuts, str):
            _choice("cuts", self.cuts, ("auto",))
        _number("fusion", self.fusion, 0, 1)
        _choice("colour", self.colour, METHODS)
        _whole("steady", self.steady, 0, MAX_RADIUS)
        _whole("steady_result", self.steady_result, 0, MAX_RADIUS)
        _whole("tile", self.tile, 0, 2**16)
        _whole("tile_overlap", self.tile_overlap, 0, 2**16)
        check_tiling(self.tile, self.tile_overlap)

    def in_tiles(self, tile: int) -> RestoreSettings:
        """The same with tiles of another size, which overlap by half at most."""
        return self if tile == self.tile else replace(self, tile=tile, tile_overlap=min(self.tile_overlap, tile // 2))


def resolve_settings(chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> RestoreSettings:
    """Settings from what the caller chose (None = not chosen), a preset's defaults, and this class's, in that order.

    An overlap that nobody chose is made smaller where the chosen segments or tiles are too small for the usual one.
    """
    known = {field.name for field in fields(RestoreSettings)}
    unknown = sorted(set(chosen) - known)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]!r}; settings are {', '.join(sorted(known))}")
    merged = {name: value for name, value in defaults.items() if name in known}
    given = {name: value for name, value in chosen.items() if value is not None}
    merged.update(given)
    for overlap, whole, room in (("overlap", "length", lambda length: length - 1),
                                 ("tile_overlap", "tile", lambda tile: tile // 2)):
        size, usual = given.get(whole), merged.get(overlap, getattr(RestoreSettings, overlap))
        if overlap not in given and isinstance(size, int) and isinstance(usual, int) and 0 < size <= usual:
            merged[overlap] = room(size)
    return RestoreSettings(**merged)


def _cut_indices(cuts: Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(cut) for cut in cuts}))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"cuts must be None, 'auto' or a list of frame indices, got {cuts!r}") from error


def _number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise SettingsError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")


def _whole(name: str, value: Any, low: int, high: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise SettingsError(f"{name} must be a whole number from {low} to {high}, {why}got {value!r}")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
