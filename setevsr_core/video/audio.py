"""Sound and subtitles are copied packet by packet, never decoded: no loss, no dependence on codecs, and sync by time
stamps. Chapters and the container's metadata come along.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VideoError, require
from .formats import CONTAINERS
from .source import VideoSource, audio_streams, name_of, open_source, video_errors, video_stream

if TYPE_CHECKING:
    from .reading import VideoReader

logger = logging.getLogger(__name__)


# What a muxer writes itself, or what is no longer true of the result.
_OWN_METADATA = {
    "encoder",
    "major_brand",
    "minor_version",
    "compatible_brands",
    "creation_time",
    "duration",
    "handler_name",
}


def can_hold_sound(path: Path, source: VideoSource | VideoReader) -> bool:
    """True if a video called `path` can hold the sound of `source` as it is."""
    av = require("av", "av", "writing a video")
    opened: Any = getattr(source, "source", source)
    with open_source(opened) as container:
        names = {stream.codec_context.codec.canonical_name for stream in audio_streams(container)}
    with av.open(io.BytesIO(), mode="w", format=CONTAINERS[path.suffix.lower()][0]) as output:
        return names <= set(output.supported_codecs)


class AudioCopy:
    """Feeds the packets of sound and subtitles of `source` into an output container, in step with the pictures.

    `zero` is the time on the source's clock (seconds) that becomes time 0 of the output, that is the time of the
    first picture; None takes the start of the source's video stream. Without `trim` all packets are copied. With
    `trim` those that begin before `zero`, or after the end given to `finish`, are left out: the sound stays in sync
    to one clock tick of its stream, while its two ends are exact to one packet (AAC at 48 kHz: 21 ms).
    Errors: VideoError when the output format cannot hold the source's codec.
    """

    def __init__(self, source: VideoSource, output: Any, output_name: str, zero: Fraction | None, trim: bool) -> None:
        self._name = name_of(source)
        self._trim = trim
        self._container = open_source(source)
        try:
            streams = audio_streams(self._container)
            self._zero = _video_start(self._container, self._name) if zero is None else zero
            self._outputs = {stream.index: self._add(stream, output, output_name) for stream in streams}
            texts = [
                stream for stream in self._container.streams.subtitles if self._add_text(stream, output, output_name)
            ]
            self._copy_facts(output)
        except BaseException:
            self._container.close()
            raise
        self._output = output
        self._packets: Iterator[Any] = self._container.demux(*streams, *texts) if streams or texts else iter(())
        self._waiting: Any = None

    def _add(self, stream: Any, output: Any, output_name: str) -> Any:
        codec = stream.codec_context.name
        if stream.codec_context.codec.canonical_name not in output.supported_codecs:
            raise VideoError(f"'{output_name}' cannot hold the sound of '{self._name}' ({codec}); name it .mkv or .mov")
        copy = output.add_stream_from_template(stream)
        copy.metadata.update(stream.metadata)
        return copy

    def _add_text(self, stream: Any, output: Any, output_name: str) -> bool:
        """False, with a warning, for subtitles that the output cannot hold: pictures and sound are worth having."""
        name = "unknown kind" if stream.codec_context is None else stream.codec_context.codec.canonical_name
        if stream.codec_context is None or name not in output.supported_codecs:
            logger.warning("'%s' cannot hold the subtitles of '%s' (%s), they are left out; .mkv holds most kinds",
                           output_name, self._name, name)  # fmt: skip
            return False
        copy = output.add_stream_from_template(stream)
        copy.metadata.update(stream.metadata)
        self._outputs[stream.index] = copy
        return True

    def _copy_facts(self, output: Any) -> None:
        """Metadata that the output does not have yet, and, of a whole video, the chapters."""
        for key, value in self._container.metadata.items():
            if key.lower() not in _OWN_METADATA and key not in output.metadata:
                output.metadata[key] = value
        if self._trim or not hasattr(output, "set_chapters"):  # PyAV 16
            return
        if chapters := self._container.chapters():
            output.set_chapters(chapters)

    def copy_until(self, time: Fraction) -> None:
        """Copies the packets that begin at or before `time`, seconds of the output."""
        while (packet := self._next()) is not None:
            if self._begin(packet) > time:
                self._waiting = packet
                return
            self._mux(packet)

    def finish(self, end: Fraction) -> None:
        """Copies what is left: up to `end` (output seconds) with `trim`, else everything."""
        while (packet := self._next()) is not None:
            if self._trim and self._begin(packet) >= end:
                break
            self._mux(packet)

    def close(self) -> None:
        self._container.close()

    def _next(self) -> Any:
        """The next packet to copy, or None at the end."""
        packet, self._waiting = self._waiting, None
        while packet is None:
            with video_errors(self._name, "has damaged sound"):
                packet = next(self._packets, None)
            if packet is None:
                return None
            if packet.dts is None or (self._trim and self._begin(packet) < 0):
                packet = None
        return packet

    def _begin(self, packet: Any) -> Fraction:
        ticks = packet.pts if packet.pts is not None else packet.dts
        return ticks * Fraction(packet.time_base) - self._zero

    def _mux(self, packet: Any) -> None:
        shift = round(self._zero / Fraction(packet.time_base))
        packet.dts -= shift
        if packet.pts is not None:
            packet.pts -= shift
        packet.stream = self._outputs[packet.stream.index]
        self._output.mux(packet)


def _video_start(container: Any, name: str) -> Fraction:
    """The time of the first picture on the clock of the file; 0 for a file with sound only."""
    try:
        stream = video_stream(container, name)
    except VideoError:
        return Fraction(0)
    return (stream.start_time or 0) * Fraction(stream.time_base)
