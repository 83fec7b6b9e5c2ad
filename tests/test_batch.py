"""Several videos in one command: what is meant, where each result goes, and what the summary says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from setevsr_core import batch, cli, watching
from setevsr_core.batch import plan
from setevsr_core.errors import CheckpointError, VideoError
from setevsr_core.video.sequence import pictures_in
from setevsr_core.watching import watch

from .test_cli import FakeRestorer, fake_restorer
from .video_helpers import make_clip, stream_facts

__all__ = ["fake_restorer"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(jobs: list[tuple[Path, Path]]) -> list[tuple[str, str]]:
    return [(source.name, target.name) for source, target in jobs]


def test_one_video_is_one_result(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    assert plan([str(tmp_path / "a.mp4")], "b.mkv", ".mp4") == ([(tmp_path / "a.mp4", Path("b.mkv"))], False)


def test_folders_patterns_and_files_are_found_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4", "in/b.mkv", "in/notes.txt", "c.mov")
    inputs = [str(tmp_path / "in"), str(tmp_path / "in" / "*.mp4"), str(tmp_path / "c.mov")]
    jobs, several = plan(inputs, str(tmp_path / "out"), "mkv")
    assert several and names(jobs) == [("a.mp4", "a.mkv"), ("b.mkv", "b.mkv"), ("c.mov", "c.mkv")]


def test_equal_names_do_not_collide(tmp_path: Path) -> None:
    touch(tmp_path, "1/a.mp4", "1/a.mkv", "2/a.mp4")
    inputs = [str(tmp_path / "1"), str(tmp_path / "2")]
    targets = [target.name for _, target in plan(inputs, str(tmp_path / "out"), ".mp4")[0]]
    assert targets == ["a_mkv.mp4", "a_mp4.mp4", "a_mp4_2.mp4"]


def test_a_folder_of_pictures_is_one_video(tmp_path: Path) -> None:
    touch(tmp_path, "frames/1.png", "frames/2.png")
    jobs, several = plan([str(tmp_path / "frames")], "out.mp4", ".mp4")
    assert not several and names(jobs) == [("frames", "out.mp4")]


def test_hidden_files_are_no_videos_and_no_pictures(tmp_path: Path) -> None:
    """macOS lays a `._NAME` of a few bytes beside every file on a disk that is not its own."""
    touch(tmp_path, "films/a.mp4", "films/._a.mp4", "frames/1.png", "frames/._1.png", "._b.mp4")
    inputs = [str(tmp_path / name) for name in ("films", "frames", "*.mp4")]
    jobs, _ = plan(inputs, str(tmp_path / "out"), ".mp4", may_be_empty=True)
    assert names(jobs) == [("a.mp4", "a.mp4"), ("frames", "frames.mp4")]
    assert pictures_in(tmp_path / "frames") == [tmp_path / "frames" / "1.png"]


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["*.mov"], "out", "no video is called"),
        (["empty*"], "out", "no video is called"),
        (["empty"], "out", "without videos or pictures"),
        (["a.mp4", "b.mp4"], "out.mp4", "give a folder"),
        (["a.mp4", "b.mp4"], "a.mp4", "give a folder"),
        (["a.mp4"], "../%06d.png", r"restored/%06d\.png"),
        (["a.mp4", ""], "", "is an input itself.*another folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, inputs: list[str], output: str, message: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match=message):
        plan([str(tmp_path / name) for name in inputs], str(tmp_path / output), ".mp4")


def test_pictures_need_a_folder_of_their_own() -> None:
    with pytest.raises(VideoError, match=r"'%06d.png' names no new folder.*restored/%06d\.png"):
        plan(["a.mp4"], "%06d.png", ".mp4")


def test_inputs_that_may_be_empty_do_not_hide_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4", "deep/full/b.mp4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep/none").mkdir()
    inputs = [str(tmp_path / name) for name in ("empty", "in", "deep/*", "*.mkv")]
    assert names(plan(inputs, f"{tmp_path}/out/", ".mp4", may_be_empty=True)[0]) == [
        ("a.mp4", "a.mp4"), ("b.mp4", "b.mp4"),
    ]  # fmt: skip
    assert plan(inputs[:1], f"{tmp_path}/out/", ".mp4", may_be_empty=True) == ([], True)


@pytest.mark.parametrize("pattern", ["clips/**/*.mp4", "clips/*", "clips/../clips/*"])
def test_a_pattern_does_not_find_the_results(tmp_path: Path, pattern: str) -> None:
    """Else --watch would restore them again and again."""
    touch(tmp_path, "clips/a.mp4", "clips/more/b.mp4")
    inputs, out = [str(tmp_path / pattern)], tmp_path / "clips" / "out"
    first = plan(inputs, f"{out}/", ".mp4", may_be_empty=True)
    assert names(first[0]) == [("a.mp4", "a.mp4"), ("b.mp4", "b.mp4")]
    touch(out, "a.mp4", "b.mp4", "earlier.mkv")
    assert plan(inputs, f"{out}/", ".mp4", may_be_empty=True) == first
    (tmp_path / "link").symlink_to(out, target_is_directory=True)
    assert names(plan(inputs, str(tmp_path / "link"), ".mp4")[0]) == names(first[0])


def test_results_may_go_beside_a_video_that_is_named_and_above_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mkv", "raw/b.mp4")
    inputs = [str(tmp_path / "a.mkv"), str(tmp_path / "raw"), str(tmp_path / "r*" / "*.mp4")]
    assert names(plan(inputs, f"{tmp_path}/", ".mp4")[0]) == [("a.mkv", "a.mp4"), ("b.mp4", "b.mp4")]
    with pytest.raises(VideoError, match=r"finds videos in '.*' only, where the results go; give another folder"):
        plan([str(tmp_path / "*.mkv")], f"{tmp_path}/", ".mp4")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(VideoError, match=f"'{tmp_path}' cannot be read: Permission denied"):
        plan([str(tmp_path)], "out", ".mp4")


@pytest.mark.usefixtures("fake_restorer")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "give a smaller --tile"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "--length, then a smaller --scale"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "the memory is full"),
        (PermissionError(13, "Permission denied", "1.png"), "Permission denied: '1.png'"),
    ],
)
def test_a_full_memory_or_disk_error_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    stream = FakeRestorer.stream
    calls = 0

    def failing_first(self: FakeRestorer, *arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return stream(self, *arguments, **keywords)

    monkeypatch.setattr(FakeRestorer, "stream", failing_first)
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_clip(tmp_path / "in" / name, count=3)
    assert cli.main(["restore", str(tmp_path / "in"), str(tmp_path / "out"), "--scale", "2", "--json"]) == 3
    rows = json.loads(capsys.readouterr().out)["files"]
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert message in rows[0]["error"] and "\n" not in rows[0]["error"]


@pytest.mark.usefixtures("fake_restorer")
def test_a_bad_video_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "öut"
    folder.mkdir()
    make_clip(folder / "a.mp4", count=3)
    (folder / "b.mp4").write_bytes(b"no video")
    make_clip(folder / "ç ⚡.mkv", count=4)
    assert cli.main(["restore", str(folder), str(out), "--scale", "2", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["done"], report["failed"]) == (2, 1)
    assert [row["status"] for row in report["files"]] == ["done", "failed", "done"]
    assert "b.mp4" in report["files"][1]["error"]
    assert sorted(path.name for path in out.iterdir()) == ["a.mp4", "ç ⚡.mp4"]
    assert len(stream_facts(out / "ç ⚡.mp4")["times"]) == 4
    assert cli.main(["restore", str(folder / "a.mp4"), str(out) + "/", "--scale", "2", "--skip-existing"]) == 0
    assert "is there already" in capsys.readouterr().out


def test_networks_that_cannot_be_had_end_the_run(
    fake_restorer: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def missing(*_: Any, **__: Any) -> None:
        tries.append(None)
        raise CheckpointError("there is no preset 'x'")

    monkeypatch.setattr(FakeRestorer, "from_preset", missing)
    for name in ("a.mp4", "b.mp4"):
        make_clip(tmp_path / name, count=3)
    for more in ([], ["--json"]):
        assert cli.main(["restore", str(tmp_path), str(tmp_path / "out"), "--preset", "x", *more]) == 2
    assert len(tries) == 2 and capsys.readouterr().err.splitlines() == ["setevsr: there is no preset 'x'"] * 2


@pytest.mark.usefixtures("fake_restorer")
def test_pictures_in_and_out(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", count=3)
    command = ["restore", str(source), str(tmp_path / "pictures" / "%04d.png"), "--scale", "2", "--skip-existing"]
    (tmp_path / "pictures").mkdir()
    assert cli.main(command) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0001.png", "0002.png", "0003.png"]
    assert cli.main(command) == 0
    again = ["restore", str(tmp_path / "pictures"), str(tmp_path / "out.mp4"), "--scale", "1", "--fps", "30000/1001"]
    assert cli.main(again) == 0
    assert stream_facts(tmp_path / "out.mp4")["size"] == (96, 128)


def test_watching_gives_every_video_once_when_it_is_complete(tmp_path: Path) -> None:
    touch(tmp_path, "in/old.mp4", "in/a.mp4", "out/old.mp4")
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            (tmp_path / "in/a.mp4").write_bytes(b"still being copied")
        elif looks == 3:
            touch(tmp_path, "in/b.mp4")
        elif looks == 6:
            raise KeyboardInterrupt

    def find() -> list[tuple[Path, Path]]:
        return plan([str(tmp_path / "in")], f"{tmp_path}/out/", ".mp4")[0]

    given = [(source.name, looks) for source, _ in watch(find, 1.0, sleep)]
    assert given == [("a.mp4", 2), ("b.mp4", 4)]


def test_a_watched_folder_may_be_empty_and_the_rows_are_lines(
    fake_restorer: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "stays empty").mkdir()
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            make_clip(tmp_path / "in/a.mp4", count=3, size=(16, 24))
            touch(tmp_path, "in/broken.mp4")
        elif looks == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(watching.watch, "__defaults__", (sleep,))
    inputs = [str(tmp_path / "stays empty"), str(tmp_path / "in")]
    command = ["restore", *inputs, str(tmp_path / "out"), "--watch", "0.1", "--json", "--scale", "2"]
    assert cli.main(command) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(Path(row["input"]).name, row["status"]) for row in rows] == [("a.mp4", "done"), ("broken.mp4", "failed")]
    assert (tmp_path / "out/a.mp4").is_file() and not (tmp_path / "out/broken.mp4").exists()


@pytest.mark.parametrize("output", ["out.mp4", "file"])
def test_watching_into_a_file_is_refused_at_once(
    tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "file")
    assert cli.main(["restore", str(tmp_path), str(tmp_path / output), "--watch"]) == 2
    assert "give a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("fake_restorer")
def test_a_watched_folder_may_be_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    make_clip(tmp_path / "in/a.mp4", count=3, size=(16, 24))
    looks = 0

    def away(folder: Path) -> list[Path]:
        raise OSError(5, "Input/output error")

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        monkeypatch.setattr(batch, "_videos_in", away if looks == 1 else videos_in)
        if looks == 4:
            raise KeyboardInterrupt

    videos_in = batch._videos_in
    monkeypatch.setattr(watching.watch, "__defaults__", (sleep,))
    assert cli.main(["restore", str(tmp_path / "in"), str(tmp_path / "out"), "--watch", "0.1", "--scale", "2"]) == 0
    assert "in' cannot be read: Input/output error" in caplog.text and (tmp_path / "out/a.mp4").is_file()
