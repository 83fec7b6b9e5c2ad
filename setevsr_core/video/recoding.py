"""A sound track that a container cannot hold, decoded and encoded again; its place in time stays the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ..errors import require
from .formats import takes
from .source import reason_of

logger = logging.getLogger(__name__)

PREROLL = Fraction(1, 2)
"""Seconds of sound to decode before the first that is kept: what a decoder makes of its very first packets is not yet
right."""
BIT_RATE = 96_000
"""Bits a second for each channel: hard to tell from the source."""
DRIFT = 0.04
"""Seconds that sound may be off its time stamps, which are often rounded. Further off, silence is put in or sound is
cut, so that a gap does not make all that follows early; an offset as small as this nobody notices."""
LONG_GAP = 10
"""A gap of more seconds is left as it is instead: no silence is encoded."""

USUAL_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""FFmpeg's names by the number of channels."""


def layout_of(stream: Any) -> str:
    """FFmpeg's name for the channels of an audio stream; the usual ones where the file tells only their number."""
    name = str(stream.layout.name)
    return USUAL_LAYOUTS.get(stream.layout.nb_channels, name) if name.endswith("channels") else name


def encodable_rate(codec: str, rate: int) -> int:
    """The sample rate itself, or the next that the encoder `codec` knows."""
    rates = require("av", "av", "writing a video").Codec(codec, "w").audio_rates
    if not rates or rate in rates:
        return rate
    return min((able for able in rates if able > rate), default=max(rates))


class Encoding:
    """How the audio `stream` is encoded anew: called with an output container, it adds the new track and returns it.

    codec: FFmpeg's name of the encoder. layout: of the channels; the rate is the source's or the next that the
    encoder knows. Errors: ValueError or FFmpegError, some only when the output begins, for what cannot be.
    """

    def __init__(self, stream: Any, codec: str, layout: str) -> None:
        self._stream, self.codec, self._layout = stream, codec, layout

    def __call__(self, output: Any) -> Any:
        track = output.add_stream(
            self.codec, rate=encodable_rate(self.codec, self._stream.rate), layout=self._layout
        )
        context = track.codec_context
        if self.codec == "flac":
            context.format = "s16" if self._stream.format.bits <= 16 else "s32"
        else:
            context.bit_rate = BIT_RATE * context.layout.nb_channels
        return track


def encoding_for(stream: Any, container: str) -> Encoding | None:
    """The encoding of `stream` for a `container` (FFmpeg's name); None if none can be.

    FLAC for lossless sources, else AAC, and Opus where that cannot be. All channels are kept if the encoder can.
    """
    codecs = ("flac", "aac", "libopus") if stream.codec_context.codec.lossless else ("aac", "libopus")
    usual = USUAL_LAYOUTS.get(stream.layout.nb_channels, "stereo")
    for codec in codecs:
        for layout in (layout_of(stream), usual, "stereo"):
            encoding = Encoding(stream, codec, layout)
            if takes(container, encoding):
                return encoding
    return None


class RecodedTrack:
    """Takes the packets of the audio `stream` in order and gives those of `track`, which an `Encoding` has added.

    zero: the time on the source's clock, in seconds, that becomes time 0 of the track. With `trim` nothing is heard
    before it, to the sample; without, the track begins when the source does. What is damaged becomes silence.
    """

    def __init__(self, stream: Any, track: Any, name: str, zero: Fraction, trim: bool) -> None:
        self._stream, self._track, self._name, self._zero, self._trim = stream, track, name, zero, trim
        self._graph: Any = None  # the two filters below live as long as it does
        self._source: Any = None
        self._sink: Any = None
        self._kind: tuple[str, str, int] | None = None
        self._next = Fraction(0)
        self._damaged = False

    def take(self, packet: Any) -> Iterator[Any]:
        """The packets of the track that are ready after this packet of the source."""
        yield from self._decode(packet)

    def finish(self) -> Iterator[Any]:
        """The rest, after the last packet."""
        yield from self._decode(None)
        yield from self._drain()
        yield from self._track.encode(None)

    def _decode(self, packet: Any) -> Iterator[Any]:
        ffmpeg_error = require("av.error", "av", "reading a video").FFmpegError
        try:
            frames = self._stream.decode(packet)
        except ffmpeg_error as error:
            if not self._damaged:
                logger.warning("'%s' has damaged sound, which becomes silence: %s", self._name, reason_of(error))
            self._damaged = True
            return
        for frame in frames:
            yield from self._encode(frame)

    def _encode(self, frame: Any) -> Iterator[Any]:
        rate = frame.sample_rate
        kind = (frame.format.name, frame.layout.name, rate)
        begin = self._next if frame.pts is None else frame.pts * Fraction(frame.time_base) - self._zero
        if kind != self._kind or begin > self._next + LONG_GAP:
            yield from self._drain()
            self._open(kind, from_zero=self._trim and begin < 0)
        frame.pts, frame.time_base = round(begin * rate), Fraction(1, rate)
        self._next = begin + Fraction(frame.samples, rate)
        self._source.push(frame)
        yield from self._encoded()

    def _open(self, kind: tuple[str, str, int], from_zero: bool) -> None:
        """Filters that bring frames of a kind (format, layout, rate) onto the clock and into the form of the track."""
        graph = require("av.filter", "av", "writing a video").Graph()
        context = self._track.codec_context
        self._source = graph.add_abuffer(format=kind[0], layout=kind[1], sample_rate=kind[2])
        self._sink = graph.add("abuffersink")
        on_the_clock = f"{context.sample_rate}:async=1:min_hard_comp={DRIFT}" + (":first_pts=0" if from_zero else "")
        form = f"sample_fmts={context.format.name}:channel_layouts={context.layout.name}"
        chain = (self._source, graph.add("aresample", on_the_clock), graph.add("aformat", form), self._sink)
        graph.link_nodes(*chain).configure()
        self._graph, self._kind = graph, kind

    def _encoded(self) -> Iterator[Any]:
        while True:
            try:
                frame = self._sink.pull()
            except (BlockingIOError, EOFError):  # the filters want more, or have given all
                return
            yield from self._track.encode(frame)

    def _drain(self) -> Iterator[Any]:
        if self._source is not None:
            self._source.push(None)
            yield from self._encoded()
        self._source = None
