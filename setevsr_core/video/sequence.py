"""Folders of numbered pictures as videos: read in natural order, written as a whole or not at all."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, SettingsError, VideoError, require
from .durable import sync_file, sync_folder
from .formats import is_hidden
from .locking import LockFile
from .yuv import ColourTags, rgb_to_frame

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".exr", ".webp", ".bmp")
WRITABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NUMBER = re.compile(r"%0?\d*d")


def is_pattern(path: Path) -> bool:
    """True for a name like `frames/%06d.png`, which stands for one file a frame."""
    return path.suffix.lower() in PICTURES and len(_NUMBER.findall(path.name)) == 1


def pictures_in(folder: Path) -> list[Path]:
    """The picture files directly in `folder` but for hidden ones, 2 before 10."""
    found = [
        path for path in folder.iterdir()
        if path.suffix.lower() in PICTURES and not is_hidden(path) and path.is_file()
    ]  # fmt: skip
    return sorted(found, key=lambda path: natural_key(path.name))


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, 2 before 10; [] unless there are two or more, named alike but for their numbers."""
    found = pictures_in(folder)
    names = {tuple(natural_key(path.stem)[::2]) for path in found}
    return found if len(found) > 1 and len(names) == 1 else []


def natural_key(name: str) -> list[int | str]:
    """Sorts 2.png before 10.png."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


class SequenceReader:
    """Iterates the pictures of a folder as (H,W,3) float32 in 0..1, (H,W,4) with `alpha` where the first one has it.

    8 and 16 bit files map their whole range to 0..1; OpenEXR is clipped to it. `start` and `duration` in seconds at
    `frame_rate`. `unkept`: in words, what a written copy of the frames cannot keep.
    Errors: VideoError naming the folder or the picture.
    """

    def __init__(
        self,
        folder: Path,
        frame_rate: Fraction = Fraction(24),
        start: float = 0.0,
        duration: float | None = None,
        alpha: bool = False,
    ) -> None:
        if not (0 <= start < math.inf and 0 <= (duration or 0) < math.inf):
            raise SettingsError(f"start is {start} and duration {duration}; both must be 0 or more seconds")
        if frame_rate <= 0:
            raise SettingsError(f"the frame rate of '{folder}' is {frame_rate}; --fps must be more than 0")
        self.name = str(folder)
        self.frame_rate = frame_rate
        first = round(Fraction(start) * frame_rate)
        count = round(Fraction(duration) * frame_rate) if duration else None
        self._paths = pictures_in(folder)[first : None if count is None else first + count]
        if not self._paths:
            raise VideoError(
                f"'{folder}' holds no pictures in the chosen part; give a folder with {', '.join(PICTURES)}"
            )
        picture = load_picture(self._paths[0])
        self.size: tuple[int, int] = (picture.shape[0], picture.shape[1])
        self.alpha = alpha and picture.ndim == 3 and picture.shape[2] == 4
        transparent = not alpha and bool(_to_rgb(picture, alpha=True)[..., 3].min() < 1)
        self.unkept: list[str] = ["transparency"] if transparent else []
        self.bit_depth = 8 if picture.dtype == np.uint8 else 16
        self.identity = self._identify()

    def _identify(self) -> str:
        digest = hashlib.sha256(f"{self.frame_rate} {self.size}".encode())
        for path in self._paths:
            digest.update(f"{path.name} {path.stat().st_size}".encode())
        for path in (self._paths[0], self._paths[-1]):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def expected_frames(self) -> int:
        return len(self)

    def __iter__(self) -> Iterator[Tensor]:
        for path in self._paths:
            picture = load_picture(path)
            if picture.shape[:2] != self.size:
                raise VideoError(
                    f"'{path}' is {picture.shape[1]}x{picture.shape[0]}, the first picture "
                    f"{self.size[1]}x{self.size[0]}; all need one size"
                )
            yield _to_rgb(picture, self.alpha)

    def __enter__(self) -> SequenceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class SequenceWriter:
    """Writes one picture a frame under a pattern like `frames/%06d.png`, counting from 1; a context manager.

    The folder must be new or empty: it gets its name when all pictures are there, and until then no second writer may
    have it. `depth` above 8 gives 16 bit PNG and TIFF. `quality`: of JPEG, 1..100 (None: 95). Errors: VideoError,
    SettingsError.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], *, depth: int = 8, alpha: bool = False, quality: float | None = None
    ) -> None:
        self.path, self.size, self.num_frames = path, size, 0
        ending = path.suffix.lower()
        if ending not in WRITABLE:
            raise VideoError(f"pictures cannot be written as {ending}; choose one of {', '.join(WRITABLE)}")
        jpeg = ending in (".jpg", ".jpeg")
        if alpha and jpeg:
            raise SettingsError(f"'{path}' cannot keep transparency; write .png or .tiff")
        if jpeg and quality is not None and not 1 <= quality <= 100:
            raise SettingsError(f"quality is {quality:g}; for JPEG it is 1 to 100 (best)")
        self._jpeg_quality = 95 if quality is None else round(quality)
        folder = path.parent
        if not folder.parent.is_dir():
            raise VideoError(
                f"'{path}' cannot be written: the folder '{folder.parent}' does not exist; create it first"
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise VideoError(f"'{folder}' is not empty; choose a new folder for the pictures")
        deep = depth > 8 and not jpeg
        self.pixel_format = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48be"}.get(
            (deep, alpha), "rgba64be"
        )
        self._channels = 4 if alpha else 3
        self._part = folder.with_name(folder.name + ".part")
        self._lock: LockFile | None = None
        try:
            self._lock = LockFile(folder.with_name(folder.name + ".part.lock"))
            shutil.rmtree(self._part, ignore_errors=True)  # what a killed run has left
            self._part.mkdir()
        except OSError as error:
            self.abort()
            raise VideoError(f"'{folder}' cannot be written: {error.strerror}") from error

    def prepare(self, picture: Tensor) -> Any:
        """One frame (H,W,C) in 0..1 as the picture files will hold it."""
        if tuple(picture.shape) != (*self.size, self._channels):
            raise InputError(f"'{self.path}' takes frames {(*self.size, self._channels)}, got {tuple(picture.shape)}")
        return rgb_to_frame(picture, self.pixel_format, ColourTags.for_size(*self.size))

    def add(self, frame: Any, time: Fraction | None = None) -> None:
        """Writes a prepared frame as the next picture; pictures have no times."""
        cv2 = require("cv2", "opencv-python-headless", "writing pictures")
        pixels = frame.to_ndarray()
        order = [2, 1, 0, 3][: pixels.shape[2]]
        target = self._part / (self.path.name % (self.num_frames + 1))
        options = [cv2.IMWRITE_JPEG_QUALITY, self._jpeg_quality] if target.suffix.lower().startswith(".jp") else []
        fine, data = cv2.imencode(target.suffix, np.ascontiguousarray(pixels[..., order]), options)
        if not fine:
            raise VideoError(f"'{target}' cannot be encoded; choose another kind of picture")
        try:
            target.write_bytes(data.tobytes())
        except OSError as error:
            raise VideoError(f"'{target}' cannot be written: {error.strerror}") from error
        self.num_frames += 1

    def close(self) -> None:
        """Gives the folder its name; on return the pictures survive a power cut.

        Errors: VideoError if no frame was written, or something else lies in the folder by now; the pictures are kept
        then, under the name that the message tells.
        """
        if self._lock is None:
            return
        if not self.num_frames:
            self.abort()
            raise VideoError(f"'{self.path}' was given no frame; nothing is written")
        try:
            for picture in self._part.iterdir():
                sync_file(picture)
            sync_folder(self._part)
        except OSError as error:
            self.abort()
            raise VideoError(f"'{self.path}' cannot be written: {error.strerror}") from error
        self._give_name(self.path.parent)

    def _give_name(self, folder: Path) -> None:
        try:
            if folder.exists():
                folder.rmdir()
            os.replace(self._part, folder)
        except OSError as error:
            raise VideoError(
                f"'{folder}' cannot take the finished pictures ({error.strerror}), they are in '{self._part}': "
                "move them to a place of their own, or empty the folder and rename it"
            ) from error
        finally:
            self._release()
        sync_folder(folder.parent)

    def abort(self) -> None:
        """Drops everything that was written; harmless when already closed."""
        if self._lock is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.remove()

    def __enter__(self) -> SequenceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def load_picture(path: Path, *, as_seen: bool = False) -> np.ndarray:
    """(H,W), (H,W,3) or (H,W,4) as OpenCV reads it: BGR(A), uint8, uint16 or float32.

    as_seen: always (H,W,3) uint8, and turned the way the camera was held. Errors: VideoError naming the file.
    """
    if path.suffix.lower() == ".exr":
        os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")
    cv2 = require("cv2", "opencv-python-headless", "reading pictures")
    try:
        # Not imread: it cannot open every Unicode name on Windows.
        kind = cv2.IMREAD_COLOR if as_seen else cv2.IMREAD_UNCHANGED
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), kind)
    except (OSError, cv2.error) as error:
        raise VideoError(f"'{path}' cannot be read as a picture: {error}") from error
    if picture is None:
        raise VideoError(f"'{path}' cannot be read as a picture; it is damaged or of an unknown kind")
    return picture


def _to_rgb(picture: np.ndarray, alpha: bool) -> Tensor:
    scale = {"uint8": 255, "uint16": 65535}.get(picture.dtype.name, 1)
    values = torch.from_numpy(picture.astype(np.float32)).div_(scale).nan_to_num_(0.0).clamp_(0, 1)
    if values.ndim == 2:
        values = values[..., None].expand(-1, -1, 3)
    colours = values[..., [2, 1, 0]] if values.shape[2] >= 3 else values[..., :1].expand(-1, -1, 3)
    if not alpha:
        return colours.contiguous()
    opacity = values[..., 3:] if values.shape[2] == 4 else torch.ones(*values.shape[:2], 1)
    return torch.cat([colours, opacity], dim=-1)
