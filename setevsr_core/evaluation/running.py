"""The evaluation itself: clip by clip, method by method, resumable, in the memory of one clip."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..video.layouts import ClipFiles
from . import pictures
from .alignment import MAX_SHIFT, Shift, check_alignment, estimate_shift
from .datasets import Clip, ClipLoader
from .measures import Instruments
from .methods import Method, enlarge, stamp
from .records import TRUTH, Records, Row

Report = Callable[[str, str], None]
"""Called with (clip, method) after each row, measured or found."""


@dataclass(frozen=True)
class PictureSettings:
    """crop: (width, height) of the compared crop; at: its upper left corner, None picks the place with most detail."""

    crop: tuple[int, int] = (96, 72)
    at: tuple[int, int] | None = None
    direction: str = "row"
    zoom: int = 4


@dataclass(frozen=True)
class Evaluation:
    """Everything an evaluation is made of; `out` is its folder."""

    clips: Sequence[ClipFiles]
    methods: Sequence[Method]
    loader: ClipLoader
    instruments: Instruments
    records: Records
    out: Path
    max_shift: float = MAX_SHIFT
    look: PictureSettings = PictureSettings()

    def run(self, report: Report = lambda clip, method: None) -> list[Row]:
        """Measures what is not measured yet and draws the pictures; the rows of all clips, in order.

        Errors: InputError naming clip and method where a result is not aligned with the truth; what was measured
        before stays on the disk.
        """
        rows: list[Row] = []
        for files in self.clips:
            rows += self._clip(files, report)
            self._draw(files.name)
        return rows

    def _clip(self, files: ClipFiles, report: Report) -> list[Row]:
        rows, data, sources = [], _Lazy(self.loader, files), files.sources()
        for method in [*self.methods, None]:
            if method is None and files.truth is None:
                continue
            name = TRUTH if method is None else method.name
            fingerprint = stamp(sources, *([] if method is None else [method.fingerprint(files.name)]))
            row = self._known(files, name, fingerprint)
            if row is None:
                row = self._measure(data, name, method, fingerprint)
                self.records.add(row)
            rows.append(row)
            report(files.name, name)
        return rows

    def _known(self, files: ClipFiles, name: str, fingerprint: str) -> Row | None:
        there = self.records.rows.get((files.name, name))
        if there is None or not all(path.exists() for path in self._parts(files.name, name)):
            return None
        wanted = self.instruments.expected(files.truth is not None, name == TRUTH, there.frames)
        return self.records.find(files.name, name, fingerprint, wanted)

    def _measure(self, data: _Lazy, name: str, method: Method | None, fingerprint: str) -> Row:
        clip, reference = data.get(), data.reference()
        if method is not None:
            method.prepare()
        started = time.perf_counter()
        result = reference if method is None else method(clip)
        seconds = (time.perf_counter() - started) / len(clip.lr)
        shift = None
        if method is not None:
            where = f"{clip.name} of {name}"
            if not bool(result.isfinite().all()):
                raise InputError(f"{where}: the result holds values that are no numbers")
            found = check_alignment(result, reference, where, scale=self.loader.scale, max_shift=self.max_shift,
                                    own=data.own_shift())
            shift = (found.x, found.y, found.error)
        wanted = self.instruments.expected(clip.truth is not None, method is None, len(clip.lr))
        figures = self.instruments.measure(wanted, result, reference)
        self._keep(clip.name, name, result, reference)
        return Row(clip.name, name, fingerprint, len(clip.lr), (result.shape[1], result.shape[2]), seconds, shift,
                   figures)

    def _keep(self, clip: str, name: str, result: Tensor, reference: Tensor) -> None:
        """The pixels that the pictures of this clip will need, so that a resumed run need not restore it again."""
        middle = len(result) // 2
        size = (self.look.crop[1], self.look.crop[0])
        top, left, height, width = pictures.lively_window(reference[middle], size)
        if self.look.at is not None:
            top, left = (min(at, side - part) for at, side, part in zip(
                self.look.at[::-1], reference.shape[1:3], (height, width), strict=True))
        crop, line = self._parts(clip, name)
        pictures.save_png(crop, result[middle, top : top + height, left : left + width])
        centre = (top + height / 2) / result.shape[1], (left + width / 2) / result.shape[2]
        position = centre[0] if self.look.direction == "row" else centre[1]
        pictures.save_png(line, pictures.profile(result, self.look.direction, position))

    def _parts(self, clip: str, name: str) -> tuple[Path, Path]:
        folder = self.out / "parts" / slug(clip)
        return folder / f"{slug(name)}_crop.png", folder / f"{slug(name)}_{self.look.direction}.png"

    def _draw(self, clip: str) -> None:
        names = [*(method.name for method in self.methods), TRUTH]
        parts = {name: self._parts(clip, name) for name in names}
        there = {name: paths for name, paths in parts.items() if all(path.exists() for path in paths)}
        crops = {name: pictures.load_png(crop) for name, (crop, _) in there.items()}
        lines = {name: pictures.load_png(line) for name, (_, line) in there.items()}
        folder = self.out / "pictures"
        pictures.save_png(folder / f"{slug(clip)}_crop.png", pictures.crop_comparison(crops, self.look.zoom))
        profile = pictures.temporal_profile(lines, self.look.direction)
        pictures.save_png(folder / f"{slug(clip)}_profile.png", profile)


class _Lazy:
    """A clip that is read when the first method asks for it."""

    def __init__(self, loader: ClipLoader, files: ClipFiles) -> None:
        self._loader, self._files = loader, files
        self._clip: Clip | None = None
        self._reference: Tensor | None = None
        self._own: Shift | None = None

    def get(self) -> Clip:
        if self._clip is None:
            self._clip = self._loader.load(self._files)
        return self._clip

    def reference(self) -> Tensor:
        """The truth, or where there is none the enlarged input: place and motion are taken from it."""
        if self._reference is None:
            clip = self.get()
            self._reference = enlarge(clip.lr, self._loader.scale) if clip.truth is None else clip.truth
        return self._reference

    def own_shift(self) -> Shift:
        """The shift of the enlarged input against the reference."""
        if self._own is None:
            enlarged = enlarge(self.get().lr, self._loader.scale)
            self._own = estimate_shift(enlarged, self.reference(), scale=self._loader.scale)
        return self._own


def slug(name: str) -> str:
    """A file name for any name; different names stay different."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_.") or "unnamed"
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
