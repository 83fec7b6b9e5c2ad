"""A video in, a restored video out, of any length, with nothing lost: the one engine below command line and nodes.

    frames -> restorer.stream -> encoder-ready frames -> journal (lossless chunks) and encoder, side by side

The encoder is given the same frames in the same order whether they were just restored or come out of the journal, so
a run that was interrupted ends in the same file, bit for bit, as one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import VideoError, require
from .progress import Progress
from .streaming import FROM_START, Resume
from .video.chunks import pack_frames, unpack_frames
from .video.formats import CODECS, codec_for, is_high_10
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
    on_frames: Callable[[int], object] | None = None,
) -> Result:
    """Restores `footage` into `output`; continues what an earlier call of the same job has left in the journal.

    `settings`: keyword arguments of `Restorer.stream`, with `scale`. progress and check_cancel: as there, and for every
    frame that is only read on. on_frames(k) is called for every k frames that are done. A call that fails or is
    cancelled leaves no file under the final name, and its finished frames in the journal. Errors: SeTeVSRError of any
    kind, in one sentence.
    """
    size = target_size(*footage.size, settings["scale"])
    resume, total = FROM_START, footage.expected_frames

    def read() -> Iterator[Tensor]:
        """The source's frames. The plan of segments and the search for cuts need them all; those that the journal
        has are encoded as they pass, since only then their times are known.
        """
        for index, frame in enumerate(footage.frames):
            if index < resume.first_frame:
                if check_cancel is not None:
                    check_cancel()
                if progress is not None:
                    share = min(index / total, 1.0) if total else 0.0
                    progress(share, f"reading on to frame {resume.first_frame + 1}", None)
                sink.encode_kept(1)
            yield frame

    with ExitStack() as open_parts:
        journal = _open_journal(restorer, footage, output, settings, check_cancel, open_parts)
        if journal is not None:
            resume = _resume_of(journal)
        # The restorer checks its settings in this call, before the output file is begun.
        blocks = restorer.stream(
            read(), num_frames=total, resume=resume, on_carry=None if journal is None else _keep_in(journal),
            progress=progress, check_cancel=check_cancel, **settings,
        )  # fmt: skip
        writer = open_parts.enter_context(_open_writer(footage, output, size))
        if journal is not None and total is not None:
            _warn_of_a_full_disk(journal.folder, size, writer.pixel_format, total - resume.first_frame)
        sink = _Sink(writer, footage, journal, on_frames)
        for block in blocks:
            sink.take(block)
        sink.encode_kept()
        writer.close()
        if journal is not None:
            journal.finish()
    return Result(writer.path, writer.num_frames, size, resume.first_frame)


class _Sink:
    """Where finished frames go: into the journal first, then to the encoder."""

    def __init__(
        self,
        writer: VideoWriter | SequenceWriter,
        footage: Footage,
        journal: Journal | None,
        on_frames: Callable[[int], object] | None,
    ) -> None:
        self._writer = writer
        self._journal = journal
        self._time = footage.times
        self._on_frames = on_frames or (lambda count: None)
        self._kept = self._unpacked([] if journal is None else journal.chunks())

    def take(self, block: Tensor) -> None:
        """New frames (k,H,W,C), after all that the journal had."""
        prepared = [self._writer.prepare(picture) for picture in block]
        if self._journal is not None:
            self._journal.add(pack_frames(prepared), len(prepared))
        self._encode(prepared)

    def encode_kept(self, count: int | None = None) -> None:
        """Encodes the next `count` frames that came out of the journal; None for all that are left."""
        self._encode(islice(self._kept, count))

    def _encode(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            self._writer.add(frame, None if self._time is None else self._time(self._writer.num_frames))
            self._on_frames(1)

    def _unpacked(self, chunks: Iterable[Path]) -> Iterator[Any]:
        for path in chunks:
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
    writer = VideoWriter(
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
    if is_high_10(codec_for(output.path, output.codec), writer.pixel_format):
        logger.warning(
            "'%s' becomes 10-bit H.264 (High 10), as its source has more than 8 bits a channel: Apple's players and "
            "some browsers do not play that; 'setevsr restore --codec h265' makes what more of them do", output.path,
        )  # fmt: skip
    return writer


def _warn_of_a_full_disk(folder: Path, size: tuple[int, int], pixel_format: str, num_frames: int) -> None:
    """Says so if the lossless chunks of so many frames may not fit. FFV1 needs less than plain pixels, by how much
    depends on the video.
    """
    bits = require("av", "av", "writing a video").VideoFormat(pixel_format).bits_per_pixel
    needed = num_frames * size[0] * size[1] * bits / 8
    free = shutil.disk_usage(folder).free
    if free < needed:
        logger.warning(
            "the disk may become full: finished frames are kept in '%s' without loss until the end, which takes up to "
            "%.1f GB, and %.1f GB are free; if it does, free some space and run the same again: it continues",
            folder, needed / 2**30, free / 2**30,
        )  # fmt: skip


def _open_journal(
    restorer: Any,
    footage: Footage,
    output: Output,
    settings: Mapping[str, Any],
    check_cancel: Callable[[], None] | None,
    parts: ExitStack,
) -> Journal | None:
    """The locked journal; None where none is asked for, or its place does not exist."""
    if output.journal is None or not output.journal.parent.is_dir():
        return None
    options = {name: value for name, value in footage.options.items() if name != "audio_from"}
    job = {
        "input": footage.identity,
        "settings": restorer.fingerprint(**settings),
        "output": repr(
            (output.path.suffix.lower(), output.codec, output.quality, footage.depth, footage.alpha, options)
        ),
    }
    return parts.enter_context(Journal(output.journal, job, check_cancel))


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
