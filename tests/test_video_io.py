"""Videos are read in their true colours and written with exact time, tags, sound and never by halves."""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from setevsr_core.errors import InputError, SettingsError, VideoError
from setevsr_core.video.reading import VideoReader
from setevsr_core.video.writing import VideoWriter
from setevsr_core.video.yuv import ColourTags, rgb_to_yuv, yuv_to_rgb

from .video_helpers import audio_packets, gradient_frames, make_clip, stream_facts

av = pytest.importorskip("av")

COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (0.2, 0.5, 0.7)]


def read(path: Path, start: float = 0.0, duration: float | None = None) -> torch.Tensor:
    with VideoReader(path, start, duration) as reader:
        return torch.stack(list(reader))


def levels(frames: torch.Tensor) -> list[int]:
    """Which frames of `make_clip` these are, by their brightness."""
    return [round((float(frame.mean()) * 255 - 20) / 10) for frame in frames]


def write(path: Path, frames: torch.Tensor, rate: Fraction = Fraction(24), **settings: object) -> Path:
    with VideoWriter(path, rate, (frames.shape[1], frames.shape[2]), **settings) as writer:  # type: ignore[arg-type]
        writer.write(frames)
    return path


# --- reading


def test_properties_of_a_clip(tmp_path: Path) -> None:
    with VideoReader(make_clip(tmp_path / "a.mp4", count=12, rate=Fraction(30000, 1001))) as reader:
        assert reader.frame_rate == Fraction(30000, 1001)
        assert reader.size == (48, 64)
        assert reader.num_frames == reader.expected_frames == 12
        assert reader.has_audio and reader.bit_depth == 8 and reader.pixel_aspect == 1
        frames = list(reader)
    assert len(frames) == 12
    assert frames[0].shape == (48, 64, 3) and frames[0].dtype == torch.float32
    assert levels(torch.stack(frames)) == list(range(12))


def test_every_iteration_starts_anew_and_closing_ends_them(tmp_path: Path) -> None:
    reader = VideoReader(make_clip(tmp_path / "a.mp4", count=5))
    running = iter(reader)
    next(running)
    assert len(list(reader)) == 5
    reader.close()
    assert next(running, None) is None
    with pytest.raises(VideoError, match="closed"):
        iter(reader)


def test_decoding_is_lazy(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", count=12)
    with VideoReader(path) as reader:
        assert levels(next(iter(reader))[None]) == [0]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [
        (0, 0.25, range(0, 6)),
        (0.25, None, range(6, 12)),
        (0.25, 0.125, range(6, 9)),
        (0.2, 0, range(5, 12)),
        (0, 9, range(12)),
    ],
)
def test_a_part_of_the_video(
    tmp_path: Path, suffix: str, start: float, duration: float | None, expected: range
) -> None:
    path = make_clip(tmp_path / f"a{suffix}", count=12)
    assert levels(read(path, start, duration)) == list(expected)
    reader = VideoReader(path, start, duration)
    assert reader.expected_frames == pytest.approx(len(expected), abs=1)
    assert reader.num_frames is None


def test_a_part_without_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no frame"):
        VideoReader(make_clip(tmp_path / "a.mp4"), start=60)
    with pytest.raises(SettingsError, match="start"):
        VideoReader(tmp_path / "a.mp4", start=-1)
    with pytest.raises(SettingsError, match="duration"):
        VideoReader(tmp_path / "a.mp4", duration=float("nan"))


