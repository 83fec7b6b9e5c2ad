"""Whatever is fed in: a right result or one clear sentence, and never a partial file under the final name."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from setevsr_core.errors import SeTeVSRError
from setevsr_core.stages import check_frames
from setevsr_core.streaming import Resume
from setevsr_core.video.reading import VideoReader
from setevsr_core.video.sequence import SequenceReader
from setevsr_core.video.writing import VideoWriter
from setevsr_core.video_job import Footage, Output, footage_of, restore_video

from .video_helpers import gradient_frames, make_clip, stream_facts

pytest.importorskip("av")
FRAMES = 24


class Repeating:
    """Enlarges by repeating pixels, and refuses frames as the real restorer does."""

    def fingerprint(self, **settings: Any) -> str:
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def stream(self, frames: Iterator[torch.Tensor], *, scale: int, resume: Resume = Resume(), **_: Any) -> Any:  # noqa: B008
        for index, frame in enumerate(frames):
            check_frames(frame[None], channels=(3, 4), first_index=index)
            if index >= resume.first_frame:
                yield frame.repeat_interleave(scale, 0).repeat_interleave(scale, 1)[None]


def restore(source: Path, target: Path) -> int:
    with SequenceReader(source) if source.is_dir() else VideoReader(source) as reader:
        output = Output(target, journal=target.with_name(target.name + ".setevsr"))
        return restore_video(Repeating(), footage_of(reader), output, {"scale": 2}).num_frames


def right_or_said(source: Path, target: Path) -> int | None:
    """The number of frames of the result, or None after one clear sentence; anything else fails the test."""
    try:
        count = restore(source, target)
    except SeTeVSRError as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        assert source.name in str(error) or target.name in str(error) or "frame" in str(error)
        assert not target.exists() and not target.with_name(target.name + ".part").exists()
        return None
    assert len(stream_facts(target)["times"]) == count > 0
    return count


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def zeroed(begin: float, end: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        first, last = int(len(data) * begin), int(len(data) * end)
        return data[:first] + bytes(last - first) + data[last:]

    return damage


def noise(count: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        changed, chance = bytearray(data), random.Random(count)
        for _ in range(count):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": cut(0),
    "a few bytes": lambda data: data[:7],
    "header only": cut(0.02),
    "half": cut(0.5),
    "last byte gone": lambda data: data[:-1],
    "head zeroed": zeroed(0, 0.05),
    "middle zeroed": zeroed(0.4, 0.6),
    "end zeroed": zeroed(0.9, 1),
    "ten wrong bytes": noise(10),
    "many wrong bytes": noise(400),
    "twice": lambda data: data + data,
    "text before": lambda data: b"<html>404</html>" + data,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        suffix: make_clip(folder / f"a{suffix}", FRAMES, (16, 24)).read_bytes()
        for suffix in (".mp4", ".mkv", ".ts", ".mov")
    }


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_files(tmp_path: Path, clips: dict[str, bytes], suffix: str, damage: str) -> None:
    source = tmp_path / f"bad{suffix}"
    source.write_bytes(DAMAGES[damage](clips[suffix]))
    right_or_said(source, tmp_path / "out.mkv")


@pytest.mark.parametrize(("suffix", "wrong"), [(".mp4", ".mkv"), (".mkv", ".mp4"), (".ts", ".txt"), (".mov", "")])
def test_a_wrong_ending_does_no_harm(tmp_path: Path, clips: dict[str, bytes], suffix: str, wrong: str) -> None:
    source = tmp_path / f"named{wrong}"
    source.write_bytes(clips[suffix])
    assert right_or_said(source, tmp_path / "out.mp4") == FRAMES


@pytest.mark.parametrize("name", ["ü ß é.mp4", "日本語.mp4", "⚡ 'quote\" %d.mp4", "-dash.mp4", "a" * 200 + ".mp4"])
def test_any_name_is_taken(tmp_path: Path, clips: dict[str, bytes], name: str) -> None:
    source = tmp_path / name
    source.write_bytes(clips[".mp4"])
    (tmp_path / "out").mkdir()
    assert right_or_said(source, tmp_path / "out" / name) == FRAMES


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (2, 2), (3, 5), (16, 1)])
def test_tiny_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    source = make_clip(tmp_path / "in.mov", 3, size, codec="png", pixel_format="rgb24", options={"pred": "none"})
    assert right_or_said(source, tmp_path / "out.mp4") == 3


def test_one_frame_of_8k_is_read_and_written(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "big.mp4", 24, (4320, 7680), quality=40) as writer:
        writer.write(torch.zeros(4320, 7680, 3))
    with VideoReader(tmp_path / "big.mp4") as reader:
        assert reader.size == (4320, 7680) and len(list(reader)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.5, 2.5])
def test_numbers_that_are_no_colours(tmp_path: Path, value: float) -> None:
    frames = gradient_frames(4)
    frames[2, 5, 5, 1] = value
    footage = Footage(frames, Fraction(24), (48, 64), "x", options={})
    with pytest.raises(SeTeVSRError, match="frame 2"):
        restore_video(Repeating(), footage, Output(tmp_path / "out.mp4"), {"scale": 1})
    assert list(tmp_path.iterdir()) == []


def test_more_frames_declared_than_present(tmp_path: Path, clips: dict[str, bytes]) -> None:
    source = tmp_path / "liar.mp4"
    source.write_bytes(clips[".mp4"])
    with VideoReader(source) as reader:
        reader.num_frames = reader.expected_frames = 100_000
        result = restore_video(Repeating(), footage_of(reader), Output(tmp_path / "out.mp4"), {"scale": 1})
    assert result.num_frames == FRAMES


@pytest.mark.parametrize(
    "kind", ["folder in the way", "no such folder", "read-only", "unknown ending", "file as folder"]
)
def test_places_that_cannot_be_written(tmp_path: Path, clips: dict[str, bytes], kind: str) -> None:
    source = tmp_path / "in.mp4"
    source.write_bytes(clips[".mp4"])
    target = tmp_path / "out.mp4"
    if kind == "folder in the way":
        target.mkdir()
    elif kind == "no such folder":
        target = tmp_path / "missing" / "out.mp4"
    elif kind == "unknown ending":
        target = tmp_path / "out.doc"
    elif kind == "file as folder":
        target = source / "out.mp4"
    else:
        if os.geteuid() == 0:
            pytest.skip("nothing is read-only for root")
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(SeTeVSRError) as failed:
            restore(source, target)
    finally:
        tmp_path.chmod(0o700)
    assert "\n" not in str(failed.value) and target.name in str(failed.value)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.setevsr"))


@pytest.mark.parametrize("damage", ["other size", "broken", "no picture"])
def test_bad_pictures_in_a_folder(tmp_path: Path, damage: str) -> None:
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.zeros((8, 8, 3), np.uint8))
    if damage == "other size":
        cv2.imwrite(str(folder / "1.png"), np.zeros((9, 8, 3), np.uint8))
    elif damage == "broken":
        (folder / "1.png").write_bytes(b"no png")
    else:
        for path in folder.iterdir():
            path.unlink()
    with pytest.raises(SeTeVSRError, match="frames"):
        restore(folder, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("times", [{"start": float("nan")}, {"start": float("inf")}, {"duration": float("inf")}])
def test_times_without_end_are_refused_for_a_folder_of_pictures(tmp_path: Path, times: dict[str, Any]) -> None:
    with pytest.raises(SeTeVSRError, match="0 or more seconds"):
        SequenceReader(tmp_path, **times)
