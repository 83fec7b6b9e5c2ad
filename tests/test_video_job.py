"""Nothing is lost: a run that was ended at any moment is continued and ends in the same bytes."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from setevsr_core import Restorer, VideoError, video_job
from setevsr_core import restorer as restorers
from setevsr_core.errors import SeTeVSRError
from setevsr_core.progress import Progress
from setevsr_core.segment_run import SegmentRun
from setevsr_core.streaming import Resume
from setevsr_core.video import journal as journals
from setevsr_core.video.chunks import pack_frames, unpack_frames
from setevsr_core.video.journal import Journal, drop_abandoned
from setevsr_core.video.reading import VideoReader
from setevsr_core.video.segments import Span, plan_spans
from setevsr_core.video.writing import VideoWriter
from setevsr_core.video.yuv import ColourTags, rgb_to_frame
from setevsr_core.video_job import Output, Result, footage_of, restore_video

from .tiny_networks import TinyEncoder, tiny_denoiser, tiny_vae
from .video_helpers import make_clip

pytest.importorskip("av")

SETTINGS: dict[str, Any] = {"scale": 2, "steps": 1, "sampler": "ddim", "length": 5, "overlap": 2, "cuts": (9,)}


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    torch.set_num_threads(1)
    return Restorer(tiny_denoiser(), tiny_vae(), TinyEncoder())


def run(
    restorer: Any,
    source: Path,
    target: Path,
    *,
    on_frames: Callable[[int], None] | None = None,
    progress: Progress | None = None,
    check_cancel: Callable[[], None] | None = None,
    **changed: Any,
) -> Result:
    with VideoReader(source) as reader:
        output = Output(target, quality=changed.pop("quality", 10), journal=journal_of(target))
        return restore_video(
            restorer, footage_of(reader), output, {**SETTINGS, **changed},
            on_frames=on_frames, progress=progress, check_cancel=check_cancel,
        )  # fmt: skip


def journal_of(target: Path) -> Path:
    return target.with_name(target.name + ".setevsr")


class Stop(Exception):
    """Ends a run from inside."""


def stop_after(frames: int) -> Callable[[int], None]:
    seen = 0

    def on_frames(count: int) -> None:
        nonlocal seen
        seen += count
        if seen >= frames:
            raise Stop

    return on_frames


class Counting:
    """The same restorer, which counts the frames it gives."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer, self.frames = restorer, 0
        self.fingerprint = restorer.fingerprint

    def stream(self, *arguments: Any, **keywords: Any) -> Iterator[torch.Tensor]:
        return self._counted(self._restorer.stream(*arguments, **keywords))

    def _counted(self, blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        for block in blocks:
            self.frames += len(block)
            yield block


# ---- the restorer's part


@pytest.mark.parametrize(("length", "overlap", "cuts"), [(5, 2, (9,)), (4, 3, ()), (3, 0, (5, 6)), (7, 6, None)])
def test_any_tail_of_a_stream_has_the_bits_of_the_whole(
    restorer: Restorer, length: int, overlap: int, cuts: tuple[int, ...] | None
) -> None:
    frames = torch.rand(17, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    settings = {**SETTINGS, "length": length, "overlap": overlap, "cuts": cuts, "steps": 0}
    whole = torch.cat(list(restorer.stream(frames, **settings)))
    for first in (3, 9, 16):
        assert torch.equal(torch.cat(list(restorer.stream(frames, resume=Resume(first), **settings))), whole[first:])
    assert list(restorer.stream(frames, resume=Resume(17), **settings)) == []


@pytest.mark.parametrize(("length", "overlap", "cuts"), [(5, 2, (9,)), (4, 3, ()), (3, 0, (5, 6)), (7, 6, None)])
def test_a_stream_goes_on_from_what_it_carried_and_computes_nothing_again(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch, length: int, overlap: int, cuts: tuple[int, ...] | None
) -> None:
    frames = torch.rand(17, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    settings = {**SETTINGS, "length": length, "overlap": overlap, "cuts": cuts, "steps": 0}
    computed: list[Span] = []
    restore = SegmentRun.restore
    monkeypatch.setattr(SegmentRun, "restore", lambda self, span, x: computed.append(span) or restore(self, span, x))
    states: list[Resume] = []
    whole = torch.cat(list(restorer.stream(frames, on_carry=states.append, **settings)))
    spans = plan_spans(17, length, overlap, cuts or ())
    assert computed == list(spans) and [state.first_frame for state in states] == [span.start for span in spans[1:]]
    for state in states:
        computed.clear()
        rest = torch.cat(list(restorer.stream(frames, resume=state, **settings)))
        assert torch.equal(rest, whole[state.first_frame :])
        assert computed == [span for span in spans if span.start >= state.first_frame]


def test_what_decides_the_result_is_in_the_fingerprint(restorer: Restorer) -> None:
    same = restorer.fingerprint(**SETTINGS)
    assert same == restorer.fingerprint(**SETTINGS)
    assert same != restorer.fingerprint(**{**SETTINGS, "seed": 1})
    weight = next(restorer.vae.parameters())
    before = weight.data.clone()
    try:
        weight.data.add_(1e-3)
        assert restorer.fingerprint(**SETTINGS) != same
    finally:
        weight.data.copy_(before)


def test_another_version_of_the_code_is_another_job(
    restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=12, size=(16, 24)), tmp_path / "out.mp4"
    with pytest.raises(Stop):
        run(restorer, source, target, on_frames=stop_after(8))
    before = restorer.fingerprint(**SETTINGS)
    monkeypatch.setattr(restorers, "RESULT_VERSION", restorers.RESULT_VERSION + 1)
    assert restorer.fingerprint(**SETTINGS) != before
    assert run(restorer, source, target).resumed == 0


# ---- chunks


def pixels(frame: Any) -> list[bytes]:
    """The rows of every plane, without their padding."""
    rows = []
    for plane in frame.planes:
        packed = frame.format.name.startswith("rgb") * (len(frame.format.components) - 1) + 1
        width = plane.width * packed * ((frame.format.components[0].bits + 7) // 8)
        data = bytes(plane)
        rows += [data[row * plane.line_size :][:width] for row in range(plane.height)]
    return rows


@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le", "yuv422p10le", "yuva420p", "yuva444p", "yuva444p10le",
     "rgb24", "rgba", "rgb48be", "rgba64be"],
)  # fmt: skip
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (37, 41), (64, 96)])
def test_a_chunk_gives_every_bit_back(pixel_format: str, size: tuple[int, int]) -> None:
    channels = 4 if "a" in pixel_format.replace("rgba", "a").replace("yuva", "a") else 3
    pictures = torch.rand(3, *size, channels, generator=torch.Generator().manual_seed(1))
    frames = [rgb_to_frame(picture, pixel_format, ColourTags(1, 1, 1)) for picture in pictures]
    back = list(unpack_frames(pack_frames(frames), pixel_format))
    assert len(back) == 3
    for old, new in zip(frames, back, strict=True):
        assert new.format.name == pixel_format
        assert pixels(old) == pixels(new)