def test_a_file_object_is_read_like_the_file(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    memory = io.BytesIO(path.read_bytes())
    with VideoReader(memory) as reader:
        first, second = iter(reader), iter(reader)  # side by side on one object
        frames = [(next(first), next(second)) for _ in range(12)]
    assert all(torch.equal(a, b) for a, b in frames)
    assert torch.equal(torch.stack([a for a, _ in frames]), read(path))


def yuv_clip(
    path: Path, codes: tuple[int, int, int], size: tuple[int, int], pixel_format: str, tags: tuple[int, int] = (2, 0)
) -> Path:
    """A lossless one-frame clip whose planes hold the given code values; tags are (matrix, range)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = tags
        frame = av.VideoFrame(size[1], size[0], pixel_format)
        frame.colorspace, frame.color_range = tags
        deep = frame.format.components[0].bits > 8
        for plane, code in zip(frame.planes, codes, strict=True):
            np.frombuffer(plane, np.uint16 if deep else np.uint8)[:] = code
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


GREEN_709, GREEN_601 = (173, 42, 26), (145, 54, 34)


@pytest.mark.parametrize(
    ("codes", "size", "pixel_format", "tags", "rgb"),
    [
        (GREEN_601, (64, 64), "yuv420p", (2, 0), (0, 1, 0)),  # untagged SD
        (GREEN_709, (32, 1280), "yuv420p", (2, 0), (0, 1, 0)),  # untagged HD
        (GREEN_709, (64, 64), "yuv420p", (1, 1), (0, 1, 0)),  # tags win over the size
        (GREEN_601, (32, 1280), "yuv420p", (6, 1), (0, 1, 0)),
        (GREEN_601, (64, 64), "yuv444p", (5, 1), (0, 1, 0)),
        ((182, 30, 12), (64, 64), "yuv420p", (1, 2), (0, 1, 0)),  # full range BT.709
        ((128, 128, 128), (64, 64), "yuvj420p", (2, 2), (128 / 255,) * 3),
        ((16, 128, 128), (64, 64), "yuv422p", (1, 1), (0, 0, 0)),
        ((235, 128, 128), (64, 64), "yuv420p", (1, 1), (1, 1, 1)),
        ((941 // 2, 512, 512), (64, 64), "yuv420p10le", (1, 1), ((470 - 64) / 876,) * 3),
        ((692, 168, 105), (64, 64), "yuv420p10le", (1, 1), (0, 1, 0)),
    ],
)
def test_matrix_and_range_are_those_of_the_file(
    tmp_path: Path,
    codes: tuple[int, int, int],
    size: tuple[int, int],
    pixel_format: str,
    tags: tuple[int, int],
    rgb: tuple[float, float, float],
) -> None:
    frame = read(yuv_clip(tmp_path / "a.mp4", codes, size, pixel_format, tags))[0]
    assert (frame - torch.tensor(rgb)).abs().max() <= 1.5 / 255


def test_ten_bits_keep_their_steps(tmp_path: Path) -> None:
    greys = [
        float(read(yuv_clip(tmp_path / "a.mp4", (code, 512, 512), (16, 16), "yuv420p10le", (1, 1)))[0].mean())
        for code in (500, 501)
    ]
    assert greys[1] - greys[0] == pytest.approx(1 / 876, rel=1e-3)


@pytest.mark.parametrize("pixel_format", ["bgr0", "gbrp16le", "gray", "yuva420p"])
def test_rgb_grey_and_transparent_sources(tmp_path: Path, pixel_format: str) -> None:
    path = make_clip(
        tmp_path / "a.mkv", count=2, audio=None, codec="ffv1", pixel_format=pixel_format, options={"level": "3"}
    )
    assert (read(path)[1] - 30 / 255).abs().max() <= 1.5 / 255


def test_deep_grey_of_pictures_is_read_in_its_byte_order(tmp_path: Path) -> None:
    """PNG and TIFF hold the high byte first."""
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "gray16be"
        picture = av.VideoFrame.from_ndarray(np.full((16, 16), 1000, np.uint16), format="gray16le")
        container.mux(stream.encode(picture.reformat(format="gray16be")))
        container.mux(stream.encode(None))
    assert float((read(tmp_path / "a.mov") - 1000 / 65535).abs().max()) < 1e-5


def test_rgb_sources_are_copied_in_limited_range(tmp_path: Path) -> None:
    """RGB that says "full range" is no wish for full-range Y'CbCr, which many players show with wrong contrast."""
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
        for _ in range(2):
            picture = np.full((16, 16, 3), 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    reader = VideoReader(tmp_path / "a.mov")
    assert not reader.tags.full_range and (read(tmp_path / "a.mov")[0] - 200 / 255).abs().max() < 1e-6


def test_an_animated_webp_is_called_so(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 200)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(VideoError, match=r"a\.webp' may be an animated WebP.*save it as GIF"):
        VideoReader(tmp_path / "a.webp")


def rotate_file(path: Path, matrix: tuple[int, ...]) -> None:
    """Writes a display matrix into the track header of an mp4 file (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    offset = header + (52 if data[header] == 1 else 40)
    data[offset : offset + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(bytes(data))


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [
        ((0, ONE, 0, -ONE, 0, 0), 3),
        ((-ONE, 0, 0, 0, -ONE, 0), 2),
        ((0, -ONE, 0, ONE, 0, 0), 1),
        ((ONE, 0, 0, 0, ONE, 0), 0),
    ],
)
def test_rotation_is_applied(tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    path = write(tmp_path / "a.mp4", gradient_frames(2), quality=4)
    upright = read(path)
    rotate_file(path, (*matrix, 0, 0, 1 << 30))
    with VideoReader(path) as reader:
        assert reader.size == ((64, 48) if turns % 2 else (48, 64))
        frames = torch.stack(list(reader))
    # Tag 90 degrees clockwise (first case) is what phones write for upright pictures of a sensor lying on its side.
    assert torch.equal(frames, torch.rot90(upright, turns, (1, 2)))


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-ONE, 0, 0, 0, ONE, 0), lambda clip: clip.flip(2)),
        ((ONE, 0, 0, 0, -ONE, 0), lambda clip: clip.flip(1)),
        ((0, ONE, 0, ONE, 0, 0), lambda clip: clip.transpose(1, 2)),
        ((0, -ONE, 0, -ONE, 0, 0), lambda clip: clip.transpose(1, 2).flip(1, 2)),
    ],
)
def test_mirroring_is_applied(tmp_path: Path, matrix: tuple[int, ...], shown: Callable[[Tensor], Tensor]) -> None:
    """Front cameras mark pictures so; mirrored left and right is not upside down."""
    path = write(tmp_path / "a.mp4", gradient_frames(2), quality=4)
    plain = read(path)
    rotate_file(path, (*matrix, 0, 0, 1 << 30))
    assert torch.equal(read(path), shown(plain))


def test_frames_that_were_read_are_given_back_at_once(tmp_path: Path) -> None:
    """PyAV's side data and their frame refer to each other: asked for in every frame, they fill the memory."""
    reader = VideoReader(make_clip(tmp_path / "clip.mp4", count=20))
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in reader) == 20
        kept = sum(type(thing).__name__ == "VideoFrame" for thing in gc.get_objects())
    finally:
        gc.enable()
    assert kept <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"this is no video" * 100, "cannot be opened"), (None, "does not exist")],
)
def test_files_that_are_no_videos(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "strange.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"strange\.mp4.*{message}"):
        VideoReader(path)


def test_more_files_that_are_no_videos(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="folder"):
        VideoReader(tmp_path)
    with pytest.raises(VideoError, match="video in memory"):
        VideoReader(io.BytesIO(b"nothing"))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(make_clip(tmp_path / "a.mp4").read_bytes()[:2000])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        list(VideoReader(cut))
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"sound\.m4a.*no video stream"):
        VideoReader(tmp_path / "sound.m4a")


