"""Where the clips of a data set lie: folders of videos or of frame sequences, and the layouts of the published sets.

A layout is a table of glob patterns below the set's folder in which `*` stands for the clip: `GT/*` (Vid4/GT/calendar/
00000000.png), `*/truth` (SPMCS/car05_001/truth/0001.png). Training takes the truth alone.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, SettingsError
from .formats import VIDEO_ENDINGS, is_video
from .sequence import natural_key, pictures_in

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
    """A data set: its parts and the number of clips it was published with (0: any).

    union: the set is all of its parts together; else the first part that has clips is the set.
    """

    parts: tuple[Part, ...]
    clips: int = 0
    union: bool = False


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
    "REDS": Layout((_reds("train", without=REDS4_CLIPS), _reds("val", prefix="val_")), 266, union=True),
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
        if clips and not LAYOUTS[layout].union:
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


def find_truth(folder: Path, layout: str) -> dict[str, Path]:
    """Clip name -> its truth, a video or a folder of frames: what training takes of a set.

    Errors: as `find_clips`; SettingsError for a set without truth.
    """
    if layout in LAYOUTS and not any(part.truth for part in LAYOUTS[layout].parts):
        raise SettingsError(f"{layout} has no truth to train on, only degraded clips: it is for `setevsr evaluate`")
    return {clip.name: clip.truth for clip in find_clips(folder, layout, DEGRADE) if clip.truth is not None}


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