# ---- resuming


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_an_interrupted_run_is_continued_to_the_same_bytes(restorer: Restorer, tmp_path: Path, suffix: str) -> None:
    source = make_clip(tmp_path / "in.mp4", count=20, size=(16, 24))
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    assert run(restorer, source, whole).resumed == 0
    for frames in (4, 11):
        with pytest.raises(Stop):
            run(restorer, source, parts, on_frames=stop_after(frames))
        assert journal_of(parts).is_dir() and not parts.exists()
    counting = Counting(restorer)
    result = run(counting, source, parts)
    assert result.num_frames == 20 and result.resumed >= 9 and counting.frames == 20 - result.resumed
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.mp4", whole.name, parts.name])


def test_a_run_that_ended_after_its_last_frame_restores_nothing_again(restorer: Restorer, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", count=8, size=(16, 24))
    with pytest.raises(Stop):
        run(restorer, source, tmp_path / "out.mp4", on_frames=stop_after(8))
    counting = Counting(restorer)
    assert run(counting, source, tmp_path / "out.mp4").num_frames == 8 and counting.frames == 0
    assert run(restorer, source, tmp_path / "whole.mp4").resumed == 0
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kill_9_at_any_moment_loses_nothing(restorer: Restorer, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", count=24, size=(16, 24))
    begin = time.monotonic()
    run(restorer, source, tmp_path / "whole.mp4")
    needed = time.monotonic() - begin
    expected = (tmp_path / "whole.mp4").read_bytes()
    moments, target, kills, progress = random.Random(0), tmp_path / "out.mp4", 0, []
    for _ in range(30):
        child = os.fork()
        if child == 0:
            try:
                run(restorer, source, target)
                os._exit(0)
            except BaseException:
                os._exit(1)
        time.sleep(moments.uniform(0, 0.8 * needed))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        if not os.WIFSIGNALED(status):
            assert target.read_bytes() == expected
            target.unlink()
            continue
        kills += 1
        progress.append(len(list(journal_of(target).glob("*.chunk"))) if journal_of(target).exists() else 0)
        if target.exists():  # killed between the rename and the end of the process
            assert target.read_bytes() == expected
    assert kills >= 8 and max(progress) >= 2
    if journal_of(target).exists() or not target.exists():
        run(restorer, source, target)
    assert target.read_bytes() == expected and not journal_of(target).exists()


def test_a_continued_run_restores_only_the_segment_it_was_in(
    restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=20, size=(16, 24)), tmp_path / "out.mp4"
    computed: list[Span] = []
    restore = SegmentRun.restore

    def counted(self: SegmentRun, span: Span, segment: torch.Tensor) -> torch.Tensor:
        if len(computed) == 4:
            computed.append(span)
            raise Stop
        computed.append(span)
        return restore(self, span, segment)

    monkeypatch.setattr(SegmentRun, "restore", counted)
    with pytest.raises(Stop):
        run(restorer, source, target)
    run(restorer, source, target)
    plan = plan_spans(20, SETTINGS["length"], SETTINGS["overlap"], SETTINGS["cuts"])
    assert computed == [*plan[:5], *plan[4:]]


def test_a_continued_run_shows_what_it_reads_on_and_is_cancelled_there(restorer: Restorer, tmp_path: Path) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=20, size=(16, 24)), tmp_path / "out.mp4"
    with pytest.raises(Stop):
        run(restorer, source, target, on_frames=stop_after(12))
    encoded: list[int] = []

    def cancel() -> None:
        if len(encoded) == 3:
            raise Stop

    with pytest.raises(Stop):
        run(restorer, source, target, on_frames=encoded.append, check_cancel=cancel)
    assert len(encoded) == 3 and not target.exists()  # in the midst of what was there already
    reports: list[tuple[float, str]] = []
    result = run(restorer, source, target, progress=lambda done, message, preview: reports.append((done, message)))
    reading = [done for done, message in reports if message == f"reading on to frame {result.resumed + 1}"]
    assert reading == [index / 20 for index in range(result.resumed)] and result.resumed >= 12
    shares = [done for done, _ in reports]
    assert shares == sorted(shares) and shares[-1] == 1


def test_a_cancel_reaches_the_check_of_what_is_there(tmp_path: Path) -> None:
    def cancel() -> None:
        raise Stop

    with Journal(tmp_path / "job", {}) as journal:
        journal.add(b"frames", 1)
    with pytest.raises(Stop), Journal(tmp_path / "job", {}, cancel):
        pass
    with Journal(tmp_path / "job", {}) as journal:
        assert journal.frames_done == 1


@pytest.mark.parametrize(("free", "warned"), [(20 * 32 * 48 * 1.5 - 1, True), (20 * 32 * 48 * 1.5, False)])
def test_a_disk_that_may_become_full_is_warned_of(
    restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    free: float, warned: bool,
) -> None:  # fmt: skip
    source = make_clip(tmp_path / "in.mp4", count=20, size=(16, 24))
    monkeypatch.setattr(video_job.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    run(restorer, source, tmp_path / "out.mp4")
    assert any("the disk may become full" in line for line in caplog.messages) == warned


@pytest.mark.parametrize(("depth", "codec", "warned"), [(8, None, False), (10, None, True), (10, "prores", False)])
def test_h264_that_few_players_play_is_said(
    restorer: Restorer, tmp_path: Path, caplog: pytest.LogCaptureFixture, depth: int, codec: str | None, warned: bool
) -> None:
    with VideoWriter(tmp_path / "in.mkv", 24, (16, 24), codec="ffv1", depth=depth) as writer:
        writer.write(torch.rand(2, 16, 24, 3))
    with VideoReader(tmp_path / "in.mkv") as reader:
        restore_video(restorer, footage_of(reader), Output(tmp_path / "out.mov", codec), SETTINGS)
    assert any("High 10" in line for line in caplog.messages) == warned


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "lose", "stray", "carry", "no carry"])
def test_damaged_chunks_are_restored_again(restorer: Restorer, tmp_path: Path, damage: str) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=20, size=(16, 24)), tmp_path / "out.mp4"
    run(restorer, source, tmp_path / "whole.mp4")
    with pytest.raises(Stop):
        run(restorer, source, target, on_frames=stop_after(15))
    chunks = sorted(journal_of(target).glob("*.chunk"))
    victim, data = chunks[2], chunks[2].read_bytes()
    if "carry" in damage:
        (carry,) = journal_of(target).glob("*.carry")
        carry.write_bytes(carry.read_bytes()[:-1]) if damage == "carry" else carry.unlink()
    elif damage == "lose":
        victim.unlink()
    elif damage == "stray":
        (journal_of(target) / "x.chunk").write_bytes(b"?")
        (journal_of(target) / "half.tmp").write_bytes(b"?")
    else:
        changed = {"truncate": data[: len(data) // 2], "empty": b"", "flip": data[:-9] + b"\0\1" + data[-7:]}
        victim.write_bytes(changed[damage])
    result = run(restorer, source, target)
    first_lost = int(victim.name[:9])
    whole = damage == "stray" or "carry" in damage
    assert result.resumed >= 12 if whole else result.resumed == first_lost
    assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize(
    ("change", "topic"),
    [({"seed": 5}, "settings"), ({"scale": 3}, "settings"), ({"quality": 12}, "output"), ("input", "input")],
)
def test_another_job_starts_afresh_and_says_why(
    restorer: Restorer, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, topic: str
) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=12, size=(16, 24)), tmp_path / "out.mp4"
    with pytest.raises(Stop):
        run(restorer, source, target, on_frames=stop_after(8))
    if change == "input":
        make_clip(source, count=13, size=(16, 24))
        change = {}
    with caplog.at_level(logging.WARNING, "setevsr_core"):
        assert run(restorer, source, target, **change).resumed == 0
    assert any("starting afresh" in line and topic in line for line in caplog.messages)


def test_old_chunks_are_gone_for_good_before_the_new_job_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path / "job", {"settings": 1}) as journal:
        journal.carry(1, b"in hand")
        journal.add(b"frames", 1)
    found: list[Any] = []

    def power_cut(path: Path, data: bytes) -> None:
        found.append(sorted(other.name for other in path.parent.iterdir()))
        raise Stop

    monkeypatch.setattr(journals, "sync_folder", lambda folder: found.append(folder.name))
    monkeypatch.setattr(journals, "write_atomically", power_cut)
    with pytest.raises(Stop), Journal(tmp_path / "job", {"settings": 2}):
        pass
    assert found == ["job", ["job.json", "lock"]]
    monkeypatch.undo()
    with Journal(tmp_path / "job", {"settings": 2}) as journal:
        assert journal.frames_done == 0


