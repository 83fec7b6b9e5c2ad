"""Packed training data: making it (`pack`) and drawing batches from it (`PackedDataset`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, SettingsError, require
from .drawing import PackSettings
from .packing import pack
from .sources import Source

__all__ = ["PackSettings", "PackedDataset", "Source", "pack"]


class PackedDataset:
    """The shards of a packed folder that are finished by now; arrays stay on disk and are read through memory maps."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        plan = self.folder / "meta.json"
        if not plan.is_file():
            raise InputError(f"'{folder}' is no packed training folder (no meta.json); make one with pack().")
        self.meta: dict = json.loads(plan.read_text(encoding="utf-8"))
        settings = self.meta["settings"]
        self.frames, self.size, self.scale = (int(settings[key]) for key in ("frames", "size", "scale"))
        self._shards: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._index: list[tuple[str, int]] = []
        self.take(sorted(path.name for path in self.folder.glob("shard_?????")))
        if not self._index:
            raise InputError(f"'{folder}' holds no finished shard yet; wait for the packing or run it again.")

    @property
    def shards(self) -> list[str]:
        """The names of the shards in use."""
        return list(self._shards)

    def take(self, shards: Sequence[str]) -> None:
        """Draw from these shards alone, whatever was packed since. Errors: InputError for one that is not there."""
        self._shards, self._index = {}, []
        for name in shards:
            path = self.folder / name
            if not path.is_dir():
                raise InputError(f"'{self.folder}' lacks {name}, on which this training began: pack it again.")
            hr = np.load(path / "hr.npy", mmap_mode="r")
            self._shards[name] = (hr, np.load(path / "lr.npy", mmap_mode="r"))
            self._index += [(name, row) for row in range(len(hr))]

    def __len__(self) -> int:
        return len(self._index)

    def segment(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Segment `index` whole: lr (T, h, w, 3) and hr (T, H, W, 3), uint8."""
        name, row = self._index[index]
        hr, lr = self._shards[name]
        return lr[row], hr[row]

    def sample(
        self,
        rng: np.random.Generator,
        batch: int,
        crop_hr: int | None = None,
        frames: int | None = None,
        flip: bool = True,
        reverse: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random batch: lr (B, T, crop/scale, crop/scale, 3) and hr (B, T, crop, crop, 3), uint8, aligned.

        `crop_hr` (a multiple of the scale) and `frames` cut shorter pieces at random places; `flip` mirrors left-right
        and top-down, `reverse` runs time backwards, each with probability 1/2. Raises SettingsError on sizes that do
        not fit.
        """
        crop = crop_hr or self.size
        length = frames or self.frames
        if crop % self.scale or crop > self.size or length > self.frames:
            raise SettingsError(
                f"crop_hr={crop}, frames={length} do not fit this pack: crop_hr must be a multiple of {self.scale} "
                f"up to {self.size}, frames at most {self.frames}"
            )
        small = crop // self.scale
        lr = np.empty((batch, length, small, small, 3), np.uint8)
        hr = np.empty((batch, length, crop, crop, 3), np.uint8)
        for item in range(batch):
            clip_lr, clip_hr = self.segment(int(rng.integers(len(self))))
            start = int(rng.integers(self.frames - length + 1))
            top, left = (int(v) for v in rng.integers(self.size // self.scale - small + 1, size=2))
            flip_x, flip_y, backwards = rng.random(3) < 0.5
            order = (
                slice(None, None, -1 if reverse and backwards else 1),
                slice(None, None, -1 if flip and flip_y else 1),
            )
            lr[item] = _cut(clip_lr, start, length, top, left, small)[order]
            hr[item] = _cut(clip_hr, start, length, top * self.scale, left * self.scale, crop)[order]
            if flip and flip_x:
                _mirror(lr[item])
                _mirror(hr[item])
        return lr, hr


def _cut(clip: np.ndarray, start: int, length: int, top: int, left: int, side: int) -> np.ndarray:
    return clip[start : start + length, top : top + side, left : left + side]


def _mirror(clip: np.ndarray) -> None:
    """Left-right, in place. By OpenCV: NumPy goes through a reversed row pixel by pixel."""
    cv2 = require("cv2", "opencv-python-headless", "drawing training data")
    for frame in clip:
        frame[:] = cv2.flip(frame, 1)
