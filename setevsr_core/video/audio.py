"""Sound is copied packet by packet, never decoded: no loss, no dependence on codecs, and sync by time stamps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ..errors import VideoError
from .source import VideoSource, audio_streams, name_of, open_source, video_errors, video_stream

logger = logging.getLogger(__name__)


class AudioCopy:
    """Feeds the audio packets of `source` into an output container, in step with the pictures.

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
        except BaseException:
            self._container.close()
            raise
        self._output = output
        self._packets: Iterator[Any] = self._container.demux(*streams) if streams else iter(())
        self._waiting: Any = None

    def _add(self, stream: Any, output: Any, output_name: str) -> Any:
        codec = stream.codec_context.name
        if stream.codec_context.codec.canonical_name not in output.supported_codecs:
            raise VideoError(f"'{output_name}' cannot hold the sound of '{self._name}' ({codec}); name it .mkv or .mov")
        copy = output.add_stream_from_template(stream)
        copy.metadata.update(stream.metadata)
        return copy

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