def test_the_input_is_known_again_in_another_place(restorer: Restorer, tmp_path: Path) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=12, size=(16, 24)), tmp_path / "out.mp4"
    with pytest.raises(Stop):
        run(restorer, source, target, on_frames=stop_after(8))
    moved = source.rename(tmp_path / "ütf ⚡ moved.mp4")
    assert run(restorer, moved, target).resumed > 0


def test_a_second_run_at_once_is_refused(restorer: Restorer, tmp_path: Path) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=9, size=(16, 24)), tmp_path / "out.mp4"

    def second(count: int) -> None:
        with pytest.raises(VideoError, match="another run is writing this video already"):
            run(restorer, source, target)
        raise Stop

    with pytest.raises(Stop):
        run(restorer, source, target, on_frames=second)
    assert run(restorer, source, target).num_frames == 9  # the lock went with the run


def test_only_unfinished_work_that_nobody_continues_is_dropped(tmp_path: Path) -> None:
    for name in ("old", "used", "new"):
        with Journal(tmp_path / name, {"name": name}) as journal:
            journal.add(b"frames", 1)
    (tmp_path / "no journal").mkdir()
    long_ago = time.time() - 31 * 86400
    with Journal(tmp_path / "used", {"name": "used"}):
        for name in ("old", "used", "no journal"):
            os.utime(tmp_path / name, (long_ago, long_ago))
        assert drop_abandoned(tmp_path, 30) == [tmp_path / "old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "no journal", "used"]


def test_work_that_finishes_just_now_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "job.json").touch()

    def now() -> float:  # asked after the folders were listed
        shutil.rmtree(tmp_path / "other")
        return 0.0

    monkeypatch.setattr(time, "time", now)
    assert drop_abandoned(tmp_path, 30) == [] and not (tmp_path / "other").exists()


