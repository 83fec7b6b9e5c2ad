"""Packing training segments, clean and degraded, as memory-mapped arrays.

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
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from ..errors import SettingsError, require
from ..video.steadying import steady
from .degradation import Degradation
from .drawing import PackSettings, draw_shard
from .sources import Material, Source, list_material

log = logging.getLogger(__name__)

FORMAT = 1


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
    device: str | None = None,
    without: Sequence[str] = (),
    **more,
) -> Path:
    """Fill `out_dir` with `segments` pairs (rounded up to whole shards); further settings as in `PackSettings`.

    device: as in `Degradation`; it is no setting of the pack, since it changes pixels by rounding only.
    without: names of clips or photographs in the sources that are left out.
    Raises SettingsError if the folder holds a pack of other settings, InputError if there is no material.
    """
    settings = PackSettings(segments, frames, size, scale, seed, photo_share, **more)
    videos, photos = list_material(sources, without)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    _write_plan(out, settings, sources, videos, photos)
    shards = math.ceil(segments / settings.shard_segments)
    missing = [index for index in range(shards) if not shard_folder(out, index).is_dir()]
    log.info("packing %d of %d shards into %s", len(missing), shards, out)
    if workers <= 1:
        for index in missing:
            write_shard(out, index, settings, videos, photos, device)
        return out
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_use_one_thread) as pool:
        jobs = [pool.submit(write_shard, out, index, settings, videos, photos, device) for index in missing]
        for job in as_completed(jobs):
            job.result()
    return out


def _use_one_thread() -> None:
    """The workers share the cores among themselves."""
    require("cv2", "opencv-python-headless", "packing training data").setNumThreads(1)


def shard_folder(out: Path, index: int) -> Path:
    """Where shard `index` lies once it is complete."""
    return out / f"shard_{index:05d}"


def _write_plan(
    out: Path, settings: PackSettings, sources: Sequence[Source | str | Path], videos: list[Material],
    photos: list[Material],
) -> None:
    plan = {
        "format": FORMAT,
        "settings": asdict(settings),
        "sources": [_note(source) for source in sources],
        "videos": [item.name for item in videos],
        "photos": [item.name for item in photos],
    }
    plan = json.loads(json.dumps(plan))  # tuples become lists, as they will read back
    path = out / "meta.json"
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if _comparable(old) != _comparable(plan):
            raise SettingsError(f"'{out}' holds a pack of other settings or material: remove it, or fill another "
                                "folder by `setevsr pack` and give training that one as --data")
    part = path.with_name("meta.json.part")
    part.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    os.replace(part, path)


def _comparable(plan: dict) -> dict:
    """A plan without its number of segments: a pack may be made longer later. Older ones do not know `steady`."""
    return {**plan, "settings": {"steady": 0, **plan["settings"], "segments": 0}}


def _note(source: Source | str | Path) -> dict[str, str]:
    source = source if isinstance(source, Source) else Source(Path(source))
    dataset = {"dataset": source.dataset} if source.dataset else {}
    return {"folder": str(source.folder), "licence": source.licence, **dataset}


def write_shard(out: Path, index: int, settings: PackSettings, videos: list[Material], photos: list[Material],
                device: str | None = None) -> None:
    """Draw, degrade and store shard `index`; the folder appears under its final name only when complete."""
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, index]))
    degrade = Degradation(settings.degradation, device)
    clean, small, records = [], [], []
    for clip, record in draw_shard(rng, index, settings, videos, photos):
        records.append(record)
        record["degradation_seed"] = int(rng.integers(2**63))
        low = degrade(clip, record["degradation_seed"], settings.scale)
        # Steadied with the frames that are dropped: inside a stream the first ones have neighbours before them.
        small.append(steady_frames(low, settings.steady)[-settings.frames :])
        clean.append(sharpen(clip[-settings.frames :], settings.sharpen_weight))
    folder = shard_folder(out, index)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    np.save(part / "hr.npy", np.stack(clean))
    np.save(part / "lr.npy", np.stack(small))
    (part / "meta.json").write_text(json.dumps({"shard": index, "segments": records}, indent=0), encoding="utf-8")
    os.replace(part, folder)


def steady_frames(frames: np.ndarray, radius: int) -> np.ndarray:
    """`video.steadying.steady` of (T, H, W, 3) uint8: what networks see where a preset steadies its input."""
    if not radius:
        return frames
    steadied = steady(torch.from_numpy(frames.astype(np.float32) / 255), radius)
    return (steadied * 255).round().byte().numpy()


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
