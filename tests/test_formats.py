"""What a video has is what its result has: rate, times, depth, colours, sound, subtitles, chapters, transparency."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from setevsr_core.errors import MissingPackageError, SettingsError, VideoError
from setevsr_core.video import formats
from setevsr_core.video.reading import VideoReader
from setevsr_core.video.sequence import SequenceReader, SequenceWriter
from setevsr_core.video.writing import VideoWriter
from setevsr_core.video.yuv import ColourTags
from setevsr_core.video_job import footage_of

from .video_helpers import gradient_frames, make_clip, stream_facts

av = pytest.importorskip("av")


def uneven_clip(path: Path) -> tuple[Path, list[Fraction]]:
    """A clip of 12 frames that are 40 ms apart, with two long waits; returns it and the times in seconds."""
    ticks = [0, 40, 80, 120, 1000, 1040, 1080, 2000, 2040, 2080, 2120, 2160]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width = 16, 24
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, tick in enumerate(ticks):
            picture = gradient_frames(12, 16, 24)[index].mul(255).byte().numpy()
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path, [Fraction(tick, 1000) for tick in ticks]


def write(path: Path, frames: torch.Tensor, **options: Any) -> Path:
    with VideoWriter(path, Fraction(30000, 1001), (frames.shape[1], frames.shape[2]), **options) as writer:
        writer.write(frames)
    return path


@pytest.mark.parametrize(
    ("codec", "suffix", "depth", "pixel_format"),
    [
        ("h264", ".mp4", 8, "yuv420p"), ("h264", ".mkv", 10, "yuv420p10le"),
        ("h265", ".mp4", 8, "yuv420p"), ("h265", ".mov", 10, "yuv420p10le"),
        ("av1", ".mp4", 8, "yuv420p"), ("av1", ".webm", 10, "yuv420p10le"),
        ("vp9", ".webm", 8, "yuv420p"), ("ffv1", ".mkv", 8, "yuv444p"), ("ffv1", ".mkv", 10, "yuv444p10le"),
        ("prores", ".mov", 10, "yuv422p10le"), (None, ".webm", 8, "yuv420p"),
    ],
)  # fmt: skip
def test_codecs_keep_picture_rate_and_tags(
    tmp_path: Path, codec: str | None, suffix: str, depth: int, pixel_format: str
) -> None:
    frames = gradient_frames(5, 96, 128)
    tags = ColourTags(1, 1, 1)
    paths = [write(tmp_path / f"{name}{suffix}", frames, codec=codec, depth=depth, colour=tags) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()  # the same input, the same file
    facts = stream_facts(paths[0])
    assert facts["pix_fmt"] == pixel_format and len(facts["times"]) == 5
    if suffix in (".mp4", ".mov"):
        assert facts["rate"] == Fraction(30000, 1001)
    with VideoReader(paths[0]) as reader:
        assert reader.tags.matrix == 1 and not reader.tags.full_range
        assert (torch.stack(list(reader)) - frames).abs().mean() < 3 / 255


@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "vp9", "ffv1", "prores"])
def test_odd_sizes_keep_every_pixel(tmp_path: Path, codec: str) -> None:
    suffix = ".mov" if codec == "prores" else ".mkv"
    path = write(tmp_path / f"a{suffix}", gradient_frames(3, 65, 97), codec=codec)
    with VideoReader(path) as reader:
        assert reader.size == (65, 97)
        assert (torch.stack(list(reader)) - gradient_frames(3, 65, 97)).abs().mean() < 4 / 255


@pytest.mark.parametrize(("codec", "suffix"), [("prores", ".mov"), ("vp9", ".webm"), ("ffv1", ".mkv")])
def test_transparency_is_kept(tmp_path: Path, codec: str, suffix: str) -> None:
    frames = torch.cat([gradient_frames(3, 64, 96), torch.linspace(0, 1, 96).expand(3, 64, 96)[..., None]], dim=-1)
    path = write(tmp_path / f"a{suffix}", frames, codec=codec, alpha=True)
    with VideoReader(path, alpha=True) as reader:
        assert reader.alpha
        assert (torch.stack(list(reader)) - frames)[..., 3].abs().mean() < 3 / 255
    assert next(iter(VideoReader(path))).shape == (64, 96, 3)
    with pytest.raises(SettingsError, match="transparency"):
        write(tmp_path / "b.mp4", frames, alpha=True)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_range_and_matrix_are_kept_and_tagged(tmp_path: Path, matrix: int, full: bool) -> None:
    tags = ColourTags(matrix, 1, 1, full)
    with VideoReader(write(tmp_path / "a.mp4", gradient_frames(2), colour=tags)) as reader:
        assert (reader.tags.matrix, reader.tags.full_range) == (matrix, full)


@pytest.mark.parametrize(
    ("name", "codec", "error", "message"),
    [
        ("a.webm", "h264", VideoError, "cannot hold h264"),
        ("a.mp4", "prores", VideoError, "cannot hold prores"),
        ("a.mp4", "dirac", SettingsError, "choose one of"),
        ("a.avi", None, VideoError, "ending"),
    ],
)
def test_what_does_not_go_together_is_said(
    tmp_path: Path, name: str, codec: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write(tmp_path / name, gradient_frames(1), codec=codec)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_encoder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = formats.CODECS["h264"]
    monkeypatch.setitem(formats.CODECS, "h264", formats.Codec(**{**codec.__dict__, "encoder": "libnothing"}))
    with pytest.raises(MissingPackageError, match="no encoder 'libnothing' for h264"):
        write(tmp_path / "a.mp4", gradient_frames(1))


def test_even_and_uneven_times_are_told_apart(tmp_path: Path) -> None:
    assert VideoReader(make_clip(tmp_path / "a.mp4", rate=Fraction(30000, 1001))).even()
    assert VideoReader(make_clip(tmp_path / "a.mkv", rate=Fraction(30000, 1001))).even()
    assert VideoReader(make_clip(tmp_path / "a.mp4"), 0.1, 0.2).even()
    path, _ = uneven_clip(tmp_path / "b.mkv")
    assert not VideoReader(path).even()


# ---- folders of pictures


@pytest.mark.parametrize(
    ("ending", "depth", "alpha", "tolerance"),
    [(".png", 8, False, 0.5 / 255), (".png", 16, True, 1 / 65535), (".tiff", 16, False, 1 / 65535),
     (".jpg", 8, False, 3 / 255), (".tif", 8, True, 0.5 / 255)],
)  # fmt: skip
def test_pictures_come_back(tmp_path: Path, ending: str, depth: int, alpha: bool, tolerance: float) -> None:
    frames = gradient_frames(11, 32, 48)
    if alpha:
        frames = torch.cat([frames, frames[..., :1]], dim=-1)
    pattern = tmp_path / "pictures" / f"frame_%d{ending}"
    with SequenceWriter(pattern, (32, 48), depth=depth, alpha=alpha) as writer:
        for frame in frames:
            writer.add(writer.prepare(frame))
        assert not pattern.parent.exists()
    reader = SequenceReader(pattern.parent, alpha=True)
    assert len(reader) == 11 and reader.alpha == alpha and reader.bit_depth == depth
    assert (torch.stack(list(reader)) - frames).abs().mean() <= tolerance
    with pytest.raises(VideoError, match="not empty"):
        SequenceWriter(pattern, (32, 48))
    assert len(SequenceReader(pattern.parent, Fraction(10), 0.2, 0.5)) == 5


# ---- subtitles, chapters, metadata


def annotated_clip(path: Path) -> Path:
    """A clip of one second with sound, subtitles (SubRip), two chapters and a title."""
    plain = make_clip(path.with_name("plain.mkv"), count=24)
    text = path.with_name("text.srt")
    text.write_text("1\n00:00:00,100 --> 00:00:00,400\nHello\n\n2\n00:00:00,500 --> 00:00:00,900\nWörld\n", "utf-8")
    with av.open(str(plain)) as movie, av.open(str(text)) as words, av.open(str(path), "w") as output:
        output.metadata["title"] = "A title"
        output.set_chapters(
            [
                {"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
                {"id": 2, "start": 500, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
            ]
        )
        sources = [*movie.streams, words.streams.subtitles[0]]
        copies = {id(stream): output.add_stream_from_template(stream) for stream in sources}
        for container in (movie, words):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = copies[id(packet.stream)]
                    output.mux(packet)
    return path


def copy_of(source: Path, target: Path) -> Path:
    with VideoReader(source) as reader, VideoWriter(target, 24, reader.size, audio_from=reader) as writer:
        for frame in reader:
            writer.write(frame)
    return target


def test_subtitles_chapters_and_metadata_come_along(tmp_path: Path) -> None:
    source = annotated_clip(tmp_path / "in.mkv")
    with av.open(str(copy_of(source, tmp_path / "out.mkv"))) as container:
        packets = [packet for packet in container.demux(container.streams.subtitles[0]) if packet.size]
        assert [bytes(packet).decode() for packet in packets] == ["Hello", "Wörld"]
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["one", "two"]
        assert {key.lower(): value for key, value in container.metadata.items()}["title"] == "A title"
        assert len(container.streams.audio) == 1


def test_subtitles_that_do_not_fit_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = annotated_clip(tmp_path / "in.mkv")
    with av.open(str(copy_of(source, tmp_path / "out.mp4"))) as container:
        assert not container.streams.subtitles and len(container.streams.audio) == 1
    assert [line for line in caplog.messages if "subtitles" in line].__len__() == 1


def test_tracks_keep_their_marks_and_fonts_come_along(tmp_path: Path) -> None:
    """What players choose by themselves, here the second sound and forced subtitles."""
    source, kinds = annotated_clip(tmp_path / "plain.mkv"), av.stream.Disposition
    marks = [kinds.default, kinds.comment, kinds.default, kinds.default | kinds.forced]
    with av.open(str(source)) as movie, av.open(str(tmp_path / "in.mkv"), "w") as output:
        streams = [*movie.streams.video, *movie.streams.audio, *movie.streams.audio, *movie.streams.subtitles]
        copies = [output.add_stream_from_template(stream) for stream in streams]
        for copy, mark in zip(copies, marks, strict=True):
            copy.disposition = mark
        if hasattr(output, "add_attachment"):
            output.add_attachment("a.ttf", "font/ttf", b"letters")
        for packet in movie.demux():
            if packet.dts is not None:
                packet.stream = copies[streams.index(packet.stream)]
                output.mux(packet)
    with av.open(str(copy_of(tmp_path / "in.mkv", tmp_path / "out.mkv"))) as container:
        assert [stream.disposition for stream in container.streams if stream.type != "attachment"][1:] == marks[1:]
        if hasattr(container.streams, "attachments"):
            assert [(file.name, file.data) for file in container.streams.attachments] == [("a.ttf", b"letters")]


HDR = ("log-level=error:hdr10=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:max-cll=1000,400:"
       "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)")  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "pixel_format", "options", "said"),
    [
        ("libx264", "yuv420p", {"x264-params": "tff=1"}, ["is interlaced.*bwdif"]),
        ("libx265", "yuv420p10le", {"x265-params": HDR}, ["HDR mastering data, HDR light levels, which the result"]),
        ("libx264", "yuv420p", {}, []),
        ("png", "rgba", {}, []),  # nothing can be seen through it
    ],
)
def test_what_the_result_cannot_keep_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, pixel_format: str, options: dict[str, str],
    said: list[str],
) -> None:  # fmt: skip
    with VideoReader(make_clip(tmp_path / "a.mov", 3, codec=codec, pixel_format=pixel_format, options=options)) as clip:
        footage_of(clip)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == len(said)
    assert all(re.search(words, line) for words, line in zip(said, lines, strict=True))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", ["ffv1", "vp9", "png"])
def test_transparency_that_is_dropped_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, kept: bool
) -> None:
    frames = torch.cat([gradient_frames(2, 32, 48), torch.full((2, 32, 48, 1), 0.5)], dim=-1)
    if kind == "png":
        with SequenceWriter(tmp_path / "frames" / "%d.png", (32, 48), alpha=True) as writer:
            for frame in frames:
                writer.add(writer.prepare(frame))
        footage_of(SequenceReader(tmp_path / "frames", alpha=kept))
    else:
        path = write(tmp_path / f"a.{'mkv' if kind == 'ffv1' else 'webm'}", frames, codec=kind, alpha=True)
        with VideoReader(path, alpha=kept) as reader:
            footage_of(reader)
    assert ("has transparency, which the result does not keep" in caplog.text) is not kept
