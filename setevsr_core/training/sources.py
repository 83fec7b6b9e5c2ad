"""Clean material for training: windows of real clips, and photographs turned into clips by camera motion.

All frames are uint8 RGB. "Reduction" is the number of source pixels per pixel of the training crop (1..): clips
that were compressed once are soft at full size and sharp when reduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, SettingsError, VideoError, require
from ..video.formats import is_hidden, is_video
from ..video.layouts import find_truth
from ..video.sequence import load_picture, numbered_pictures, pictures_in

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}
"""The pictures that count as material; more of them would change what packs are made of that exist already."""
_EXACT = 0x4 | 0x2000 | 0x40000
"""Flags of FFmpeg's scaler: bicubic chroma, all of it, rounded to nearest; the fast default darkens by one level."""

CUT_THRESHOLD = 28.0
"""Mean absolute change (0..255) between thumbnails of neighbouring frames that counts as a scene cut."""


@dataclass(frozen=True)
class Source:
    """A folder of videos and/or photographs, with a note on its rights for the training record.

    dataset: the published layout of its clips (`video.layouts.LAYOUTS`); "" takes what lies directly in it.
    """

    folder: Path
    licence: str = ""
    dataset: str = ""


class Material(NamedTuple):
    """A video, a folder of frames or a photograph, and the name it has in records."""

    name: str
    path: Path


def list_material(
    sources: Sequence[Source | str | Path], without: Sequence[str] = ()
) -> tuple[list[Material], list[Material]]:
    """All videos and all photographs of the sources, in the order of their names, but those named in `without`.

    A subfolder of numbered pictures (`000/00000000.png`, `street/frame_0001.png`) is a video too. A source with a
    `dataset` gives the truth of its clips, by their names. Errors: InputError if there is nothing, SettingsError for a
    name in `without` that is not there, and for a data set that is unknown or has no truth.
    """
    videos: list[Material] = []
    photos: list[Material] = []
    for source in sources:
        source = source if isinstance(source, Source) else Source(Path(source))
        if not source.folder.is_dir():
            raise InputError(f"the source folder '{source.folder}' does not exist; name a folder with videos or "
                             "pictures.")
        if source.dataset:
            videos += [Material(*clip) for clip in find_truth(source.folder, source.dataset).items()]
            continue
        for path in sorted(source.folder.iterdir()):
            if is_video(path) or path.is_dir() and numbered_pictures(path):
                videos.append(Material(path.name, path))
            elif path.suffix.lower() in PHOTO_SUFFIXES and not is_hidden(path):
                photos.append(Material(path.name, path))
    for name in without:
        if not any(name in _names(item) for item in (*videos, *photos)):
            raise SettingsError(f"there is no {name!r} in the source folders to leave out; give NAME or FOLDER/NAME.")
    videos, photos = ([item for item in items if not _names(item) & set(without)] for items in (videos, photos))
    if not videos and not photos:
        raise InputError("the source folders hold no videos (mp4, mkv, mov, y4m, ..., or folders of numbered pictures) "
                         "and no pictures (jpg, png); name the layout of a published set by --dataset.")
    return videos, photos


def _names(item: Material) -> set[str]:
    return {item.name, Path(item.name).stem, f"{item.path.parent.name}/{item.path.name}"}


def read_window(path: Path, position: float, length: int) -> list[np.ndarray]:
    """About `length` neighbouring frames (H, W, 3), from `position` (0..1 of the clip; the end is moved back).

    Clips without a stated length are read from their start. Returns fewer frames where the clip is shorter.
    """
    if path.is_dir():
        paths = pictures_in(path)
        start = int(max(0.0, position * (len(paths) - length)))
        return _of_one_size([read_photo(frame) for frame in paths[start : start + length]], path)
    av = require("av", "av", "reading training clips")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            rate, base = stream.average_rate or 25, stream.time_base
            seconds = float(stream.duration * base) if stream.duration else (container.duration or 0) / 1e6
            start = max(0.0, position * (seconds - (length + 1) / float(rate)))
            first = stream.start_time or 0
            wanted = first + int(start / base)
            if start > 0:
                container.seek(wanted, stream=stream)
            frames: list[np.ndarray] = []
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts < wanted:
                    continue
                frames.append(frame.to_ndarray(format="rgb24", interpolation=_EXACT))
                if len(frames) == length:
                    break
            return frames
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError(f"cannot read the training clip '{path}' ({error}); repair or remove it.") from error


def _of_one_size(frames: list[np.ndarray], path: Path) -> list[np.ndarray]:
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise VideoError(f"the pictures in '{path}' differ in size, so they are no frames of one video; give them a "
                         "folder of their own as photographs.")
    return frames


