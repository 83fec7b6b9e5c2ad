"""Video writing: frames in, an H.264 file out, with true colours, exact time, copied sound, and never half a file
under the final name.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..errors import InputError, SettingsError, VideoError, require
from .audio import AudioCopy
from .reading import VideoReader
from .source import VideoSource, reason_of
from .yuv import ColourTags, rgb_to_frame

logger = logging.getLogger(__name__)

# file name ending -> (FFmpeg's name of the container, muxer options)
CONTAINERS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("mp4", {"movflags": "use_metadata_tags+faststart"}),
    ".m4v": ("mp4", {"movflags": "use_metadata_tags+faststart"}),
    ".mov": ("mov", {"movflags": "use_metadata_tags+faststart"}),
    ".mkv": ("matroska", {}),
}


@dataclass(frozen=True)
class Codec:
    """How one kind of video is encoded; `options(quality)` are the encoder's own."""

    encoder: str
    options: Callable[[float], dict[str, str]]
    qualities: tuple[float, float]
    even: str
    odd: str


CODECS: dict[str, Codec] = {
    "h264": Codec(
        "libx264", lambda crf: {"crf": f"{crf:g}", "preset": "medium"}, (0, 51), even="yuv420p", odd="yuv444p"
    ),
}


class VideoWriter:
    """Writes frames of `size` (H, W) at an exact `frame_rate`; a context manager.

    Leaving the block normally (or `close()`) finishes the file and moves `<path>.part` to `path`; leaving it by an
    exception (or `abort()`) removes what was written, so an existing file under `path` stays untouched.

    - `path`: .mp4, .m4v, .mov or .mkv. MKV keeps time stamps in milliseconds, the others the exact rate.
    - `quality`: constant rate factor, 0 (lossless, huge) to 51; 18 looks the same as the source to most eyes.
    - `pixel_format`: "auto" is yuv420p, which plays everywhere; H.264 cannot say an odd number of pixels in it, so
      frames with an odd side become yuv444p (every pixel kept; a few hardware players refuse it). Any planar Y'CbCr
      format of the encoder can be named.
    - `colour`: tags to convert by and to write; None is BT.709 for HD and BT.601 below (`ColourTags.for_size`).
    - `pixel_aspect`: width of a pixel over its height, for anamorphic sources.
    - `metadata`: written into the file (values that are not strings as JSON), for example prompt and workflow.
    - `audio_from`: a path, a file object or a `VideoReader`, whose sound is copied without re-encoding. A reader also
      gives its part of the video (see `AudioCopy` for the precision at its ends). No sound in the source is no error.
    Errors: VideoError naming the file (not writable, full disk, encoder refuses), SettingsError for a wrong argument.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        frame_rate: Fraction | int | float,
        size: tuple[int, int],
        *,
        codec: str = "h264",
        quality: float = 18,
        pixel_format: str = "auto",
        colour: ColourTags | None = None,
        pixel_aspect: Fraction | int = 1,
        metadata: Mapping[str, Any] | None = None,
        audio_from: VideoSource | VideoReader | None = None,
    ) -> None:
        self.path = Path(path)
        self.size = size
        self.frame_rate = Fraction(frame_rate).limit_denominator(1_000_000)
        self.num_frames = 0
        self._colour = colour or ColourTags.for_size(*size)
        spec = _check(self.path, self.frame_rate, size, codec, quality)
        self._pixel_format = (
            pixel_format if pixel_format != "auto" else spec.odd if size[0] % 2 or size[1] % 2 else spec.even
        )
        if pixel_format == "auto" and self._pixel_format == spec.odd:
            logger.info("%dx%d has an odd side: '%s' is written as %s", size[1], size[0], self.path, spec.odd)
        self._part = self.path.with_name(self.path.name + ".part")
        self._container: Any = None
        self._audio: AudioCopy | None = None
        try:
            with self._errors("cannot be written"):
                self._open(spec, quality, Fraction(pixel_aspect), metadata or {}, audio_from)
        except BaseException:
            self.abort()
            raise

    def _open(
        self,
        spec: Codec,
        quality: float,
        pixel_aspect: Fraction,
        metadata: Mapping[str, Any],
        audio_from: VideoSource | VideoReader | None,
    ) -> None:
        av = require("av", "av", "writing a video")
        name, options = CONTAINERS[self.path.suffix.lower()]
        self._container = av.open(str(self._part), mode="w", format=name, options=options)
        for key, value in metadata.items():
            self._container.metadata[key] = value if isinstance(value, str) else json.dumps(value)
        self._stream = self._container.add_stream(spec.encoder, rate=self.frame_rate, options=spec.options(quality))
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = self._pixel_format
        self._stream.time_base = 1 / self.frame_rate
        context = self._stream.codec_context
        context.time_base = 1 / self.frame_rate
        context.sample_aspect_ratio = pixel_aspect
        context.colorspace = self._colour.matrix
        context.color_primaries = self._colour.primaries
        context.color_trc = self._colour.transfer
        context.color_range = 2 if self._colour.full_range else 1
        if isinstance(audio_from, VideoReader):
            part = bool(audio_from.start or audio_from.duration)
            self._audio = AudioCopy(
                audio_from.source, self._container, str(self.path), audio_from.first_time, trim=part
            )
        elif audio_from is not None:
            self._audio = AudioCopy(audio_from, self._container, str(self.path), None, trim=False)
        # The header now rather than with the first frame: what cannot be written should fail before hours of work.
        self._container.start_encoding()

    def write(self, frames: Tensor) -> None:
        """Appends frames (k,H,W,3) or one frame (H,W,3), RGB 0..1, any float type and device."""
        frames = frames[None] if frames.ndim == 3 else frames
        if tuple(frames.shape[1:]) != (*self.size, 3):
            raise InputError(
                f"'{self.path}' is written with frames {(*self.size, 3)} and got {tuple(frames.shape[1:])}"
            )
        if self._container is None:
            raise VideoError(f"'{self.path}' is closed; nothing can be added to it")
        for picture in frames:
            frame = rgb_to_frame(picture, self._pixel_format, self._colour)
            frame.pts, frame.time_base = self.num_frames, 1 / self.frame_rate
            frame.color_primaries, frame.color_trc = self._colour.primaries, self._colour.transfer
            with self._errors("cannot be written"):
                self._mux(self._stream.encode(frame))
            self.num_frames += 1

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if self._audio is not None and packet.dts is not None:
                self._audio.copy_until(packet.dts * Fraction(packet.time_base))
            self._container.mux(packet)

    def close(self) -> None:
        """Finishes the file and gives it its name. Errors: VideoError if no frame was written."""
        if self._container is None:
            return
        try:
            if self.num_frames == 0:
                raise VideoError(f"'{self.path}' was given no frame; nothing is written")
            with self._errors("cannot be finished"):
                self._mux(self._stream.encode(None))
                if self._audio is not None:
                    self._audio.finish(self.num_frames / self.frame_rate)
                    self._audio.close()
                container, self._container = self._container, None
                container.close()
                os.replace(self._part, self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drops everything that was written; harmless when already closed."""
        container, self._container = self._container, None
        if self._audio is not None:
            self._audio.close()
        if container is not None:
            with suppress(Exception):  # the first error is the one to report
                container.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, problem: str):
        """Errors of FFmpeg and of the system become a VideoError; a full disk is said plainly."""
        ffmpeg_error = require("av.error", "av", "writing a video").FFmpegError
        try:
            yield
        except (ffmpeg_error, OSError, ValueError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise VideoError(
                    f"The disk is full while '{self.path}' is written; free some space or choose another folder"
                ) from error
            raise VideoError(f"'{self.path}' {problem}: {reason_of(error)}") from error

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _check(path: Path, frame_rate: Fraction, size: tuple[int, int], codec: str, quality: float) -> Codec:
    """All that can be wrong before a file is touched.

    Errors: VideoError about the path, SettingsError about the rest.
    """
    if path.suffix.lower() not in CONTAINERS:
        raise VideoError(f"'{path}' has no known ending; name the video with one of {', '.join(CONTAINERS)}")
    if not path.parent.is_dir():
        raise VideoError(f"'{path}' cannot be written: the folder '{path.parent}' does not exist; create it first")
    if path.is_dir():
        raise VideoError(f"'{path}' is a folder; give the name of a video file")
    if codec not in CODECS:
        raise SettingsError(f"codec is {codec!r}; choose one of {', '.join(CODECS)}")
    low, high = CODECS[codec].qualities
    if not low <= quality <= high:
        raise SettingsError(f"quality is {quality:g}; for {codec} it is {low:g} (best) to {high:g}")
    if frame_rate <= 0:
        raise SettingsError(f"frame_rate is {frame_rate}; it must be positive")
    if min(size) < 1:
        raise SettingsError(f"size is {size[1]}x{size[0]}; both sides need at least 1 pixel")
    return CODECS[codec]
