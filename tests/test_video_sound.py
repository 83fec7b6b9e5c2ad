"""Sound that a container cannot hold is encoded again, at the same place in time; all other sound is only copied."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setevsr_core.errors import VideoError
from setevsr_core.video import audio
from setevsr_core.video.reading import VideoReader
from setevsr_core.video.recoding import RecodedTrack
from setevsr_core.video.writing import VideoWriter

from .video_helpers import audio_packets

av = pytest.importorskip("av")

RATE = 24


def melody(rate: int, seconds: float = 2.0) -> np.ndarray:
    """Mono samples in -1..1 that sound different at every moment, so that a shift shows: a rising tone in bursts."""
    time = np.arange(int(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * (300 * time + 200 * time**2)) * (np.sin(2 * np.pi * 3.1 * time) > 0)


def sounding_clip(
    path: Path, codec: str, rate: int = 48000, begin: float = 0.0, gap: float = 0.0, layout: str = "mono"
) -> Path:
    """Two seconds of video at 24 frames a second. The sound begins `begin` seconds after the pictures, and halfway
    `gap` seconds of it are missing.
    """
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=RATE, options={"crf": "4", "g": "4", "bf": "0"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        sound: Any = container.add_stream(codec, rate=rate, layout=layout, options={"b": "96000"})
        for index in range(2 * RATE):
            picture = np.full((48, 64, 3), 20 + 4 * index, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        samples = melody(rate).astype(np.float32)
        step = 1000
        for start in range(0, len(samples), step):
            if 1 <= start / rate < 1 + gap:
                continue
            part = np.tile(samples[None, start : start + step], (sound.layout.nb_channels, 1))
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + round(begin * rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def copy_of(source: Path, target: Path, start: float = 0.0, duration: float | None = None) -> Path:
    with VideoReader(source, start, duration) as reader:
        with VideoWriter(target, reader.frame_rate, reader.size, audio_from=reader) as writer:
            for frame in reader:
                writer.write(frame)
    return target


def sound_of(path: Path) -> tuple[str, np.ndarray, int]:
    """(codec, mono samples from the first picture on, rate), every sample where the time stamps put it; stamps in
    milliseconds are not taken at their word.
    """
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        codec, rate = stream.codec_context.codec.canonical_name, stream.rate
        heard, end = np.zeros(4 * rate), -rate
        for frame in container.decode(stream):
            samples = av.AudioResampler("fltp", "mono").resample(frame)[0].to_ndarray()[0]
            stamped = end if frame.pts is None else round((float(frame.pts * frame.time_base) - first) * rate)
            at = stamped if abs(stamped - end) > rate / 500 else end
            end = at + len(samples)
            heard[max(at, 0) : max(end, 0)] = samples[max(-at, 0) :]
    return codec, heard, rate


def lag(heard: np.ndarray, expected: np.ndarray, rate: int) -> float:
    """By how many seconds `heard` is later than `expected`, and that it is the same sound at all."""
    length = min(len(heard), len(expected))
    a, b = heard[:length], expected[:length]
    spectrum = np.fft.rfft(a, 2 * length) * np.conj(np.fft.rfft(b, 2 * length))
    match = np.fft.irfft(spectrum)
    best = int(np.argmax(match))
    assert match[best] > 0.8 * np.sqrt((a**2).sum() * (b**2).sum()), "another sound"
    return (best if best < length else best - 2 * length) / rate


FITTING = [
    ("aac", ".mp4", 48000, "mono", ".mkv"),
    ("pcm_s16le", ".mkv", 48000, "stereo", ".mp4"),
    ("pcm_s24le", ".mkv", 48000, "5.1", ".mov"),
    ("libopencore_amrnb", ".3gp", 8000, "mono", ".mov"),
    ("flac", ".mkv", 48000, "mono", ".mp4"),
]


@pytest.mark.parametrize(("codec", "suffix", "rate", "layout", "target"), FITTING)
def test_packets_that_the_container_holds_stay_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, suffix: str, rate: int, layout: str, target: str
) -> None:
    source = sounding_clip(tmp_path / f"in{suffix}", codec, rate, layout=layout)
    with caplog.at_level(logging.WARNING, "setevsr_core"):
        after = copy_of(source, tmp_path / f"out{target}")
    # PCM is read in packets of any size.
    assert b"".join(data for _, data in audio_packets(after)) == b"".join(data for _, data in audio_packets(source))
    assert not caplog.messages


RECODED = [
    ("wmav2", ".wmv", 44100, "stereo", ".mp4", "aac", 44100),
    ("adpcm_ms", ".avi", 22050, "mono", ".mp4", "aac", 22050),
    ("libopencore_amrnb", ".3gp", 8000, "mono", ".mp4", "aac", 8000),
    ("pcm_u8", ".mkv", 48000, "mono", ".mp4", "flac", 48000),
    ("wavpack", ".mkv", 48000, "5.1", ".mp4", "flac", 48000),
    ("flac", ".mkv", 44100, "stereo", ".mov", "aac", 44100),  # FLAC in .mov is not allowed by FFmpeg
    ("aac", ".mp4", 44100, "5.1", ".webm", "opus", 48000),
]


@pytest.mark.parametrize(("codec", "suffix", "rate", "layout", "target", "becomes", "new_rate"), RECODED)
@pytest.mark.parametrize(("start", "duration"), [(0.0, None), (0.5, None), (0.25, 0.75)])
def test_sound_that_does_not_fit_is_encoded_again_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, suffix: str, rate: int, layout: str, target: str,
    becomes: str, new_rate: int, start: float, duration: float | None,
) -> None:  # fmt: skip
    source = sounding_clip(tmp_path / f"in{suffix}", codec, rate, layout=layout)
    with caplog.at_level(logging.WARNING, "setevsr_core"):
        result = copy_of(source, tmp_path / f"out{target}", start, duration)
    (line,) = [line for line in caplog.messages if "encoded again" in line]
    assert result.name in line and source.name in line
    _, before, _ = sound_of(source)
    kind, heard, found = sound_of(result)
    assert (kind, found) == (becomes, new_rate)
    with av.open(str(result)) as container:
        assert container.streams.audio[0].layout.nb_channels == {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    with VideoReader(source, start, duration) as part, VideoReader(source) as whole:
        first = float(part.first_time - whole.first_time)
    expected = at_rate(before, rate, found)[round(first * found) :]
    if duration is not None:
        expected = expected[: round(duration * found)]
        assert np.abs(heard[round((duration + 0.1) * found) :]).max() < 0.01
    assert abs(lag(heard, expected, found)) < 0.002


def at_rate(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    times = np.arange(int(len(samples) * new_rate / rate)) / new_rate
    return np.interp(times, np.arange(len(samples)) / rate, samples)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_sound_that_begins_later_or_has_a_gap_stays_in_sync(tmp_path: Path, suffix: str) -> None:
    name, codec, rate = ("in.3gp", "libopencore_amrnb", 8000) if suffix == ".mkv" else ("in.mkv", "pcm_u8", 48000)
    source = sounding_clip(tmp_path / name, codec, rate, begin=0.3, gap=0.25)
    result = copy_of(source, tmp_path / f"out{suffix}")
    _, heard, rate = sound_of(result)
    expected = melody(rate)
    expected[rate : round(1.25 * rate)] = 0
    expected = np.concatenate([np.zeros(round(0.3 * rate)), expected])
    assert abs(lag(heard, expected, rate)) < 0.003
    late, late_expected = heard[round(1.6 * rate) :], expected[round(1.6 * rate) :]  # after the gap alone
    assert abs(lag(late, late_expected, rate)) < 0.003


def test_only_the_track_that_does_not_fit_is_encoded_again(tmp_path: Path) -> None:
    first, second = sounding_clip(tmp_path / "a.mp4", "aac"), sounding_clip(tmp_path / "b.mkv", "pcm_u8")
    both = joined(tmp_path / "both.mkv", (first, 0), (first, 1), (second, 1))
    result = copy_of(both, tmp_path / "out.mp4")
    with av.open(str(result)) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac", "flac"]
    assert [data for _, data in audio_packets(result)] == [data for _, data in audio_packets(both)]
    with av.open(str(result)) as container, av.open(str(second)) as original:
        new, old = decoded(container, 1), decoded(original, 0)
    assert np.array_equal(new, old)  # FLAC: nothing is lost


def decoded(container: Any, index: int) -> np.ndarray:
    """All samples of an audio track as 16 bit."""
    resampler, parts = av.AudioResampler("s16", "mono"), []
    for frame in container.decode(container.streams.audio[index]):
        parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    return np.concatenate(parts)


def remuxed(source: Path, target: Path, change: Callable[[int, Any], Any]) -> Path:
    """The file with `change(index, packet)` in place of every packet of sound."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        copies = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        sounds = 0
        for packet in old.demux():
            if packet.dts is None:
                continue
            stream = packet.stream
            if stream.type == "audio":
                packet, sounds = change(sounds, packet), sounds + 1
            packet.stream = copies[stream.index]
            new.mux(packet)
    return target