def find_cuts(frames: Sequence[np.ndarray]) -> list[int]:
    """Indices of frames that start a new shot, by the change of 32x18 thumbnails: good enough for hard cuts."""
    cv2 = require("cv2", "opencv-python-headless", "reading training clips")
    small = [cv2.resize(frame, (32, 18), interpolation=cv2.INTER_AREA).astype(np.float32) for frame in frames]
    return [i for i in range(1, len(small)) if np.abs(small[i] - small[i - 1]).mean() > CUT_THRESHOLD]


def gradient_energy(picture: np.ndarray) -> float:
    """Mean absolute step between neighbouring pixels of the luma (0..255); flat sky is near 0, foliage above 10."""
    luma = picture.astype(np.float32).mean(axis=-1)
    return float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 2


def crop_reduced(frames: Sequence[np.ndarray], top: int, left: int, side: int, size: int) -> np.ndarray:
    """The square (top, left, side) of every frame, reduced to (T, size, size, 3) by area averaging; side >= size."""
    cv2 = require("cv2", "opencv-python-headless", "preparing training crops")
    crops = [frame[top : top + side, left : left + side] for frame in frames]
    if side == size:
        return np.stack(crops)
    return np.stack([cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA) for crop in crops])


def read_photo(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB; VideoError if it is no picture."""
    return np.ascontiguousarray(load_picture(path, as_seen=True)[..., ::-1])


@dataclass(frozen=True)
class CameraPath:
    """Smooth motion over T frames: shifts in crop pixels, rotation in radians, zoom as a factor around 1."""

    shift: np.ndarray  # (T, 2) as x, y
    angle: np.ndarray  # (T,)
    zoom: np.ndarray  # (T,)


def draw_path(rng: np.random.Generator, length: int) -> CameraPath:
    """A pan with slight acceleration and hand shake, a slow zoom and a slow roll; every part may be almost still."""
    time = np.arange(length) - (length - 1) / 2
    speed = min(float(rng.exponential(1.8)), 8.0)
    heading = rng.uniform(0, 2 * math.pi)
    velocity = speed * np.array([math.cos(heading), math.sin(heading)])
    acceleration = rng.normal(0, 0.12, 2) * speed
    shift = time[:, None] * velocity + 0.5 * time[:, None] ** 2 * acceleration / max(1, length)
    shake = rng.exponential(0.35) * np.sin(time[:, None] * rng.uniform(0.5, 1.6, 2) + rng.uniform(0, 6.28, 2))
    angle = rng.uniform(-math.pi / 12, math.pi / 12) + time * rng.normal(0, 0.004)
    zoom = np.exp(time * rng.normal(0, 0.005))
    return CameraPath(shift + shake, angle, zoom)


def film_photo(
    photo: np.ndarray, centre: tuple[float, float], reduction: float, path: CameraPath, size: int
) -> np.ndarray:
    """Fly over `photo` (H, W, 3): (T, size, size, 3) with the crop centre (x, y) in photo pixels at rest.

    The photograph is first brought to twice the resolution of the crop (area average), warped there, and the
    result is averaged 2x2: no aliasing, and fine detail survives sub-pixel motion. Borders are mirrored.
    """
    cv2 = require("cv2", "opencv-python-headless", "preparing training crops")
    half = reduction * path.zoom.max() * (size * 0.5 * math.sqrt(2) + float(np.abs(path.shift).max()) + 4)
    left, top = (int(max(0, value - half)) for value in centre)
    right = int(min(photo.shape[1], centre[0] + half + 1))
    bottom = int(min(photo.shape[0], centre[1] + half + 1))
    region = photo[top:bottom, left:right]
    before = region.shape[:2]
    if reduction > 2:
        sides = (max(1, round(before[1] * 2 / reduction)), max(1, round(before[0] * 2 / reduction)))
        region = cv2.resize(region, sides, interpolation=cv2.INTER_AREA)
    ratio = np.array([region.shape[1] / before[1], region.shape[0] / before[0]])
    middle = (np.array(centre) - (left, top)) * ratio  # the crop centre in region pixels
    frames = []
    for shift, angle, zoom in zip(path.shift, path.angle, path.zoom, strict=True):
        step = reduction * zoom / 2  # photo pixels per pixel of the doubled crop
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = ratio[:, None] * turn * step  # doubled crop -> region
        offset = middle + ratio * shift * reduction - matrix @ np.full(2, size - 0.5) - 0.5
        warped = cv2.warpAffine(
            region,
            np.hstack([matrix, offset[:, None]]),
            (2 * size, 2 * size),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        frames.append(cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA))
    return np.stack(frames)
