"""Clips to measure on: folders of videos or of frame sequences, and the published layouts of the usual test sets.

A layout is a table of glob patterns below the set's folder in which `*` stands for the clip: `GT/*` (Vid4/GT/calendar/
00000000.png), `*/truth` (SPMCS/car05_001/truth/0001.png). Where there is no low-resolution folder, the clip is
degraded with the training's own second-order degradation; the seed belongs to the clip's place in the whole set.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, SettingsError, VideoError
from ..training.degradation import Degradation
from ..video.formats import VIDEO_ENDINGS, is_video
from ..video.reading import VideoReader
from ..video.sequence import SequenceReader, natural_key, pictures_in

logger = logging.getLogger(__name__)

DEGRADE = "degrade"
"""Name of the low-resolution version that is made here instead of read."""

REDS4_CLIPS = ("000", "011", "015", "020")


@dataclass(frozen=True)
class Part:
    """Clips under one folder rule. truth, low: patterns, the first that matches anything counts."""

    truth: tuple[str, ...] = ()
    low: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    prefix: str = ""


@dataclass(frozen=True)
class Layout:
    """A data set: its parts and the number of clips it was published with (0: any)."""

    parts: tuple[Part, ...]
    clips: int = 0


def _standard(*more_truth: str, low: Mapping[str, tuple[str, ...]] | None = None) -> Part:
    """GT beside BIx4, BDx4 and LQ, as BasicSR and the diffusion papers lay test sets out."""
    shared = {"BI": ("BIx4/*",), "BD": ("BDx4/*",), "LQ": ("LQ/*", "lq/*")}
    merged = {name: shared.get(name, ()) + (low or {}).get(name, ()) for name in shared}
    return Part(("GT/*", "gt/*", "HR/*", *more_truth), merged)


def _reds(split: str, **rules: Any) -> Part:
    """The official archives nest the split twice (train/train_sharp/000); BasicSR's preparation does not."""
    folders = (f"{split}_sharp", f"{split}/{split}_sharp")
    low = tuple(f"{folder}_bicubic/X4/*" for folder in folders)
    return Part(tuple(f"{folder}/*" for folder in folders), {"BI": low}, **rules)


LAYOUTS: dict[str, Layout] = {
    "folder": Layout((_standard("truth/*", "*/truth", "*"),)),
    "REDS": Layout((_reds("train", without=REDS4_CLIPS), _reds("val", prefix="val_")), 266),
    "REDS4": Layout((_reds("train", only=REDS4_CLIPS), _standard("*")), 4),
    "SPMCS": Layout((_standard("*/truth", low={"BI": ("*/input4",)}),), 30),
    "UDM10": Layout((_standard("*/truth", low={"BD": ("*/blur4",)}),), 10),
    "Vid4": Layout((_standard("*/truth", "*"),), 4),
    "VideoLQ": Layout((Part(low={"LQ": ("Input/*", "LQ/*", "*")}),), 50),
}


@dataclass(frozen=True)
class ClipFiles:
    """Where a clip lies. truth, low: a video or a folder of frames; version: the name of the low-resolution frames, BI,
    BD, LQ, or degrade where they are made (then `low` is None); index: its place in the whole set.
    """

    name: str
    truth: Path | None
    low: Path | None
    version: str
    index: int

    def sources(self) -> list[Path]:
        """Every file that its frames are read from."""
        parts = [path for path in (self.truth, self.low) if path is not None]
        return [file for path in parts for file in (pictures_in(path) if path.is_dir() else [path])]


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


Found = tuple[Path | None, Path | None, str]
"""Truth, low-resolution frames and the name of their version."""


def find_clips(folder: Path, layout: str = "folder", low: str = "auto") -> list[ClipFiles]:
    """The clips of a data set, sorted by name.

    low: "auto" (a ready-made low-resolution version where there is exactly one, else degraded), "degrade", or the
    name of one: BI, BD, LQ. Errors: SettingsError for unknown names, InputError where nothing is found.
    """
    if layout not in LAYOUTS:
        raise SettingsError(f"unknown data set {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        raise InputError(f"the data folder '{folder}' does not exist")
    found: dict[str, Found] = {}
    for part in LAYOUTS[layout].parts:
        clips = _find_part(folder, part, low)
        if clips and layout != "REDS":  # only REDS is the union of its parts
            found = clips
            break
        found.update(clips)
    if not found:
        tried = sorted({pattern for part in LAYOUTS[layout].parts for pattern in (*part.truth, *itertools.chain(
            *part.low.values()))})
        raise InputError(f"'{folder}' holds no clips in the layout {layout} (looked for {', '.join(tried)})")
    expected = LAYOUTS[layout].clips
    if expected and len(found) != expected:
        logger.warning("'%s' holds %d clips; %s was published with %d", folder, len(found), layout, expected)
    names = sorted(found, key=natural_key)
    return [ClipFiles(name, *found[name], index) for index, name in enumerate(names)]


def _find_part(folder: Path, part: Part, low: str) -> dict[str, Found]:
    def wanted(name: str) -> bool:
        return (not part.only or name in part.only) and name not in part.without

    truths = {name: path for name, path in _first_match(folder, part.truth).items() if wanted(name)}
    versions = {kind: clips for kind, patterns in part.low.items() if (clips := _first_match(folder, patterns))}
    if low == "auto" and truths and len(versions) > 1:
        raise SettingsError(f"'{folder}' has several low-resolution versions ({', '.join(versions)}); choose one "
                            f"with --lr, or --lr {DEGRADE}")
    if low not in ("auto", DEGRADE) and low not in versions and truths:
        raise SettingsError(f"'{folder}' has no low-resolution version {low!r}; it has "
                            f"{', '.join(versions) or 'none'}, and --lr {DEGRADE} makes one")
    version = DEGRADE
    if versions and low != DEGRADE:
        version = low if low in versions else next(iter(versions))
    chosen = versions.get(version, {})
    names = truths or {name: path for name, path in chosen.items() if wanted(name)}
    missing = [name for name in names if chosen and name not in chosen]
    if missing:
        raise InputError(f"clip {missing[0]!r} of '{folder}' has no low-resolution frames of that version")
    return {part.prefix + name: (truths.get(name), chosen.get(name), version) for name in names}


def _first_match(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """Clip name -> path of the first pattern that matches any sequence."""
    for pattern in patterns:
        depth = pattern.split("/").index("*")
        paths = [path for path in folder.glob(pattern) if is_sequence(path)]
        if paths:
            return {_stem(path.relative_to(folder).parts[depth]): path for path in paths}
    return {}


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() in VIDEO_ENDINGS else name


def is_sequence(path: Path) -> bool:
    """A video file, or a folder with pictures directly in it."""
    if path.is_dir():
        return bool(pictures_in(path))
    return is_video(path)


def read_frames(path: Path, limit: int = 0) -> Tensor:
    """The first `limit` (0: all) frames (N, H, W, 3) of a video or of a folder of pictures, float32 in 0..1.

    Errors: VideoError naming the file.
    """
    with SequenceReader(path) if path.is_dir() else VideoReader(path) as reader:
        frames = list(itertools.islice(reader, limit or None))
    if not frames:
        raise VideoError(f"'{path}' holds no frames")
    return torch.stack(frames)