def test_damaged_sound_that_is_encoded_again_becomes_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def damage(index: int, packet: Any) -> Any:
        if not 3 <= index < 6:
            return packet
        broken = av.Packet(b"\xff" * 50)
        broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
        return broken

    whole = sounding_clip(tmp_path / "whole.mkv", "flac")
    source = remuxed(whole, tmp_path / "in.mkv", damage)
    with caplog.at_level(logging.WARNING, "setevsr_core"):
        _, heard, rate = sound_of(copy_of(source, tmp_path / "out.mov"))
    assert len([line for line in caplog.messages if "damaged sound" in line]) == 1
    length = 4608  # samples of a FLAC packet
    expected = melody(rate)
    assert np.abs(heard[3 * length + 1024 : 6 * length - 1024]).max() < 0.02
    assert abs(lag(heard[6 * length :], expected[6 * length :], rate)) < 0.002


class Decoded:
    """Stands in for an audio stream: its packets are decoded already."""

    def decode(self, packet: Any) -> list[Any]:
        return [] if packet is None else [packet]


def tone(layout: str, begin: float, seconds: float, rate: int) -> Any:
    channels = av.AudioLayout(layout).nb_channels
    samples = np.full((channels, round(seconds * rate)), 0.25, np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, round(begin * 1000), Fraction(1, 1000)
    return frame


def test_a_change_of_channels_and_a_long_pause_keep_the_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as output:
        track = RecodedTrack(Decoded(), output.add_stream("aac", rate=48000, layout="stereo"), "a", Fraction(0), False)
        output.start_encoding()
        for frame in (
            tone("stereo", 0, 0.5, 48000), tone("5.1", 0.5, 0.5, 48000), tone("mono", 1, 0.5, 44100),
            tone("mono", 100, 0.5, 44100),
        ):  # fmt: skip
            output.mux(list(track.take(frame)))
        output.mux(list(track.finish()))
    with av.open(str(path)) as container:
        frames = [(float(frame.time), float(np.abs(frame.to_ndarray()).mean()))
                  for frame in container.decode(audio=0)]  # fmt: skip
    loud = [time for time, level in frames if level > 0.1]
    packet = 1024 / 48000
    assert loud[0] < packet and all(b - a < 2 * packet for a, b in zip(loud, loud[1:], strict=False) if b < 50)
    assert [time for time in loud if 1.5 + packet < time < 100 - packet] == []
    assert max(loud) == pytest.approx(100.5, abs=2 * packet)
    assert len(frames) < 2.2 / packet  # no minutes of silence


def test_where_no_encoder_helps_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "encoding_for", lambda stream, container: None)
    source = sounding_clip(tmp_path / "a.mkv", "pcm_u8")
    with pytest.raises(VideoError, match=r"b\.mp4.*pcm_u8.*name it \.mkv"):
        copy_of(source, tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


# ---- tracks that are copied


def test_a_film_with_dts_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = sounding_clip(tmp_path / "in.mkv", "ac3")
    patch(source, b"A_AC3", b"A_DTS")
    with caplog.at_level(logging.WARNING, "setevsr_core"):
        result = copy_of(source, tmp_path / "out.mkv")
    assert audio_packets(result) == audio_packets(source) and not caplog.messages
    with av.open(str(result)) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == "dts"


def test_blu_ray_subtitles_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = tmp_path / "text.ass"
    text.write_text("[Script Info]\n\n[Events]\nDialogue: 0,0:00:00.10,0:00:00.40,Default,,0,0,0,,Hello\n", "utf-8")
    source = joined(tmp_path / "in.mkv", (sounding_clip(tmp_path / "a.mkv", "aac"), 0), (text, 0))
    with av.open(str(source)) as container:
        (event,) = (bytes(packet) for packet in container.demux(container.streams.subtitles) if packet.size)
    patch(source, b"S_TEXT/ASS", b"S_HDMV/PGS")
    composition = b"\x16" + (len(event) - 6).to_bytes(2, "big") + bytes(len(event) - 6)
    patch(source, event, composition + b"\x80\0\0")
    with caplog.at_level(logging.WARNING, "setevsr_core"):
        result = copy_of(source, tmp_path / "out.mkv")
    with av.open(str(result)) as container:
        (subtitles,) = container.streams.subtitles
        assert subtitles.codec_context.codec.canonical_name == "hdmv_pgs_subtitle"
        assert len([packet for packet in container.demux(subtitles) if packet.size]) == 1
    assert not caplog.messages


def patch(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes of the same length in a file: there is no encoder for some kinds of sound and subtitles."""
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def joined(path: Path, *parts: tuple[Path, int]) -> Path:
    """The given (file, index of its stream) one stream after the other: the file is hardly interleaved at all."""
    with av.open(str(path), "w", options={"max_interleave_delta": "1"}) as output:
        inputs = [(av.open(str(source)), index) for source, index in parts]
        copies = [output.add_stream_from_template(source.streams[index]) for source, index in inputs]
        for (source, index), copy in zip(inputs, copies, strict=True):
            with source:
                for packet in source.demux(source.streams[index]):
                    if packet.dts is not None:
                        packet.stream = copy
                        output.mux(packet)
    return path


def test_a_part_has_all_packets_of_every_track_however_they_lie_in_the_file(tmp_path: Path) -> None:
    clip = sounding_clip(tmp_path / "a.mkv", "aac")
    source = joined(tmp_path / "in.mkv", (clip, 0), (clip, 1), (clip, 1))
    with av.open(str(source)) as container:
        order = [packet.stream.index for packet in container.demux(container.streams.audio) if packet.size]
    assert order.index(2) > 90  # of 94 packets in either track
    with av.open(str(copy_of(source, tmp_path / "out.mp4", 0.5, 0.5))) as container:
        first, second = times_of(container)
    assert len(first) > 20 and first == second


def times_of(container: Any) -> list[list[int]]:
    """The times of the packets of every audio track."""
    times: dict[int, list[int]] = {stream.index: [] for stream in container.streams.audio}
    for packet in container.demux(container.streams.audio):
        if packet.size:
            times[packet.stream.index].append(packet.pts)
    return list(times.values())


def test_sound_whose_time_stamps_go_back_a_little_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = sounding_clip(tmp_path / "in.ts", "aac")
    before = audio_packets(source)
    turn_back(source, 9)
    with caplog.at_level(logging.WARNING, "setevsr_core"):
        after = audio_packets(copy_of(source, tmp_path / "out.mp4"))
    assert [data for _, data in after] == [data[7:] for _, data in before]  # MP4 has no ADTS headers
    assert abs((after[-1][0] - after[0][0]) - (before[-1][0] - before[0][0])) < Fraction(1, 1000)
    assert caplog.text.count("time stamps go back") == 1


def turn_back(path: Path, number: int) -> None:
    """Lets packet `number` of a transport stream's sound begin 1.5 packets (of 1920 ticks) too early."""
    data, at = bytearray(path.read_bytes()), -1
    for _ in range(number + 1):
        at = data.index(b"\0\0\1\xc0", at + 1)
    stamp = data[at + 9 : at + 14]  # 33 bits: 3, 15 and 15 of them, each followed by a one
    ticks = (stamp[0] >> 1 & 7) << 30 | stamp[1] << 22 | stamp[2] >> 1 << 15 | stamp[3] << 7 | stamp[4] >> 1
    ticks -= 2880
    data[at + 9 : at + 14] = bytes([
        stamp[0] & 0xF1 | ticks >> 30 << 1, ticks >> 22 & 255, ticks >> 14 & 254 | 1, ticks >> 7 & 255,
        ticks << 1 & 254 | 1,
    ])  # fmt: skip
    path.write_bytes(data)
