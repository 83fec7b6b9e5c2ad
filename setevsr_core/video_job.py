"""A video in, a restored video out, of any length, with nothing lost: the one engine below command line and nodes.

    frames -> restorer.stream -> encoder-ready frames -> journal (lossless chunks) and encoder, side by side

The encoder is given the same frames in the same order whether they were just restored or come out of the journal, so
a run that was interrupted ends in the same file, bit for bit, as one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import VideoError
from .progress import Progress
from .streaming import Resume
from .video.chunks import pack_frames, unpack_frames
from .video.formats import CODECS, codec_for
from .video.journal import Journal
from .video.reading import VideoReader
from .video.resize import target_size
from .video.sequence import SequenceReader, SequenceWriter, is_pattern
from .video.writing import VideoWriter

logger = logging.getLogger(__name__)

_SAMPLE = 2**20  # bytes read from either end of a file to know it again


@dataclass(frozen=True)
class Footage:
    """Frames (H,W,3|4) in 0..1 that can be read again from the beginning, and what a result must keep of them.

    size: (H, W). identity: the same for the same video wherever it lies, another one for any other. expected_frames:
    for progress, None if unknown. times: seconds of the frames read so far, None for a constant rate; time_base: their
    tick. options: further arguments of `VideoWriter` (colour, sound, ...).
    """

    frames: Iterable[Tensor]
    frame_rate: Fraction
    size: tuple[int, int]
    identity: str
    expected_frames: int | None = None
    depth: int = 8
    alpha: bool = False
    time_base: Fraction | None = None
    times: Callable[[int], Fraction] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """Where the result goes and how it is encoded. journal: the folder for unfinished work, None for no resuming."""

    path: Path
    codec: str | None = None
    quality: float | None = None
    journal: Path | None = None


@dataclass(frozen=True)
class Result:
    """path: the finished file. resumed: how many frames were taken over from an earlier run."""

    path: Path
    num_frames: int
    size: tuple[int, int]
    resumed: int


def footage_of(reader: VideoReader | SequenceReader) -> Footage:
    """The whole part of the video that `reader` was opened for, with its sound, colours, depth and frame times."""
    if reader.unkept:
        logger.warning("'%s' has %s, which the result does not keep", reader.name, ", ".join(reader.unkept))
    if isinstance(reader, SequenceReader):
        return Footage(
            reader, reader.frame_rate, reader.size, reader.identity, len(reader), reader.bit_depth, reader.alpha
        )
    even = reader.even()
    if not even:
        logger.info("'%s' has no constant frame rate: every frame keeps its own time", reader.name)
    if reader.interlaced:
        logger.warning("'%s' is interlaced, and its combs would be restored as detail; deinterlace it first: "
                       "ffmpeg -i IN -vf bwdif -crf 10 -c:a copy OUT.mkv", reader.name)  # fmt: skip

    def time(index: int) -> Fraction:
        return reader.times[index] * reader.time_base

    return Footage(
        reader,
        reader.frame_rate,
        reader.size,
        _identity_of(reader),
        reader.expected_frames,
        reader.bit_depth,
        reader.alpha,
        None if even else reader.time_base,
        None if even else time,
        {"colour": reader.tags, "pixel_aspect": reader.pixel_aspect, "audio_from": reader},
    )


def restore_video(
    restorer: Any,
    footage: Footage,
    output: Output,
    settings: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    check_cancel: Callable[[], None] | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> Result:
    """Restores `footage` into `output`; continues what an earlier call of the same job has left in the journal.

    `settings`: keyword arguments of `Restorer.stream`, with `scale`. on_frames(k) is called for every k frames that
    are done. A call that fails or is cancelled leaves no file under the final name, and its finished frames in the
    journal. Errors: SeTeVSRError of any kind, in one sentence.
    """
    size = target_size(*footage.size, settings["scale"])
    calls: dict[str, Any] = {"check_cancel": check_cancel} if check_cancel is not None else {}
    with ExitStack() as open_parts:
        journal = _open_journal(restorer, footage, output, settings, open_parts)
        done = 0
        if journal is not None:
            done = journal.frames_done
            calls |= {"resume": _resume_of(journal), "on_carry": _keep_in(journal)}
        # The restorer checks its settings in this call, before the output file is begun.
        blocks = restorer.stream(
            iter(footage.frames), num_frames=footage.expected_frames, progress=progress, **calls, **settings
        )
        writer = open_parts.enter_context(_open_writer(footage, output, size))
        frames = _Sink(writer, footage, journal, on_frames)
        frames.replay(check_cancel)
        for block in blocks:
            frames.take(block)
        frames.flush()
        writer.close()
        if journal is not None:
            journal.finish()
    return Result(writer.path, writer.num_frames, size, done)


class _Sink:
    """Where finished frames go: into the journal first, then to the encoder."""

    def __init__(
        self,
        writer: VideoWriter | SequenceWriter,
        footage: Footage,
        journal: Journal | None,
        on_frames: Callable[[int], None] | None,
    ) -> None:
        self._writer = writer
        self._journal = journal
        self._time = footage.times
        self._on_frames = on_frames or (lambda count: None)
        # Frames of the journal are encoded once their times are known, that is when the source was read so far.
        self._waiting: Iterator[Any] = iter(())
        self._frames_waiting = 0

    def replay(self, check_cancel: Callable[[], None] | None) -> None:
        """Takes over the frames of the journal."""
        if self._journal is None:
            return
        self._waiting, self._frames_waiting = self._kept(check_cancel), self._journal.frames_done
        if self._time is None:
            self.flush()

    def take(self, block: Tensor) -> None:
        """New frames (k,H,W,C)."""
        self.flush()
        prepared = [self._writer.prepare(picture) for picture in block]
        if self._journal is not None:
            self._journal.add(pack_frames(prepared), len(prepared))
        self._encode(prepared)

    def flush(self) -> None:
        """Encodes what came out of the journal, if that has not happened yet."""
        self._encode(self._waiting)
        self._waiting = iter(())

    def _encode(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            self._writer.add(frame, None if self._time is None else self._time(self._writer.num_frames))
            self._on_frames(1)

    def _kept(self, check_cancel: Callable[[], None] | None) -> Iterator[Any]:
        assert self._journal is not None
        for path in self._journal.chunks():
            if check_cancel is not None:
                check_cancel()
            yield from unpack_frames(path.read_bytes(), self._writer.pixel_format)


def _resume_of(journal: Journal) -> Resume:
    from safetensors.torch import load

    data = journal.carried()
    return Resume(journal.frames_done, None if data is None else load(data)["frames"])


def _keep_in(journal: Journal) -> Callable[[Resume], None]:
    from safetensors.torch import save

    def keep(state: Resume) -> None:
        if state.carried is not None:
            journal.carry(state.first_frame, save({"frames": state.carried.cpu().contiguous()}))

    return keep


def _open_writer(footage: Footage, output: Output, size: tuple[int, int]) -> VideoWriter | SequenceWriter:
    if is_pattern(output.path):
        return SequenceWriter(output.path, size, depth=footage.depth, alpha=footage.alpha, quality=output.quality)
    return VideoWriter(
        output.path,
        footage.frame_rate,
        size,
        codec=output.codec,
        quality=output.quality,
        depth=footage.depth,
        alpha=footage.alpha,
        time_base=footage.time_base,
        **footage.options,
    )


def _open_journal(
    restorer: Any, footage: Footage, output: Output, settings: Mapping[str, Any], parts: ExitStack
) -> Journal | None:
    """The locked journal; None without one, or for a restorer that cannot say what decides its result."""
    if output.journal is None or not hasattr(restorer, "fingerprint") or not output.journal.parent.is_dir():
        return None
    options = {name: value for name, value in footage.options.items() if name != "audio_from"}
    job = {
        "input": footage.identity,
        "settings": restorer.fingerprint(**settings),
        "output": repr(
            (output.path.suffix.lower(), output.codec, output.quality, footage.depth, footage.alpha, options)
        ),
    }
    return parts.enter_context(Journal(output.journal, job))


def job_name(restorer: Any, footage: Footage, settings: Mapping[str, Any], *more: Any) -> str:
    """A short name that is the same for the same job, for a journal that has no output file to lie beside."""
    text = repr((footage.identity, restorer.fingerprint(**settings), more))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def keeps_alpha(path: Path, codec: str | None) -> bool:
    """True if a result under this name can hold transparency. Errors: as `formats.codec_for`."""
    if is_pattern(path):
        return path.suffix.lower() in (".png", ".tif", ".tiff")
    return bool(CODECS[codec_for(path, codec)].alpha)


def _identity_of(reader: VideoReader) -> str:
    """Independent of the path: size, head and tail of the file, facts of the stream, and the chosen part."""
    source = reader.source
    facts = (reader.frame_rate, reader.size, reader.num_frames, reader.tags, reader.start, reader.duration)
    if isinstance(source, (str, os.PathLike)):
        try:
            with open(source, "rb") as file:
                return _sampled(file, facts)
        except OSError as error:
            raise VideoError(f"'{reader.name}' cannot be read: {error.strerror}") from error
    return _sampled(source, facts)


def _sampled(file: Any, facts: Sequence[Any]) -> str:
    length = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256(f"{length} {facts!r}".encode())
    for place in (0, max(0, length - _SAMPLE)):
        file.seek(place)
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
