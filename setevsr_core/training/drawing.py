"""Drawing clean training clips: which material, where in time, which square, how much reduced."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError, SettingsError, VideoError
from ..video.steadying import MAX_RADIUS
from .degradation import DegradationConfig
from .sources import (
    Material,
    crop_reduced,
    draw_path,
    film_photo,
    find_cuts,
    gradient_energy,
    read_photo,
    read_window,
)

log = logging.getLogger(__name__)

Box = tuple[int, int, int]  # top, left, side in source pixels
Found = list[tuple[np.ndarray, dict]]  # clips (lead + T, size, size, 3) uint8, each with a record of its origin


@dataclass(frozen=True)
class PackSettings:
    """What a pack is made of. Lengths are frames, sizes clean pixels, shares 0..1."""

    segments: int
    frames: int = 5
    size: int = 256
    scale: int = 4
    seed: int = 0
    photo_share: float = 0.3
    shard_segments: int = 20
    crops_per_visit: int = 5
    window: int = 24
    reduction: tuple[float, float] = (1.0, 2.5)  # clips: source pixels per crop pixel
    photo_reduction: tuple[float, float] = (1.3, 4.0)
    lead_in: int = 4  # up to so many frames are degraded first and dropped: real segments start inside a stream
    sharpen_weight: float = 0.5  # unsharp mask of the target; 0 = off
    steady: int = 0  # radius by which degraded frames are averaged along the motion, as at restoring; 0 = off
    min_energy: float = 5.0
    flat_share: float = 0.08  # crops that are taken whatever their gradient energy
    tries: int = 8
    degradation: DegradationConfig = field(default_factory=DegradationConfig)

    def __post_init__(self) -> None:
        if self.segments < 1 or self.frames < 1 or self.shard_segments < 1:
            raise SettingsError("segments, frames and shard_segments of a pack must be 1 or more.")
        if self.scale < 1 or self.size % self.scale:
            raise SettingsError(f"size={self.size} of a pack must be a multiple of scale={self.scale}.")
        if not 0 <= self.steady <= MAX_RADIUS:
            raise SettingsError(f"steady={self.steady} of a pack must lie in 0..{MAX_RADIUS}.")
        if not 0 <= self.photo_share <= 1 or not 0 <= self.flat_share <= 1:
            raise SettingsError("photo_share and flat_share of a pack must lie in 0..1.")
        if min(*self.reduction, *self.photo_reduction) < 1:
            raise SettingsError("reduction and photo_reduction of a pack must be 1 or more (clips are never enlarged).")


def draw_shard(
    rng: np.random.Generator, index: int, settings: PackSettings, videos: list[Material], photos: list[Material]
) -> Found:
    """The clean clips of shard `index`, photographs first. InputError if the material yields none."""
    count = settings.shard_segments
    share = settings.photo_share if videos and photos else float(not videos)
    from_photos = int(count * share + rng.random())
    visits = math.ceil(count / settings.crops_per_visit)
    found: Found = []
    visit = failures = 0
    while len(found) < count:
        photo = len(found) < from_photos
        material = photos if photo else videos
        name, path = _in_turn(material, settings.seed, index * visits + visit)
        visit += 1
        wanted = min(settings.crops_per_visit, (from_photos if photo else count) - len(found))
        try:
            more = (_draw_from_photo if photo else _draw_from_video)(rng, path, wanted, settings)
        except VideoError as error:
            log.warning("%s", error)
            more = []
        failures = 0 if more else failures + 1
        if failures > 2 * len(material):
            raise InputError(
                f"no segment of {settings.frames} frames and {settings.size} pixels can be cut from the sources; "
                "use longer or larger clips, or smaller settings"
            )
        found += [(clip, {"source": name, **record}) for clip, record in more]
    return found


def _in_turn(material: list[Material], seed: int, visit: int) -> Material:
    """Visits go through the material in a fresh random order each round, so that all of it is used evenly."""
    turn, place = divmod(visit, len(material))
    order = np.random.default_rng(np.random.SeedSequence([seed, turn, len(material)])).permutation(len(material))
    return material[order[place]]


def _draw_from_video(rng: np.random.Generator, path: Path, count: int, settings: PackSettings) -> Found:
    window = read_window(path, float(rng.random()), max(settings.window, settings.frames + settings.lead_in))
    if not window or min(window[0].shape[:2]) < settings.size:
        return []
    cuts = find_cuts(window)
    found: Found = []
    for _ in range(count):
        lead = int(rng.integers(settings.lead_in + 1))
        length = lead + settings.frames
        starts = [
            start for start in range(len(window) - length + 1) if not any(start < cut < start + length for cut in cuts)
        ]
        if not starts:
            continue
        start = int(rng.choice(starts))
        middle = window[start + lead + settings.frames // 2]
        top, left, side = choose_box(rng, middle, settings.reduction, settings)
        clip = crop_reduced(window[start : start + length], top, left, side, settings.size)
        found.append((clip, {"start_in_window": start, "top": top, "left": left, "side": side}))
    return found


def _draw_from_photo(rng: np.random.Generator, path: Path, count: int, settings: PackSettings) -> Found:
    photo = read_photo(path)
    if min(photo.shape[:2]) < settings.size:
        return []
    found: Found = []
    for _ in range(count):
        motion = draw_path(rng, int(rng.integers(settings.lead_in + 1)) + settings.frames)
        top, left, side = choose_box(rng, photo, settings.photo_reduction, settings)
        centre = (left + side / 2, top + side / 2)
        clip = film_photo(photo, centre, side / settings.size, motion, settings.size)
        found.append((clip, {"top": top, "left": left, "side": side}))
    return found


def choose_box(
    rng: np.random.Generator, picture: np.ndarray, reduction: tuple[float, float], settings: PackSettings
) -> Box:
    """A random square of `size` times a random reduction: the first of `tries` whose reduced crop has enough gradient
    energy, else the liveliest of them. A share of `flat_share` is taken unseen, so that skies occur too.
    """
    if rng.random() < settings.flat_share:
        return _random_box(rng, picture, reduction, settings.size)
    best, most = (0, 0, settings.size), -1.0
    for _ in range(settings.tries):
        top, left, side = box = _random_box(rng, picture, reduction, settings.size)
        energy = gradient_energy(crop_reduced([picture], top, left, side, settings.size)[0])
        if energy >= settings.min_energy:
            return box
        if energy > most:
            best, most = box, energy
    return best


def _random_box(rng: np.random.Generator, picture: np.ndarray, reduction: tuple[float, float], size: int) -> Box:
    height, width = picture.shape[:2]
    most = min(reduction[1], min(height, width) / size)
    side = int(size * rng.uniform(min(reduction[0], most), most))
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side
