"""Sound and subtitles are copied packet by packet, without loss, in sync by their time stamps. Only a sound track that
the output cannot hold is encoded again. Chapters, attached fonts and the container's metadata come along.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ..errors import VideoError
from .formats import takes
from .recoding import PREROLL, RecodedTrack, encoding_for, layout_of
from .source import VideoSource, audio_streams, name_of, open_source, video_errors, video_stream

logger = logging.getLogger(__name__)


INTERLEAVING = 10
"""Seconds of a file beyond the end of a part in which packets from before it are still looked for: streams lie side by
side, but not packet by packet, and one may simply have no more."""

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


class AudioCopy:
    """Feeds the packets of sound and subtitles of `source` into an output container, in step with the pictures.

    `zero` is the time on the source's clock (seconds) that becomes time 0 of the output, that is the time of the
    first picture; None takes the start of the source's video stream. Without `trim` all packets are copied. With
    `trim` those that begin before `zero`, or after the end given to `finish`, are left out: the sound stays in sync
    to one clock tick of its stream, while its two ends are exact to one packet (AAC at 48 kHz: 21 ms). Sound that is
    encoded again begins to the sample.
    Errors: VideoError when the output format can hold the source's sound neither as it is nor encoded again.
    """

    def __init__(self, source: VideoSource, output: Any, output_name: str, zero: Fraction | None, trim: bool) -> None:
        self._name = name_of(source)
        self._output_name = output_name
        self._trim = trim
        self._output = output
        self._copies: dict[int, Any] = {}
        self._recoded: dict[int, RecodedTrack] = {}
        self._latest: dict[int, int] = {}  # time stamp of the packet before, by the index of a sound track
        self._went_back = False
        self._container = open_source(source)
        try:
            self._zero = _video_start(self._container, self._name) if zero is None else zero
            streams = audio_streams(self._container)
            for stream in streams:
                self._add(stream)
            streams += [stream for stream in self._container.streams.subtitles if self._add_text(stream)]
            self._copy_facts(output)
        except BaseException:
            self._container.close()
            raise
        self._packets: Iterator[Any] = self._container.demux(*streams) if streams else iter(())
        self._waiting: Any = None

    def _add(self, stream: Any) -> None:
        """A track for the sound `stream`: its copy, or one that is encoded again."""
        if self._holds(stream):
            copy = self._copy(stream)
            copy.codec_context.layout = layout_of(stream)  # MP4 wants to know which channels PCM has
            return
        codec = stream.codec_context.codec.canonical_name
        encoding = encoding_for(stream, self._output.format.name)
        if encoding is None:
            raise VideoError(f"'{self._output_name}' cannot hold the sound of '{self._name}' ({codec}); name it .mkv")
        logger.warning("'%s' cannot hold the sound of '%s' (%s) as it is; it is encoded again (%s)",
                       self._output_name, self._name, codec, encoding.codec)  # fmt: skip
        track = encoding(self._output)
        _copy_marks(stream, track)
        self._recoded[stream.index] = RecodedTrack(stream, track, self._name, self._zero, self._trim)

    def _add_text(self, stream: Any) -> bool:
        """False, with a warning, for subtitles that the output cannot hold: pictures and sound are worth having."""
        if stream.codec_context is not None and self._holds(stream):
            self._copy(stream)
            return True
        kind = "unknown kind" if stream.codec_context is None else stream.codec_context.codec.canonical_name
        logger.warning("'%s' cannot hold the subtitles of '%s' (%s), they are left out; .mkv holds most kinds",
                       self._output_name, self._name, kind)  # fmt: skip
        return False

    def _holds(self, stream: Any) -> bool:
        return takes(self._output.format.name, lambda output: output.add_stream_from_template(stream))

    def _copy(self, stream: Any) -> Any:
        copy = self._copies[stream.index] = self._output.add_stream_from_template(stream)
        _copy_marks(stream, copy)
        return copy

    def _copy_facts(self, output: Any) -> None:
        """Metadata that the output does not have yet, the fonts of subtitles and, of a whole video, the chapters."""
        for key, value in self._container.metadata.items():
            if key.lower() not in _OWN_METADATA and key not in output.metadata:
                output.metadata[key] = value
        if output.format.name == "matroska" and hasattr(output, "add_attachment"):  # PyAV 17
            for file in self._container.streams.attachments:
                if file.name and file.mimetype:  # else Matroska refuses it
                    output.add_attachment(file.name, file.mimetype, file.data)
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
        going_on = {*self._copies, *self._recoded}
        while going_on and (packet := self._next()) is not None:
            begin = self._begin(packet)
            if not self._trim or begin < end:
                self._mux(packet)
            elif begin < end + INTERLEAVING:
                going_on.discard(packet.stream.index)
            else:
                break
        for track in self._recoded.values():
            self._output.mux(list(track.finish()))

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
            if packet.dts is None or (self._trim and self._begin(packet) < self._earliest(packet)):
                packet = None
        return packet

    def _earliest(self, packet: Any) -> Fraction:
        """When the first packets of this stream begin that are of use to a part."""
        return -PREROLL if packet.stream.index in self._recoded else Fraction(0)

    def _begin(self, packet: Any) -> Fraction:
        ticks = packet.pts if packet.pts is not None else packet.dts
        return ticks * Fraction(packet.time_base) - self._zero

    def _mux(self, packet: Any) -> None:
        if (track := self._recoded.get(packet.stream.index)) is not None:
            self._output.mux(list(track.take(packet)))
            return
        if packet.stream.type == "audio" and not self._in_order(packet):
            return
        shift = round(self._zero / Fraction(packet.time_base))
        packet.dts -= shift
        if packet.pts is not None:
            packet.pts -= shift
        packet.stream = self._copies[packet.stream.index]
        self._output.mux(packet)

    def _in_order(self, packet: Any) -> bool:
        """Moves a packet of sound that begins before the one in front of it, which no container takes, behind that.
        False if it would be over by then.
        """
        latest = self._latest.get(packet.stream.index)
        if latest is not None and packet.dts < latest:
            if not self._went_back:
                logger.warning("'%s' has sound whose time stamps go back; what overlaps is left out", self._name)
            self._went_back = True
            if packet.dts + (packet.duration or 0) <= latest:
                return False
            packet.dts = latest + 1
            packet.pts = max(packet.dts, packet.pts or 0)
        self._latest[packet.stream.index] = packet.dts
        return True


def _copy_marks(stream: Any, track: Any) -> None:
    """Language, title, and whether players choose the track by themselves (default, forced, for the deaf, ...)."""
    track.metadata.update(stream.metadata)
    track.disposition = stream.disposition


def _video_start(container: Any, name: str) -> Fraction:
    """The time of the first picture on the clock of the file; 0 for a file with sound only."""
    try:
        stream = video_stream(container, name)
    except VideoError:
        return Fraction(0)
    return (stream.start_time or 0) * Fraction(stream.time_base)
