"""Numbered pictures: a folder that is complete and durable, or none, and never two writers in one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from setevsr_core.errors import SettingsError, VideoError
from setevsr_core.video import durable, sequence
from setevsr_core.video.sequence import SequenceReader, SequenceWriter

from .video_helpers import gradient_frames

pytest.importorskip("av")
pytest.importorskip("cv2")

SIZE = (16, 24)


def add(writer: SequenceWriter, count: int) -> None:
    for frame in gradient_frames(count, *SIZE):
        writer.add(writer.prepare(frame))


def test_a_second_writer_of_the_same_folder_is_refused_and_spoils_nothing(tmp_path: Path) -> None:
    pattern = tmp_path / "out" / "%03d.png"
    with SequenceWriter(pattern, SIZE) as writer:
        add(writer, 2)
        with pytest.raises(VideoError, match="another run is writing this video already"):
            SequenceWriter(pattern, SIZE)
        add(writer, 2)
    assert len(SequenceReader(pattern.parent)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_writer_has_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / "out.part"
    left.mkdir()
    (left / "009.png").write_bytes(b"old")
    (tmp_path / "out.part.lock").touch()
    with SequenceWriter(tmp_path / "out" / "%03d.png", SIZE) as writer:
        add(writer, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["001.png"]


def test_pictures_are_on_the_disk_before_their_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Any] = []
    monkeypatch.setattr(sequence, "sync_file", lambda path: synced.append(path.name) or durable.sync_file(path))
    monkeypatch.setattr(sequence, "sync_folder", lambda path: synced.append(path.name) or durable.sync_folder(path))
    with SequenceWriter(tmp_path / "out" / "%03d.png", SIZE) as writer:
        add(writer, 3)
    assert sorted(synced[:3]) == ["001.png", "002.png", "003.png"]
    assert synced[3:] == ["out.part", tmp_path.name]


def test_pictures_outlive_a_file_that_got_into_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(VideoError, match=r"out'.*finished pictures.*out\.part'.*move them"):
        with SequenceWriter(folder / "%03d.png", SIZE) as writer:
            add(writer, 2)
            (folder / ".DS_Store").touch()
            writer.close()  # within the block, as the engine does
    assert len(SequenceReader(tmp_path / "out.part")) == 2
    assert [path.name for path in folder.iterdir()] == [".DS_Store"] and not (tmp_path / "out.part.lock").exists()


@pytest.mark.parametrize("rate", [0, -24])
def test_a_frame_rate_of_nothing_names_the_option(tmp_path: Path, rate: int) -> None:
    with SequenceWriter(tmp_path / "out" / "%03d.png", SIZE) as writer:
        add(writer, 1)
    with pytest.raises(SettingsError, match="--fps must be more than 0"):
        SequenceReader(tmp_path / "out", Fraction(rate))
