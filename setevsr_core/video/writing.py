"""Video writing: frames in, an encoded file out, with true colours, exact time, copied sound, and never half a file
under the final name.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..errors import InputError, SettingsError, VideoError, require
from .audio import AudioCopy
from .durable import sync_file, sync_folder
from .formats import CODECS, CONTAINERS, THREADS, Codec, check_quality, codec_for, require_encoder
from .locking import LockFile
from .reading import VideoReader
from .source import VideoSource, reason_of
from .yuv import ColourTags, rgb_to_frame, tag_frame

logger = logging.getLogger(__name__)

SMALL = 128
"""Below so many pixels on a side, x264's macroblock tree reads past the frame: its bytes would depend on freed memory,
and a resumed run would not give the file of an uninterrupted one."""
NOTICEABLE_DRIFT = 2
"""Frames by which sound may be off its pictures without a word about it."""


class VideoWriter:
    """Writes frames of `size` (H, W) at an exact `frame_rate`; a context manager.

    Leaving the block normally (or `close()`) finishes the file and moves `<path>.part` to `path`; leaving it by an
    exception (or `abort()`) removes what was written, so an existing file under `path` stays untouched. Until then a
    second writer of the same `path` is refused.

    - `path`: .mp4, .m4v, .mov, .mkv or .webm. MKV keeps time stamps in milliseconds, the others the exact rate.
    - `codec`: a name of `formats.CODECS`; None is h264, and vp9 for .webm. `quality`: on the codec's own scale (for
      h264 the constant rate factor, 0 lossless to 51); None looks the same as the source to most eyes.
    - `depth`: bits a channel. 8-bit H.264 is yuv420p, which plays everywhere; it cannot say an odd number of pixels in
      it, so frames with an odd side become yuv444p (every pixel kept; a few hardware players refuse it).
    - `alpha`: frames come with a fourth channel. A codec that cannot hold it is a SettingsError.
    - `time_base`: None is one tick a frame; a finer one is for frames that come with times of their own.
    - `colour`: tags to convert by and to write; None is BT.709 for HD and BT.601 below (`ColourTags.for_size`).
    - `pixel_aspect`: width of a pixel over its height, for anamorphic sources.
    - `audio_from`: a path, a file object or a `VideoReader`, whose sound is copied, and encoded again only where the
      container cannot hold it. A reader also gives its part of the video (see `AudioCopy` for the precision at its
      ends). No sound in the source is no error.
    Errors: VideoError naming the file (not writable, full disk, encoder refuses), SettingsError for a wrong argument.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        frame_rate: Fraction | int | float,
        size: tuple[int, int],
        *,
        codec: str | None = None,
        quality: float | None = None,
        colour: ColourTags | None = None,
        pixel_aspect: Fraction | int = 1,
        audio_from: VideoSource | VideoReader | None = None,
        depth: int = 8,
        alpha: bool = False,
        time_base: Fraction | None = None,
    ) -> None:
        self.path = Path(path)
        self.size = size
        self.frame_rate = Fraction(frame_rate).limit_denominator(1_000_000)
        self.num_frames = 0
        spec, quality = _check(self.path, self.frame_rate, size, codec, quality)
        self._time_base = time_base or 1 / self.frame_rate
        self._channels = 4 if alpha else 3
        self._last_tick = -1
        self._own_times = False
        self._audio_from = audio_from
        self._colour = colour or ColourTags.for_size(*size)
        if alpha and not spec.alpha:
            able = ", ".join(name for name, other in CODECS.items() if other.alpha)
            raise SettingsError(f"'{self.path}' cannot keep transparency with this codec; choose one of {able}")
        self.pixel_format = spec.pixel_format(size, depth, alpha)
        if "444" in self.pixel_format and "444" not in spec.even[0]:
            logger.info("'%s', %dx%d, is written as %s", self.path, size[1], size[0], self.pixel_format)
        self._part = self.path.with_name(self.path.name + ".part")
        self._lock: LockFile | None = None
        self._container: Any = None
        self._audio: AudioCopy | None = None
        try:
            with self._errors("cannot be written"):
                self._lock = LockFile(self._part.with_name(self._part.name + ".lock"))
                if spec.encoder == "prores_ks" and "444" in self.pixel_format:
                    quality = max(quality, 4)  # the profiles below 4444 would drop chroma and transparency
                self._open(spec, quality, Fraction(pixel_aspect), audio_from)
        except BaseException:
            self.abort()
            raise

    def _open(
        self, spec: Codec, quality: float, pixel_aspect: Fraction, audio_from: VideoSource | VideoReader | None
    ) -> None:
        av = require("av", "av", "writing a video")
        name, options = CONTAINERS[self.path.suffix.lower()]
        # bitexact: Matroska would otherwise write random numbers into every file.
        self._container = av.open(str(self._part), mode="w", format=name, options={**options, "fflags": "+bitexact"})
        choices = spec.options(quality)
        if spec.encoder == "libx264" and min(self.size) < SMALL:
            choices["x264-params"] = "mbtree=0"
        self._stream = self._container.add_stream(spec.encoder, rate=self.frame_rate, options=choices)
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = self.pixel_format
        self._stream.time_base = self._time_base
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.thread_count = THREADS
        if spec.encoder == "libx265" and name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # the only tag of H.265 that Apple's players take
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
        """Appends frames (k,H,W,3) or one frame (H,W,3), RGB 0..1, any float type and device; 4 channels with alpha."""
        for picture in frames[None] if frames.ndim == 3 else frames:
            self.add(self.prepare(picture))

    def prepare(self, picture: Tensor) -> Any:
        """One frame (H,W,3|4) as the encoder takes it: a PyAV frame, which a journal may keep meanwhile."""
        if tuple(picture.shape) != (*self.size, self._channels):
            raise InputError(
                f"'{self.path}' is written with frames {(*self.size, self._channels)} and got {tuple(picture.shape)}"
            )
        return rgb_to_frame(picture, self.pixel_format, self._colour)

    def add(self, frame: Any, time: Fraction | None = None) -> None:
        """Appends a prepared frame that is shown at `time` seconds; None: one frame length after the one before."""
        if self._container is None:
            raise VideoError(f"'{self.path}' is closed; nothing can be added to it")
        self._own_times |= time is not None
        tick = self.num_frames if time is None else max(round(time / self._time_base), self._last_tick + 1)
        frame.pts, frame.time_base, self._last_tick = tick, self._time_base, tick
        tag_frame(frame, self._colour)
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
                    self._audio.finish(self._last_tick * self._time_base + 1 / self.frame_rate)
                    self._audio.close()
                container, self._container = self._container, None
                container.close()
                sync_file(self._part)
                os.replace(self._part, self.path)
                self._release()
                sync_folder(self.path.parent)
                self._warn_of_drift()
        except BaseException:
            self.abort()
            raise

    def _warn_of_drift(self) -> None:
        reader = self._audio_from
        if self._own_times or not isinstance(reader, VideoReader) or not reader.has_audio:
            return
        if (drift := reader.drift()) > NOTICEABLE_DRIFT:
            logger.warning("'%s' has no constant frame rate, '%s' has one: its sound is up to %.1f frames off",
                           reader.name, self.path, drift)  # fmt: skip

    def abort(self) -> None:
        """Drops everything that was written; harmless when already closed."""
        container, self._container = self._container, None
        if self._audio is not None:
            self._audio.close()
        if container is not None:
            with suppress(Exception):  # the first error is the one to report
                container.close()
        if self._lock is not None:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.remove()

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


def _check(
    path: Path, frame_rate: Fraction, size: tuple[int, int], codec: str | None, quality: float | None
) -> tuple[Codec, float]:
    """All that can be wrong before a file is touched; returns the codec and its quality.

    Errors: VideoError about the path, MissingPackageError for an encoder that is not there, SettingsError about the
    rest.
    """
    name = codec_for(path, codec)
    if not path.parent.is_dir():
        raise VideoError(f"'{path}' cannot be written: the folder '{path.parent}' does not exist; create it first")
    if path.is_dir():
        raise VideoError(f"'{path}' is a folder; give the name of a video file")
    quality = check_quality(name, quality)
    if frame_rate <= 0:
        raise SettingsError(f"frame_rate is {frame_rate}; it must be positive")
    if min(size) < 1:
        raise SettingsError(f"size is {size[1]}x{size[0]}; both sides need at least 1 pixel")
    require_encoder(name)
    return CODECS[name], quality
