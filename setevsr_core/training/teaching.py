"""A pack whose targets are another network's: what an upscaler makes of the degraded frames, instead of the truth.

Nobody can say what fine detail a badly degraded frame had. A network that is trained towards the truth alone learns the
mean of all that might have been, which is blurred; an adversary that teaches it to decide costs more time than all the
rest. A finished upscaler has decided, and always in the same way for the same frame, which a smaller network can learn
(knowledge distillation, Hinton et al. 2015). What the upscaler makes up anew in every frame is averaged along the
motion first, over the whole segment, so that the network that learns it is steadier than its teacher.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.upscalers import load_upscaler, upscale
from ..errors import CheckpointError, SettingsError
from ..video import steadying
from .data import PackedDataset
from .packing import shard_folder, steady_frames, store_shard, write_missing, write_plan


def teach(
    pack: str | Path,
    out_dir: str | Path,
    upscaler: str | Path,
    *,
    segments: int | None = None,
    steady: int = 0,
    workers: int = 1,
    device: str | None = None,
) -> Path:
    """Fill `out_dir` with the pack's segments (the first so many, rounded up to whole shards; all by default).

    steady: radius by which the degraded frames are averaged first, as in `PackSettings`; for a pack without it.
    Done once, it goes on where it was stopped. Errors: SettingsError for a folder of another pack, a pack that is
    steadied already or has targets of a teacher; InputError without a pack; CheckpointError for a file that is no
    upscaler, or one of another factor than the pack's.
    """
    source, out = PackedDataset(pack), Path(out_dir)
    settings = source.meta["settings"]
    if not 0 <= steady <= steadying.MAX_RADIUS:
        raise SettingsError(f"steady={steady} of a pack must lie in 0..{steadying.MAX_RADIUS}.")
    if steady and settings.get("steady"):
        raise SettingsError(f"'{pack}' is steadied already (by {settings['steady']}); leave steady out.")
    if "teacher" in source.meta:
        raise SettingsError(f"'{pack}' has targets of a teacher already; give the pack it was made from.")
    path = Path(upscaler)
    factor = _network(path, device).scale
    if factor != source.scale:
        raise CheckpointError(f"'{path}' enlarges by {factor}, the pack '{pack}' needs {source.scale}")
    plan = {**source.meta, "settings": {**settings, "steady": steady or settings.get("steady", 0)},
            "teacher": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
    out.mkdir(parents=True, exist_ok=True)
    write_plan(out, plan)
    rows = settings["shard_segments"]
    wanted = -(-min(segments or len(source), len(source)) // rows)
    work = partial(write_taught_shard, pack=source.folder, upscaler=path, radius=steady, device=device)
    write_missing(out, range(wanted), work, workers)
    return out


def write_taught_shard(out: Path, index: int, pack: Path, upscaler: Path, radius: int, device: str | None) -> None:
    """Shard `index` of `pack` with the upscaler's targets."""
    source, network = shard_folder(pack, index), _network(upscaler, device)
    small = np.stack([steady_frames(frames, radius) for frames in np.load(source / "lr.npy", mmap_mode="r")])
    records = json.loads((source / "meta.json").read_text(encoding="utf-8"))["segments"]
    store_shard(out, index, np.stack([_target(network, frames) for frames in small]), small, records)


def _target(network: Any, frames: np.ndarray) -> np.ndarray:
    """Degraded frames (T, h, w, 3) uint8 -> the network's, averaged over the segment, (T, H, W, 3) uint8."""
    large = upscale(network, torch.from_numpy(frames.astype(np.float32) / 255))
    return (steadying.steady(large, steadying.MAX_RADIUS) * 255).round().byte().numpy()


@lru_cache(maxsize=1)
def _network(path: Path, device: str | None) -> Any:
    return load_upscaler(path, device)
