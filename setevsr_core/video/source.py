"""Opening video files: one place for names in messages, independent read positions, and clear errors."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Union

from ..errors import VideoError, require

VideoSource = Union[str, "os.PathLike[str]", IO[bytes]]


def name_of(source: VideoSource) -> str:
    """What messages call the source: its path, or 'video in memory'."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", "video in memory"))


def open_source(source: VideoSource) -> Any:
    """The PyAV input container of a path or a binary file object; several may be open on one object at a time.

    Errors: VideoError that names the file and says what is wrong with it; MissingPackageError without PyAV.
    """
    av = require("av", "av", "reading a video")
    name = name_of(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise VideoError(f"'{name}' does not exist; check the path of the video")
        if path.is_dir():
            raise VideoError(f"'{name}' is a folder; give the path of one video file")
        if path.stat().st_size == 0:
            raise VideoError(f"'{name}' is empty (0 bytes); copy or download the video again")
        target: Any = str(path)
    else:
        target = _View(source)
    with video_errors(name, "cannot be opened as a video"):
        return av.open(target, mode="r", metadata_errors="replace")


@contextmanager
def video_errors(name: str, problem: str) -> Iterator[None]:
    """Turns errors of FFmpeg and of the operating system into a VideoError: "'name' problem (reason)"."""
    ffmpeg_error = require("av.error", "av", "reading a video").FFmpegError
    try:
        yield
    except (ffmpeg_error, OSError, ValueError) as error:
        raise VideoError(f"'{name}' {problem}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """The plain reason inside an error of PyAV or the operating system."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def video_stream(container: Any, name: str) -> Any:
    """The first video stream. Errors: VideoError if there is none."""
    for stream in video_streams(container):
        return stream
    raise VideoError(f"'{name}' has no video stream that can be decoded; give a file with pictures in it")


def video_streams(container: Any) -> list[Any]:
    """Video streams that FFmpeg knows; cover pictures of music files do not count."""
    streams = container.streams.video
    return [stream for stream in streams if not _is_cover(stream) and stream.codec_context is not None]


def audio_streams(container: Any) -> list[Any]:
    """Audio streams that FFmpeg knows (others have no codec context and would crash it)."""
    return [stream for stream in container.streams.audio if stream.codec_context is not None]


def _is_cover(stream: Any) -> bool:
    disposition = getattr(stream, "disposition", None)
    flag = getattr(type(disposition), "attached_pic", None)
    return bool(disposition is not None and flag is not None and disposition & flag)


class _View(io.RawIOBase):
    """A read position of its own on a shared file object, so that pictures and sound can be read side by side."""

    _lock = threading.Lock()

    def __init__(self, shared: IO[bytes]) -> None:
        super().__init__()
        self._shared = shared
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            self._shared.seek(self._position)
            data = self._shared.read(size)
            self._position = self._shared.tell()
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._lock:
            if whence == os.SEEK_CUR:
                offset += self._position
            elif whence == os.SEEK_END:
                offset = self._shared.seek(offset, os.SEEK_END)
            self._position = offset
        return offset

    def tell(self) -> int:
        return self._position
