"""Clips to measure on, loaded: where a set has no low-resolution frames, a clip is degraded with the training's own
second-order degradation; the seed belongs to the clip's place in the whole set.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, SettingsError, VideoError
from ..training.degradation import Degradation
from ..video.layouts import ClipFiles
from ..video.reading import VideoReader
from ..video.sequence import SequenceReader


@dataclass(frozen=True)
class Clip:
    """A loaded clip: lr (N, h, w, 3) and truth (N, h * scale, w * scale, 3) or None, float32 in 0..1.

    window: (top, left, height, width) of what was cut out of the full-size frames; full: their (height, width).
    """

    name: str
    lr: Tensor
    truth: Tensor | None
    window: tuple[int, int, int, int]
    full: tuple[int, int]


@dataclass(frozen=True)
class ClipLoader:
    """How clips are read: at native size unless `crop` (width, height) cuts out the centre; `frames` 0 takes all."""

    scale: int = 4
    frames: int = 0
    crop: tuple[int, int] | None = None
    seed: int = 1000

    def __post_init__(self) -> None:
        if self.scale < 1 or self.frames < 0 or self.seed < 0:
            raise SettingsError("scale must be 1 or more, frames and seed 0 or more")
        if self.crop is not None and min(self.crop) < self.scale:
            raise SettingsError(f"crop is {self.crop[0]}x{self.crop[1]}; both sides must be {self.scale} or more")

    def load(self, files: ClipFiles) -> Clip:
        """Errors: VideoError for what cannot be read, InputError where low resolution and truth do not fit."""
        truth = None if files.truth is None else read_frames(files.truth, self.frames)
        low = None if files.low is None else read_frames(files.low, self.frames)
        if truth is None and low is None:
            raise InputError(f"{files.name} has neither truth nor low-resolution frames")
        sides = (0, 0)
        if low is not None:
            sides = (low.shape[1] * self.scale, low.shape[2] * self.scale)
        if truth is not None:
            sides = (truth.shape[1], truth.shape[2])
        if truth is not None and low is not None:
            self._check_pair(files.name, truth, low)
        top, left, height, width = self._window(files.name, sides[0], sides[1])
        if truth is not None:
            truth = truth[:, top : top + height, left : left + width].clone()
        if low is not None:
            y, x, h, w = (value // self.scale for value in (top, left, height, width))
            low = low[:, y : y + h, x : x + w].clone()
        else:
            assert truth is not None
            pixels = (truth * 255).round().byte().numpy()
            low = torch.from_numpy(Degradation()(pixels, self.seed + files.index, self.scale)).float() / 255
        return Clip(files.name, low, truth, (top, left, height, width), sides)

    def _window(self, name: str, height: int, width: int) -> tuple[int, int, int, int]:
        """The centre, on the low-resolution grid: position and size are multiples of the scale."""
        wanted = (height, width) if self.crop is None else (min(self.crop[1], height), min(self.crop[0], width))
        h, w = (side // self.scale * self.scale for side in wanted)
        if not h or not w:
            raise InputError(f"{name} is {width}x{height}: too small for scale {self.scale}")
        top, left = ((full - part) // 2 // self.scale * self.scale for full, part in ((height, h), (width, w)))
        return (top, left, h, w) if self.crop is not None else (0, 0, h, w)

    def _check_pair(self, name: str, truth: Tensor, low: Tensor) -> None:
        expected = tuple(side // self.scale for side in truth.shape[1:3])
        if len(truth) != len(low):
            raise InputError(f"{name}: {len(low)} low-resolution frames, but {len(truth)} of the truth")
        if tuple(low.shape[1:3]) != expected:
            raise InputError(f"{name}: the low-resolution frames are {low.shape[2]}x{low.shape[1]}, the truth at scale "
                             f"{self.scale} asks for {expected[1]}x{expected[0]}")


def read_frames(path: Path, limit: int = 0) -> Tensor:
    """The first `limit` (0: all) frames (N, H, W, 3) of a video or of a folder of pictures, float32 in 0..1.

    Errors: VideoError naming the file.
    """
    with SequenceReader(path) if path.is_dir() else VideoReader(path) as reader:
        frames = list(itertools.islice(reader, limit or None))
    if not frames:
        raise VideoError(f"'{path}' holds no frames")
    return torch.stack(frames)