def test_damage_inside_a_file_is_named(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", audio=None)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    size = int.from_bytes(data[begin - 8 : begin - 4], "big")
    data[begin + size // 2 : begin + size - 8] = bytes(size - 8 - size // 2)
    path.write_bytes(bytes(data))
    with pytest.raises(VideoError, match=r"a\.mp4.*damaged near frame"):
        read(path)


def test_sound_beside_uneven_frames_is_warned_of_where_it_drifts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as container:
        stream, sound = container.add_stream("libx264", rate=24), container.add_stream("aac", rate=48000, layout="mono")
        stream.height, stream.width = 48, 64
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in (0, 40, 80, 120, 1000, 2000, 3000):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 48000, 0
        container.mux([*sound.encode(silence), *sound.encode(None)])
    warned = {}
    for name in ("own times", "constant rate"):
        caplog.clear()
        with VideoReader(source) as reader, caplog.at_level(logging.WARNING, "setevsr_core"):
            tick = reader.time_base if name == "own times" else None
            with VideoWriter(tmp_path / "b.mp4", 24, (48, 64), audio_from=reader, time_base=tick) as writer:
                for index, frame in enumerate(reader):
                    writer.add(writer.prepare(frame), None if tick is None else reader.times[index] * tick)
        warned[name] = [line for line in caplog.messages if "constant frame rate" in line]
    assert warned["own times"] == [] and len(warned["constant rate"]) == 1
    assert "b.mp4" in warned["constant rate"][0] and "66.0 frames" in warned["constant rate"][0]


# --- colour arithmetic


@pytest.mark.parametrize("matrix", [1, 5, 6, 7, 9])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("depth", [8, 10])
def test_matrices_are_inverses(matrix: int, full_range: bool, depth: int) -> None:
    tags = ColourTags(matrix, 1, 1, full_range)
    picture = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0))
    back = yuv_to_rgb(rgb_to_yuv(picture, depth, tags), depth, tags)
    assert (back - picture).abs().max() < 2.2 / 2**depth


def test_known_code_values() -> None:
    green = torch.tensor([[[0.0, 1.0, 0.0]]])
    assert tuple(rgb_to_yuv(green, 8, ColourTags(1, 1, 1)).flatten().tolist()) == GREEN_709
    assert tuple(rgb_to_yuv(green, 8, ColourTags(6, 6, 6)).flatten().tolist()) == GREEN_601


# --- writing


