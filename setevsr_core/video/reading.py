"""Lazy video reading: one decoded frame at a time, in the colours that the file means."""

from __future__ import annotations

import logging
import math
import struct
from array import array
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError, VideoError, require
from .source import VideoSource, audio_streams, name_of, open_source, video_errors, video_stream, video_streams
from .yuv import ColourTags, bit_depth, frame_to_rgb, has_alpha, is_transparent, tags_of

logger = logging.getLogger(__name__)

JUMP = 1
"""Seconds that the time stamps of packets may go back; more is the begin of another recording."""

_UNKEPT = {
    "A53_CC": "closed captions inside the pictures",
    "MASTERING_DISPLAY_METADATA": "HDR mastering data",
    "CONTENT_LIGHT_LEVEL": "HDR light levels",
    "DYNAMIC_HDR_PLUS": "HDR10+ data",
    "DOVI_METADATA": "Dolby Vision data",
    "STEREO3D": "the mark of stereoscopic pictures",
    "SPHERICAL": "the mark of spherical pictures",
}
"""What frames may carry beside their pixels, by PyAV's name, that no result keeps."""


class VideoReader:
    """Iterates the frames of a video as RGB (H,W,3) float32 in 0..1 on the CPU, in bounded memory.

    `source` is a path or a binary file object (as ComfyUI's `VIDEO.get_stream_source()` gives). `start` and
    `duration` in seconds choose a part (duration None or 0: to the end): the frames that begin in [start, start +
    duration). Every iteration starts anew. Display rotation by quarter turns and mirroring are applied; deep colour (10
    bit and more) keeps its precision; transparency comes as a fourth channel with `alpha`, else it is dropped.
    `times` holds when each frame of the latest iteration is shown, in ticks of `time_base` after the first one.
    `interlaced` and `unkept` (in words: what a written copy of the frames cannot keep) are told by the first frame.
    Errors: VideoError naming the file when it is missing, empty, damaged, without video, or has no frame in the
    chosen part; SettingsError for a negative time.
    """

    def __init__(
        self, source: VideoSource, start: float = 0.0, duration: float | None = None, alpha: bool = False
    ) -> None:
        if not (math.isfinite(start) and start >= 0):
            raise SettingsError(f"start is {start}; it must be 0 or more seconds")
        if duration is not None and not (math.isfinite(duration) and duration >= 0):
            raise SettingsError(f"duration is {duration}; it must be a positive number of seconds, or 0 for all")
        self.source = source
        self.name = name_of(source)
        self.start = start
        self.duration = duration or None
        self._want_alpha = alpha
        self.times: array[int] = array("q")
        self._iterations: list[Generator[Tensor, None, None]] = []
        self._closed = False
        self._probe()

    def _probe(self) -> None:
        """Reads the properties off the stream and off the first frame (only that tells rotation and colours for
        certain).
        """
        with open_source(self.source) as container:
            stream = video_stream(container, self.name)
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate
            if not rate or rate <= 0:
                raise VideoError(f"'{self.name}' does not say its frame rate; convert it to mp4 first")
            self.frame_rate = Fraction(rate)
            self.has_audio = bool(audio_streams(container))
            declared = stream.frames or None
            length = stream.duration * stream.time_base if stream.duration else None
            if length is None and container.duration:
                length = Fraction(container.duration, 1_000_000)
            aspect = Fraction(stream.sample_aspect_ratio or 1)
            self.time_base = Fraction(stream.time_base)
            tracks = ["further video tracks"] if len(video_streams(container)) > 1 else []
            alpha_decoder = _alpha_decoder(stream)
            self._decoder = alpha_decoder if self._want_alpha else None
        with closing(self._decode()) as frames:
            first = next(frames, None)
        if first is None:
            part = f" from {self.start:g} s on" if self.start or self.duration else ""
            raise VideoError(f"'{self.name}' has no frame that can be decoded{part}")
        frame, self.first_time = first
        self.tags: ColourTags = tags_of(frame, stream.codec_context)
        self.bit_depth: int = bit_depth(frame)
        self.alpha: bool = self._want_alpha and has_alpha(frame)
        self.interlaced = bool(frame.interlaced_frame)
        transparent = not self._want_alpha and (alpha_decoder is not None or is_transparent(frame))
        self.unkept: list[str] = [*(["transparency"] if transparent else []), *tracks, *_unkept_data(frame)]
        self._mirroring = _mirroring(frame)
        turned = (_quarter_turns(frame) if self._mirroring is None else self._mirroring) % 2 == 1
        self.size: tuple[int, int] = (frame.width, frame.height) if turned else (frame.height, frame.width)
        self.pixel_aspect: Fraction = 1 / aspect if turned else aspect
        self.num_frames: int | None = None if self.start or self.duration else declared
        self.expected_frames: int | None = self.num_frames or self._expect(length)

    def _expect(self, length: Fraction | None) -> int | None:
        """An estimate of the number of frames, for progress bars."""
        rest = max(0.0, float(length) - self.start) if length is not None else None
        seconds = min((value for value in (rest, self.duration) if value is not None), default=None)
        return None if seconds is None else max(1, round(seconds * self.frame_rate))

    def __iter__(self) -> Iterator[Tensor]:
        if self._closed:
            raise VideoError(f"'{self.name}' was closed; open it again to read it")
        iteration = self._frames()
        self._iterations.append(iteration)
        return iteration

    def _frames(self) -> Generator[Tensor, None, None]:
        index = -1
        times = self.times = array("q")
        with closing(self._decode()) as decoded:
            for index, (frame, time) in enumerate(decoded):
                times.append(round((time - self.first_time) / self.time_base))
                picture = self._upright(frame_to_rgb(frame, self.tags, self.alpha), frame)
                if tuple(picture.shape[:2]) != self.size:
                    raise VideoError(
                        f"'{self.name}' changes its size from {self.size[1]}x{self.size[0]} "
                        f"to {picture.shape[1]}x{picture.shape[0]} at frame {index}; cut it there first"
                    )
                yield picture.contiguous()
        if self.num_frames is not None and index + 1 < self.num_frames:
            logger.warning("'%s' says it has %d frames and holds %d", self.name, self.num_frames, index + 1)

    def _upright(self, picture: Tensor, frame: Any) -> Tensor:
        """The picture (H,W,C) of a PyAV frame as its display matrix wants it shown.

        Mirroring is told by the first frame alone: a frame and its side data refer to each other in PyAV, so one that
        is asked for them stays in memory until the garbage collector comes.
        """
        if self._mirroring is not None:
            return torch.rot90(picture.flip(1), self._mirroring, (0, 1))
        return torch.rot90(picture, _quarter_turns(frame), (0, 1))

    def _decode(self) -> Generator[tuple[Any, Fraction], None, None]:
        """(PyAV frame, its time in seconds on the file's own clock) of the chosen part."""
        for seek in (True, False) if self.start else (False,):
            with open_source(self.source) as container:
                stream = video_stream(container, self.name)
                stream.thread_type = "AUTO"
                base, offset = Fraction(stream.time_base), stream.start_time or 0
                # Rounded down to the stream's ticks, as ComfyUI trims: both then choose the same frames.
                first = offset + int(self.start / base)
                last = offset + int((self.start + self.duration) / base) if self.duration else None
                if seek and not _seek(container, stream, first):
                    continue
                frames = self._timed_frames(container, stream)
                head = next(frames, None)
                if seek and (head is None or head[0].pts is None or head[1] > first):
                    continue  # some formats (MPEG-TS) find no place before the wanted one: read from the beginning
                while head is not None and (last is None or head[1] < last):
                    if head[1] >= first or not self.start:
                        yield head[0], head[1] * base
                    head = next(frames, None)
                return

    def _timed_frames(self, container: Any, stream: Any) -> Iterator[tuple[Any, int]]:
        """(PyAV frame, its time in the stream's ticks) from where the container stands."""
        frames = _decode_with(self._decoder, container, stream) if self._decoder else container.decode(stream)
        count = 0
        while True:
            with video_errors(self.name, _damage(stream, count)):
                frame = next(frames, None)
            if frame is None:
                return
            # A few raw formats have no time stamps: count instead.
            pts = frame.pts if frame.pts is not None else round(count / self.frame_rate / Fraction(stream.time_base))
            count += 1
            yield frame, pts

    def drift(self) -> float:
        """By how many frames the latest iteration is off the constant `frame_rate` at its worst: so far the sound of a
        result is off that shows these frames at that rate instead of at their `times`.
        """
        step = float(self.time_base * self.frame_rate)
        return max((abs(tick * step - index) for index, tick in enumerate(self.times)), default=0.0)

    def even(self) -> bool:
        """True if every frame is shown within 0.6 of a frame of its place at the constant `frame_rate`.

        Reads the packets of the whole part, without decoding them: the time stamps at hand are the only sure sign.
        Errors: VideoError if they jump back, for then no frame's time can be told.
        """
        with open_source(self.source) as container:
            stream = video_stream(container, self.name)
            first = (stream.start_time or 0) + int(self.start / self.time_base)
            stop = first + int(self.duration / self.time_base) if self.duration else None
            stamps = self._stamps(container, stream, stop)
            times = sorted(tick for tick in stamps if tick >= first and (stop is None or tick < stop))
        return all(
            abs((tick - times[0]) * self.time_base * self.frame_rate - index) <= Fraction(3, 5)
            for index, tick in enumerate(times)
        )

    def _stamps(self, container: Any, stream: Any, stop: int | None) -> Iterator[int]:
        """When the frames of all packets are shown, in ticks, up to the first that is decoded at `stop` or later."""
        latest: int | None = None
        try:
            for packet in container.demux(stream):
                if packet.dts is not None:
                    if stop is not None and packet.dts >= stop:
                        return
                    latest = packet.dts if latest is None else max(latest, packet.dts)
                    if (latest - packet.dts) * self.time_base > JUMP:
                        raise VideoError(
                            f"'{self.name}' has time stamps that jump back, as recordings that were put together; "
                            "write them anew: ffmpeg -i IN -c copy OUT.mkv"
                        )
                if packet.pts is not None and not packet.is_discard:
                    yield packet.pts
        except require("av.error", "av", "reading a video").FFmpegError:
            return  # a damaged end shows when it is decoded

    def close(self) -> None:
        """Ends running iterations and releases the file."""
        self._closed = True
        for iteration in self._iterations:
            iteration.close()
        self._iterations.clear()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _damage(stream: Any, count: int) -> str:
    """What to say when frame `count` of a stream cannot be decoded."""
    if stream.codec_context.name == "webp":
        return "may be an animated WebP, which FFmpeg cannot decode; save it as GIF, APNG or a video first"
    remedy = "ffmpeg -i IN -crf 10 -c:a copy OUT.mkv leaves out what is"
    return f"is damaged near frame {count} of the part that was read ({remedy})"


