"""Drawing training segments from clean material and packing them as memory-mapped arrays.

A packed folder holds `meta.json` and `shard_00000/`, `shard_00001/`, ... each with `hr.npy` (S, T, size, size, 3),
`lr.npy` (S, T, size/scale, size/scale, 3), both uint8 RGB, and its own `meta.json`. A shard depends only on the
settings and its index: any number of workers writes the same bytes, an interrupted packing goes on where it
stopped, and finished shards can be trained on while others are still being made.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ..errors import InputError, SettingsError, VideoError, require
from .degradation import Degradation, DegradationConfig
from .sources import (
    Source,
    crop_reduced,
    draw_path,
    film_photo,
    find_cuts,
    gradient_energy,
    list_material,
    read_photo,
    read_window,
)

log = logging.getLogger(__name__)

FORMAT = 1


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
    min_energy: float = 5.0
    flat_share: float = 0.08  # crops that are taken whatever their gradient energy
    tries: int = 8
    degradation: DegradationConfig = field(default_factory=DegradationConfig)

    def __post_init__(self) -> None:
        if self.segments < 1 or self.frames < 1 or self.shard_segments < 1:
            raise SettingsError("segments, frames and shard_segments of a pack must be 1 or more.")
        if self.scale < 1 or self.size % self.scale:
            raise SettingsError(f"size={self.size} of a pack must be a multiple of scale={self.scale}.")
        if not 0 <= self.photo_share <= 1 or not 0 <= self.flat_share <= 1:
            raise SettingsError("photo_share and flat_share of a pack must lie in 0..1.")
        if min(*self.reduction, *self.photo_reduction) < 1:
            raise SettingsError("reduction and photo_reduction of a pack must be 1 or more (clips are never enlarged).")


def pack(
    sources: Sequence[Source | str | Path],
    out_dir: str | Path,
    *,
    segments: int,
    frames: int = 5,
    size: int = 256,
    scale: int = 4,
    seed: int = 0,
    workers: int = 1,
    photo_share: float = 0.3,
    **more,
) -> Path:
    """Fill `out_dir` with `segments` pairs (rounded up to whole shards); further settings as in `PackSettings`.

    Raises SettingsError if the folder holds a pack of other settings, InputError if there is no material.
    """
    settings = PackSettings(segments, frames, size, scale, seed, photo_share, **more)
    videos, photos = list_material(sources)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    _write_plan(out, settings, sources, videos, photos)
    shards = math.ceil(segments / settings.shard_segments)
    missing = [index for index in range(shards) if not shard_folder(out, index).is_dir()]
    log.info("packing %d of %d shards into %s", len(missing), shards, out)
    if workers <= 1:
        for index in missing:
            write_shard(out, index, settings, videos, photos)
        return out
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_shard, out, index, settings, videos, photos) for index in missing]
        for job in as_completed(jobs):
            job.result()
    return out


def shard_folder(out: Path, index: int) -> Path:
    """Where shard `index` lies once it is complete."""
    return out / f"shard_{index:05d}"


def _write_plan(
    out: Path, settings: PackSettings, sources: Sequence[Source | str | Path], videos: list[Path], photos: list[Path]
) -> None:
    plan = {
        "format": FORMAT,
        "settings": asdict(settings),
        "sources": [
            {"folder": str(s.folder), "licence": s.licence} if isinstance(s, Source) else {"folder": str(s)}
            for s in sources
        ],
        "videos": [path.name for path in videos],
        "photos": [path.name for path in photos],
    }
    plan = json.loads(json.dumps(plan))  # tuples become lists, as they will read back
    path = out / "meta.json"
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        keep = {"segments": 0}  # a pack may be made longer later
        if {**old, "settings": {**old["settings"], **keep}} != {**plan, "settings": {**plan["settings"], **keep}}:
            raise SettingsError(f"'{out}' holds a pack of other settings or material; choose another folder.")
    part = path.with_name("meta.json.part")
    part.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    os.replace(part, path)


def write_shard(out: Path, index: int, settings: PackSettings, videos: list[Path], photos: list[Path]) -> None:
    """Draw, degrade and store shard `index`; the folder appears under its final name only when complete."""
    require("cv2", "opencv-python-headless", "packing training data").setNumThreads(1)
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, index]))
    clips, records = draw_shard(rng, index, settings, videos, photos)
    degrade = Degradation(settings.degradation)
    clean, small = [], []
    for clip, record in zip(clips, records, strict=True):
        record["degradation_seed"] = int(rng.integers(2**63))
        low = degrade(clip, record["degradation_seed"], settings.scale)
        small.append(low[-settings.frames :])
        clean.append(sharpen(clip[-settings.frames :], settings.sharpen_weight))
    folder = shard_folder(out, index)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    np.save(part / "hr.npy", np.stack(clean))
    np.save(part / "lr.npy", np.stack(small))
    (part / "meta.json").write_text(json.dumps({"shard": index, "segments": records}, indent=0), encoding="utf-8")
    os.replace(part, folder)


def draw_shard(
    rng: np.random.Generator, index: int, settings: PackSettings, videos: list[Path], photos: list[Path]
) -> tuple[list[np.ndarray], list[dict]]:
    """The clean clips of a shard, lead-in included, each (lead + T, size, size, 3), and a record of each."""
    count = settings.shard_segments
    share = settings.photo_share if videos and photos else float(not videos)
    from_photos = int(count * share + rng.random())
    clips: list[np.ndarray] = []
    records: list[dict] = []
    visit, failures = 0, 0
    while len(clips) < count:
        photo = len(clips) < from_photos
        material = photos if photo else videos
        # Visits walk through a fresh random order of the material each round, so that all of it is used evenly.
        visits = math.ceil(count / settings.crops_per_visit)
        path = _in_turn(material, settings.seed, index * visits + visit)
        visit += 1
        wanted = min(settings.crops_per_visit, (from_photos if photo else count) - len(clips))
        draw = _draw_from_photo if photo else _draw_from_video
        try:
            found = draw(rng, path, wanted, settings)
        except VideoError as error:
            log.warning("%s", error)
            found = []
        failures = 0 if found else failures + 1
        if failures > 2 * len(material):
            raise InputError(
                f"no segment of {settings.frames} frames and {settings.size} pixels can be cut from the sources; "
                "use longer or larger clips, or smaller settings."
            )
        for clip, record in found:
            clips.append(clip)
            records.append({"source": path.name, **record})
    return clips, records


def _in_turn(material: list[Path], seed: int, visit: int) -> Path:
    turn, place = divmod(visit, len(material))
    order = np.random.default_rng(np.random.SeedSequence([seed, turn, len(material)])).permutation(len(material))
    return material[order[place]]


def _draw_from_video(
    rng: np.random.Generator, path: Path, count: int, settings: PackSettings
) -> list[tuple[np.ndarray, dict]]:
    window = read_window(path, float(rng.random()), max(settings.window, settings.frames + settings.lead_in))
    cuts = find_cuts(window)
    found = []
    for _ in range(count):
        lead = int(rng.integers(settings.lead_in + 1))
        starts = [
            start
            for start in range(len(window) - settings.frames - lead + 1)
            if not any(start < cut < start + settings.frames + lead for cut in cuts)
        ]
        if not starts or min(window[0].shape[:2]) < settings.size:
            continue
        start = int(rng.choice(starts))
        height, width = window[0].shape[:2]

        def propose(start: int = start, lead: int = lead) -> tuple[int, int, int]:
            most = min(settings.reduction[1], min(height, width) / settings.size)
            side = int(settings.size * rng.uniform(min(settings.reduction[0], most), most))
            return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side

        middle = [window[start + lead + settings.frames // 2]]
        top, left, side = _best(rng, propose, lambda box: crop_reduced(middle, *box, settings.size)[0], settings)
        clip = crop_reduced(window[start : start + lead + settings.frames], top, left, side, settings.size)
        found.append((clip, {"start_in_window": start, "top": top, "left": left, "side": side}))
    return found


def _draw_from_photo(
    rng: np.random.Generator, path: Path, count: int, settings: PackSettings
) -> list[tuple[np.ndarray, dict]]:
    photo = read_photo(path)
    height, width = photo.shape[:2]
    if min(height, width) < settings.size:
        return []
    found = []
    for _ in range(count):
        motion = draw_path(rng, int(rng.integers(settings.lead_in + 1)) + settings.frames)

        def propose() -> tuple[int, int, int]:
            most = min(settings.photo_reduction[1], min(height, width) / settings.size)
            side = int(settings.size * rng.uniform(min(settings.photo_reduction[0], most), most))
            return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side

        top, left, side = _best(rng, propose, lambda box: crop_reduced([photo], *box, settings.size)[0], settings)
        centre = (left + side / 2, top + side / 2)
        clip = film_photo(photo, centre, side / settings.size, motion, settings.size)
        found.append((clip, {"top": top, "left": left, "side": side}))
    return found


def _best(rng: np.random.Generator, propose, look, settings: PackSettings) -> tuple[int, int, int]:
    """The first proposed box with enough gradient energy, else the liveliest of `tries`."""
    if rng.random() < settings.flat_share:
        return propose()
    best, most = None, -1.0
    for _ in range(settings.tries):
        box = propose()
        energy = gradient_energy(look(box))
        if energy >= settings.min_energy:
            return box
        if energy > most:
            best, most = box, energy
    assert best is not None
    return best


def sharpen(frames: np.ndarray, weight: float, threshold: float = 10.0, kernel: int = 51) -> np.ndarray:
    """Unsharp mask of (T, H, W, 3) uint8 as Real-ESRGAN sharpens its targets: only where detail exceeds `threshold`.

    `weight` 0 returns the frames as they are. The mask is blurred, so that sharpening fades in.
    """
    if weight == 0:
        return frames
    cv2 = require("cv2", "opencv-python-headless", "sharpening training targets")
    result = np.empty_like(frames)
    for index, frame in enumerate(frames.astype(np.float32)):
        residual = frame - cv2.GaussianBlur(frame, (kernel, kernel), 0)
        mask = cv2.GaussianBlur((np.abs(residual) > threshold).astype(np.float32), (kernel, kernel), 0)
        sharp = np.clip(frame + weight * residual, 0, 255)
        result[index] = np.rint(frame + mask * (sharp - frame))
    return result