@pytest.mark.parametrize("size", [(48, 64), (32, 1280), (49, 65)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_colours_survive_and_are_tagged(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    frames = torch.tensor(COLOURS)[:, None, None].expand(len(COLOURS), *size, 3)
    path = write(tmp_path / f"a{suffix}", frames)
    back = read(path)
    assert back.shape == frames.shape
    assert (back - frames).abs().max() <= 3 / 255
    facts = stream_facts(path)
    assert facts["tags"] == ((1, 1) if size[1] == 1280 else (6, 1))
    assert facts["pix_fmt"] == ("yuv444p" if size[0] % 2 else "yuv420p")


def test_an_independent_decoder_sees_the_same_colours(tmp_path: Path) -> None:
    size = (32, 1280)
    path = write(tmp_path / "a.mp4", torch.tensor(COLOURS)[:, None, None].expand(len(COLOURS), *size, 3))
    with av.open(str(path)) as container:
        for frame, colour in zip(container.decode(video=0), COLOURS, strict=True):
            pixel = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()[16, 640] / 255
            assert np.abs(pixel - colour).max() <= 3 / 255


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25, 2)])
def test_the_rate_is_exact(tmp_path: Path, rate: Fraction) -> None:
    facts = stream_facts(write(tmp_path / "a.mp4", gradient_frames(9), rate))
    assert facts["rate"] == rate
    assert facts["times"] == [index / rate for index in range(9)]


def test_matroska_keeps_the_rate_to_a_millisecond(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    facts = stream_facts(write(tmp_path / "a.mkv", gradient_frames(9), rate))
    assert all(abs(time - index / rate) <= Fraction(1, 1000) for index, time in enumerate(facts["times"]))
    assert float(facts["rate"]) == pytest.approx(float(rate), rel=1e-4)


def test_frames_come_back_in_order_and_number(tmp_path: Path) -> None:
    frames = gradient_frames(10)
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 24, (48, 64)) as writer:
        for begin, end in ((0, 3), (3, 3), (3, 9)):
            writer.write(frames[begin:end])
        writer.write(frames[9].double())  # a single frame, another type
    back = read(path)
    assert back.shape == frames.shape
    assert (back.mean((1, 2, 3)) - frames.mean((1, 2, 3))).abs().max() < 1 / 255


def test_pixel_aspect_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", gradient_frames(2), pixel_aspect=Fraction(16, 11))
    assert VideoReader(path).pixel_aspect == Fraction(16, 11)


def test_deep_colour_with_wide_gamut_tags(tmp_path: Path) -> None:
    tags = ColourTags(9, 9, 16)
    path = write(tmp_path / "a.mp4", gradient_frames(2), colour=tags, depth=10, quality=1)
    with VideoReader(path) as reader:
        assert reader.tags == tags and reader.bit_depth == 10
        error = (torch.stack(list(reader)) - gradient_frames(2)).abs()
    assert error.mean() < 1 / 255 and error.max() < 6 / 255  # the steep colour ramp is subsampled


# --- sound


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied_packet_by_packet(tmp_path: Path, suffix: str) -> None:
    source = make_clip(tmp_path / "a.mp4", count=12)
    path = write(tmp_path / f"b{suffix}", gradient_frames(12), audio_from=source)
    before, after = audio_packets(source), audio_packets(path)
    assert len(before) > 20
    assert [data for _, data in after] == [data for _, data in before]
    start = stream_facts(path)["times"][
        0
    ]  # matroska moves everything so that the encoder delay of the sound is not negative
    assert all(abs((a - start) - b) <= Fraction(1, 500) for (a, _), (b, _) in zip(after, before, strict=True))