def _alpha_decoder(stream: Any) -> str | None:
    """The decoder that sees the transparency of a stream, where FFmpeg's usual one does not (VP8 and VP9)."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    return name if name and stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1" else None


def _decode_with(decoder: str, container: Any, stream: Any) -> Iterator[Any]:
    import av

    context: Any = av.CodecContext.create(decoder, "r")
    for packet in container.demux(stream):
        yield from context.decode(packet)


def _seek(container: Any, stream: Any, ticks: int) -> bool:
    """Moves to the key frame at or before `ticks`; False if this format cannot."""
    from av.error import FFmpegError

    try:
        container.seek(ticks, stream=stream, backward=True)
    except (FFmpegError, OSError):
        return False
    return True


def _unkept_data(frame: Any) -> list[str]:
    try:
        names = {data.type.name for data in frame.side_data}
    except ValueError:  # PyAV does not know some kinds of its own FFmpeg
        return []
    return [words for name, words in _UNKEPT.items() if name in names]


def _quarter_turns(frame: Any) -> int:
    """Quarter turns counter-clockwise that the display matrix of a PyAV frame asks for, 0..3, if it mirrors nothing."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _mirroring(frame: Any) -> int | None:
    """Quarter turns counter-clockwise, 0..3, that a PyAV frame's display matrix asks for after mirroring left and
    right; None where it mirrors nothing.

    PyAV's `rotation` says nothing of mirroring: it calls a picture mirrored left and right one that stands on its head.
    """
    try:
        data = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    except ValueError:  # PyAV does not know some kinds of its own FFmpeg
        return None
    if data is None:
        return None
    matrix = struct.unpack("=9i", data)  # 3 x 3, row by row: (x, y, 1) times it is where a pixel is shown
    if matrix[0] * matrix[4] >= matrix[1] * matrix[3]:
        return None
    return round(-math.atan2(-matrix[1], -matrix[0]) / (math.pi / 2)) % 4