def test_a_failed_start_leaves_no_folder(restorer: Restorer, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", count=3, size=(16, 24))
    with pytest.raises(SeTeVSRError):
        run(restorer, source, tmp_path / "out.mp4", quality=99)
    with pytest.raises(SeTeVSRError):
        run(restorer, source, tmp_path / "missing" / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a tiny file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_run_continued(restorer: Restorer, tmp_path: Path, tiny_disk: Path) -> None:
    source, target = make_clip(tmp_path / "in.mp4", count=12, size=(16, 24)), tiny_disk / "out.mp4"
    run(restorer, source, tmp_path / "out.mp4")
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"0" * 20 * 1024)
    with pytest.raises(VideoError, match="disk is full"):
        run(restorer, source, target)
    assert not target.exists() and not (tiny_disk / "out.mp4.part").exists()
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    run(restorer, source, target)
    assert target.read_bytes() == (tmp_path / "out.mp4").read_bytes()


def test_a_journal_without_write_access_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VideoError, match="unfinished work"), Journal(tmp_path / "file", {}):
        pass


# ---- frame times and transparency


def test_frames_keep_their_own_times_also_when_resumed(restorer: Restorer, tmp_path: Path) -> None:
    from .test_formats import uneven_clip
    from .video_helpers import stream_facts

    source, times = uneven_clip(tmp_path / "in.mkv")
    for name in ("whole.mp4", "parts.mp4"):
        if name == "parts.mp4":
            with pytest.raises(Stop):
                run(restorer, source, tmp_path / name, on_frames=stop_after(4))
        run(restorer, source, tmp_path / name)
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "parts.mp4").read_bytes()
    assert stream_facts(tmp_path / "parts.mp4")["times"] == times


def test_transparency_goes_the_whole_way(restorer: Restorer, tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    picture = torch.rand(16, 24, 4, generator=torch.Generator().manual_seed(3))
    picture[..., 3] = torch.linspace(0, 1, 24)
    with VideoWriter(source, 24, (16, 24), codec="ffv1", alpha=True) as writer:
        writer.write(picture.expand(4, -1, -1, -1))
    with VideoReader(source, alpha=True) as reader:
        output = Output(tmp_path / "out.mov", "prores", journal=tmp_path / "out.mov.setevsr")
        restore_video(restorer, footage_of(reader), output, SETTINGS)
    with VideoReader(tmp_path / "out.mov", alpha=True) as reader:
        frames = torch.stack(list(reader))
    assert frames.shape == (4, 32, 48, 4)
    assert (frames[0, :, 1:-1, 3].diff(dim=1) >= -0.01).all() and frames[0, :, -1, 3].min() > 0.95
    assert reader.frame_rate == Fraction(24)