def test_sound_of_a_file_object_shared_with_the_reader(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", count=12)
    path = tmp_path / "b.mp4"
    with VideoReader(io.BytesIO(source.read_bytes())) as reader:
        with VideoWriter(path, reader.frame_rate, reader.size, audio_from=reader) as writer:
            for frame in reader:
                writer.write(frame)
    assert audio_packets(path) == audio_packets(source)
    assert levels(read(path)) == list(range(12))


@pytest.mark.parametrize(("start", "duration", "count"), [(0.25, None, 18), (0.25, 0.25, 6), (0.0, 0.25, 6)])
def test_sound_of_a_part_stays_in_sync(tmp_path: Path, start: float, duration: float | None, count: int) -> None:
    source = make_clip(tmp_path / "a.mp4", count=24)
    path = tmp_path / "b.mp4"
    with VideoReader(source, start, duration) as reader:
        with VideoWriter(path, reader.frame_rate, reader.size, audio_from=reader) as writer:
            for frame in reader:
                writer.write(frame)
            assert writer.num_frames == count
    packet = Fraction(1024, 48000)
    times = {data: time for time, data in audio_packets(source)}
    copied = audio_packets(path)
    tick = Fraction(1, 48000)
    assert all(abs(time + Fraction(start) - times[data]) <= tick for time, data in copied)
    assert 0 <= copied[0][0] < packet
    assert count / Fraction(24) - packet <= copied[-1][0] + packet
    assert copied[-1][0] <= count / Fraction(24)


def test_sound_follows_when_the_source_does_not_begin_at_zero(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.ts", count=12)
    with VideoReader(source) as reader:
        assert reader.first_time > 0
        path = write(tmp_path / "b.mp4", gradient_frames(12), audio_from=reader)
    again = write(tmp_path / "c.mp4", gradient_frames(12), audio_from=source)  # finds the start by itself
    before = audio_packets(source)
    for copy in (path, again):
        after = audio_packets(copy)
        assert len(after) == len(before)
        for (new, _), (old, _) in zip(after, before, strict=True):
            assert abs(new - (old - reader.first_time)) <= Fraction(1, 48000)


def test_a_source_without_sound_gives_a_silent_file(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", count=3, audio=None)
    with VideoReader(source) as reader:
        assert not reader.has_audio
    assert audio_packets(write(tmp_path / "b.mp4", gradient_frames(3), audio_from=source)) == []


# --- never half a file


def test_an_error_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="model"):
        with VideoWriter(path, 24, (48, 64)) as writer:
            writer.write(gradient_frames(3))
            assert (tmp_path / "a.mp4.part").exists()
            raise RuntimeError("model")
    assert os.listdir(tmp_path) == ["a.mp4"] and path.read_bytes() == b"old"


def test_a_second_writer_of_the_same_file_is_refused_and_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 24, (48, 64)) as writer:
        writer.write(gradient_frames(3))
        with pytest.raises(VideoError, match="another run is writing this video already"):
            VideoWriter(path, 24, (48, 64))
        writer.write(gradient_frames(3))
    assert len(read(path)) == 6 and os.listdir(tmp_path) == ["a.mp4"]
    write(path, gradient_frames(2))
    writer.abort()  # harmless: the file is another writer's by now
    assert len(read(path)) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_next_writer_takes_over_what_a_killed_one_has_left(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    child = os.fork()
    if child == 0:
        VideoWriter(path, 24, (48, 64))  # without torch, whose threads a forked process does not have
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert sorted(os.listdir(tmp_path)) == ["a.mp4.part", "a.mp4.part.lock"]
    assert len(read(write(path, gradient_frames(2)))) == 2
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_no_frames_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"a\.mp4.*no frame"):
        VideoWriter(tmp_path / "a.mp4", 24, (48, 64)).close()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    (tmp_path / f"a{suffix}.part").symlink_to("/dev/full")
    noise = torch.rand(40, 96, 96, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(VideoError, match="disk is full.*a" + suffix):
        write(path, noise, quality=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("a.avi", {}, VideoError, r"\.mp4, "),
        ("missing/a.mp4", {}, VideoError, "folder"),
        ("a.mp4", {"codec": "vp8"}, SettingsError, "codec.*h264"),
        ("a.mp4", {"quality": 52}, SettingsError, "quality"),
        ("a.mp4", {"frame_rate": 0}, SettingsError, "frame_rate is 0"),
    ],
)
def test_what_cannot_be_written_fails_at_once(
    tmp_path: Path, name: str, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VideoWriter(tmp_path / name, **{"frame_rate": 24, "size": (48, 64), **settings})  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="48"), VideoWriter(tmp_path / "a.mp4", 24, (48, 64)) as writer:
        writer.write(torch.zeros(1, 48, 66, 3))
    assert os.listdir(tmp_path) == []


def test_a_closed_writer_takes_nothing(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 24, (48, 64)) as writer:
        writer.write(gradient_frames(1))
    writer.close()  # harmless
    with pytest.raises(VideoError, match="closed"):
        writer.write(gradient_frames(1))


def test_time_stamps_that_jump_back_are_refused_before_any_work(tmp_path: Path) -> None:
    part = make_clip(tmp_path / "part.ts", 24, (16, 24), rate=Fraction(8)).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part + part)
    with VideoReader(joined) as reader, pytest.raises(VideoError, match=r"joined.ts.*jump back.*ffmpeg -i IN"):
        reader.even()
    with VideoReader(joined, 0, 1.0) as reader:  # the jump comes later
        assert reader.even() and len(list(reader)) == 8
