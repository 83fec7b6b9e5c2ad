"""The command line: lazy, one line per error, and `restore` from file to file with a stand-in for the networks."""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from setevsr_core import cli
from setevsr_core.errors import SeTeVSRError
from setevsr_core.streaming import Resume
from setevsr_core.video.reading import VideoReader

from .video_helpers import audio_packets, make_clip, stream_facts


def use_command(monkeypatch: pytest.MonkeyPatch, run: Any) -> list[argparse.Namespace]:
    """Puts a command `probe` with `--level` in place; returns the list of calls."""
    calls: list[argparse.Namespace] = []
    module: Any = types.ModuleType("setevsr_core.probe_command")

    def add_parser(subparsers: Any) -> None:
        parser = subparsers.add_parser("probe")
        parser.add_argument("--level", type=int, default=1)
        parser.set_defaults(run=wrapped)

    def wrapped(args: argparse.Namespace) -> Any:
        calls.append(args)
        return run(args)

    module.add_parser = add_parser
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "probe", (".probe_command", "a probe"))
    return calls


def test_a_command_is_run_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = use_command(monkeypatch, lambda args: 0)
    assert cli.main(["--verbose", "probe", "--level", "3"]) == 0
    assert calls[0].level == 3 and calls[0].verbose


def test_errors_for_the_user_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: argparse.Namespace) -> None:
        raise SeTeVSRError("'a.mp4' is empty; copy it again")

    use_command(monkeypatch, fail)
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "setevsr: 'a.mp4' is empty; copy it again\n"


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    use_command(monkeypatch, lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_interrupting_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    use_command(monkeypatch, interrupt)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "setevsr: interrupted\n"


RESTORE = ["restore", "a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["restore"], [*RESTORE, "--dtype", "int8"], [*RESTORE, "--fps", "0"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: setevsr" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "24/0", "-5", "fast", "nan"])
def test_what_is_no_frame_rate_is_named(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([*RESTORE, f"--fps={rate}"])
    assert f"argument --fps: '{rate}' is no frame rate; give one above 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["restore", "--help"]])
def test_help_names_the_commands_without_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom setevsr_core.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as done:\n    assert not done.code\n"
        "heavy = {'torch', 'numpy', 'cv2', 'av', 'diffusers'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    root = Path(cli.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=root, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("degrade" if arguments == ["--help"] else "--strength") in done.stdout


class FakeRestorer:
    """Enlarges by repeating pixels and hands frames on in blocks of three; remembers what it was asked."""

    made: dict[str, Any] = {}
    asked: dict[str, Any] = {}

    @classmethod
    def from_preset(cls, name: str, device: Any = None, dtype: Any = None) -> FakeRestorer:
        cls.made = {"name": name, "device": device, "dtype": dtype}
        return cls()

    def fingerprint(self, **settings: Any) -> str:
        return repr(settings)

    def stream(
        self, frames: Iterator[torch.Tensor], *, num_frames: int | None, resume: Resume, on_carry: Any, progress: Any,
        check_cancel: Any, **settings: Any,
    ) -> Any:  # fmt: skip
        FakeRestorer.asked = {"num_frames": num_frames, **settings}
        if settings.get("steps") == 13:
            raise SeTeVSRError("steps is 13; that is bad luck")
        return self._blocks(islice(frames, resume.first_frame, None), int(settings["scale"]), progress)

    def _blocks(self, frames: Iterator[torch.Tensor], scale: int, progress: Any) -> Iterator[torch.Tensor]:
        held: list[torch.Tensor] = []
        for frame in frames:
            progress(0.5, "denoise", None)
            held.append(frame.repeat_interleave(scale, 0).repeat_interleave(scale, 1))
            if len(held) == 3:
                yield torch.stack(held)
                held = []
        if held:
            yield torch.stack(held)


@pytest.fixture
def fake_restorer(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("setevsr_core.restorer")
    module.Restorer = FakeRestorer
    monkeypatch.setitem(sys.modules, "setevsr_core.restorer", module)


@pytest.mark.usefixtures("fake_restorer")
def test_restore_writes_an_enlarged_video_with_its_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "in.mp4", count=10, rate=Fraction(30000, 1001))
    target = tmp_path / "out.mp4"
    assert cli.main(["restore", str(source), str(target), "--scale", "2", "--crf", "4"]) == 0
    facts = stream_facts(target)
    assert facts["rate"] == Fraction(30000, 1001) and len(facts["times"]) == 10 and facts["size"] == (96, 128)
    assert audio_packets(target) == audio_packets(source)
    with VideoReader(source) as before, VideoReader(target) as after:
        for old, new in zip(before, after, strict=True):
            assert abs(float(old.mean() - new.mean())) < 1 / 255
    assert capsys.readouterr().out == f"{target}: 10 frames, 128x96\n"
    assert FakeRestorer.made == {"name": "nano", "device": None, "dtype": None}
    assert FakeRestorer.asked == {"num_frames": 10, "scale": 2.0, "cuts": "auto"}


@pytest.mark.usefixtures("fake_restorer")
def test_restore_passes_on_what_was_asked(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", count=12)
    options = (
        "--preset big --steps 8 --seed 7 --strength 0.5 --sampler ddim --length 9 --overlap 3 --colour lab "
        "--fusion 0.8 --tile 32 --tile-overlap 8 --no-cuts --device cpu --dtype bfloat16 --start 0.25 --duration 0.125"
    )
    assert cli.main(["restore", str(source), str(tmp_path / "out.mkv"), *options.split()]) == 0
    assert FakeRestorer.made == {"name": "big", "device": torch.device("cpu"), "dtype": torch.bfloat16}
    assert FakeRestorer.asked == {
        "num_frames": 3,
        "scale": 4.0,
        "steps": 8,
        "seed": 7,
        "strength": 0.5,
        "sampler": "ddim",
        "length": 9,
        "overlap": 3,
        "colour": "lab",
        "fusion": 0.8,
        "tile": 32,
        "tile_overlap": 8,
        "cuts": (),
    }
    assert len(stream_facts(tmp_path / "out.mkv")["times"]) == 3


@pytest.mark.usefixtures("fake_restorer")
@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("missing.mp4", "out.mp4", [], "does not exist"),
        ("in.mp4", "in.mp4", [], "is the input itself"),
        ("in.mp4", "out.gif", [], r"\.gif"),
        ("in.mp4", "out.mp4", ["--scale", "9"], "scale"),
        ("in.mp4", "out.mp4", ["--device", "toaster"], "toaster"),
        ("in.mp4", "out.mp4", ["--device", "cuda:77"], "'cuda:77', which cannot compute here"),
        ("in.mp4", "out.mp4", ["--device", "meta"], "'meta', which cannot compute here"),
        ("in.mp4", "in.mp4/deep/", [], "'{folder}/in.mp4/deep/' cannot be made: Not a directory"),
        ("in.mp4", "out.mp4", ["--steps", "13"], "bad luck"),
    ],
)
def test_restore_fails_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str, options: list[str], message: str
) -> None:
    make_clip(tmp_path / "in.mp4", count=2)
    assert cli.main(["restore", str(tmp_path / source), f"{tmp_path}/{target}", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message.replace("\\", "").format(folder=tmp_path) in error
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize(
    "command",
    [
        "pack OUT IN --segments 1",
        "train vae --size nano --lpips-weight 0 --data IN --out OUT",
        "evaluate IN --out OUT",
    ],
)
def test_a_file_where_a_folder_should_be_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    make_clip(tmp_path / "in" / "clip.mp4")
    (tmp_path / "out").write_text("a file of mine")
    paths = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out")}
    assert cli.main([paths.get(word, word) for word in command.split()]) == cli.FAILED
    assert capsys.readouterr().err.splitlines()[-1] == f"setevsr: '{tmp_path / 'out'}': File exists"
    assert (tmp_path / "out").read_text() == "a file of mine"


@pytest.mark.parametrize("device", ["toaster", "cuda:77", "vulkan"])
def test_an_estimate_for_a_device_that_is_not_there_is_refused(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["estimate", "--size", "64x48", "--frames", "5", "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 200 and f"device is '{device}'" in error
