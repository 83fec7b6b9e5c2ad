"""`setevsr restore IN... OUT`: videos in, restored videos out, frame by frame, sound copied, resumed if interrupted."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from .errors import SeTeVSRError, SettingsError, VideoError
from .settings import DTYPES

log = logging.getLogger(__name__)

SOME_FAILED = 3
# Options that are handed to the restorer as they are; one that is not given stays with the restorer's own default.
_SETTINGS = (
    "scale",
    "steps",
    "seed",
    "strength",
    "sampler",
    "length",
    "overlap",
    "colour",
    "fusion",
    "tile",
    "tile_overlap",
    "steady",
    "steady_result",
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "restore",
        help="restore and enlarge a video",
        description="Restores and enlarges videos of any length in bounded memory; their sound is copied as it is "
        "wherever the container can hold it. "
        "A run that was interrupted is continued by the same command.",
    )
    parser.add_argument(
        "inputs", metavar="IN", nargs="+", help="videos, folders of videos or of numbered pictures, or patterns (*.mp4)"
    )
    parser.add_argument(
        "output", metavar="OUT",
        help="the video to write (.mp4, .mov, .mkv, .webm), pictures (folder/%%06d.png), or a folder for several",
    )  # fmt: skip
    parser.add_argument("--preset", default="nano", help="name or folder of a trained preset (default: nano)")
    parser.add_argument("--scale", type=float, default=4.0, help="enlargement, 1 to 8, also fractions (default: 4)")
    parser.add_argument(
        "--steps", type=int, help="denoising steps; 0 decodes without diffusion (default: the preset's)"
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same video (default: 0)")
    parser.add_argument("--strength", type=float, help="above 0 to 1: lower is closer to the input and faster")
    parser.add_argument("--sampler", help="ddpm, ddim, dpmpp_2m, unipc, lcm or tcd")
    parser.add_argument(
        "--length", type=int, help="frames restored together; more is steadier and needs more memory (default: 5)"
    )
    parser.add_argument("--overlap", type=int, help="frames shared by neighbouring segments (default: 2)")
    parser.add_argument(
        "--colour", help="colour correction after the input: wavelet, adain, lab or none (default: wavelet)"
    )
    parser.add_argument("--fusion", type=float, help="how much the decoder sees of the input, 0 to 1 (default: 1)")
    parser.add_argument(
        "--tile", type=int, help="side of a diffusion tile in latent pixels (8 output pixels each), 0 for none"
    )
    parser.add_argument("--tile-overlap", type=int, help="overlap of the tiles in latent pixels")
    parser.add_argument(
        "--steady", type=int, metavar="RADIUS",
        help="average every frame along the motion with so many before and after it, 0 to 4 (default: the preset's)",
    )  # fmt: skip
    parser.add_argument(
        "--steady-result", type=int, metavar="RADIUS",
        help="the same with the restored frames of each segment, against flicker (default: the preset's)",
    )  # fmt: skip
    parser.add_argument(
        "--no-cuts", action="store_true", help="do not look for scene cuts (else no segment crosses a cut)"
    )
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="begin at this second (default: 0)")
    parser.add_argument("--duration", type=float, metavar="S", help="restore only so many seconds")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: CUDA if there is one, else the CPU)")
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="spread the segments over a Ray cluster (host:6379, ray://host:10001), or 'local' for all of this machine",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="workers of the cluster (default: one per GPU, else per machine)")
    parser.add_argument("--dtype", choices=DTYPES, help="number type of the networks (default: by device)")
    parser.add_argument("--codec", help="h264, h265, av1, vp9, ffv1 or prores (default: h264; vp9 for .webm)")
    parser.add_argument(
        "--quality", "--crf", type=float, dest="quality",
        help="on the codec's own scale, for h264 0 (lossless) to 51 (default: 18 for h264, alike for the others)",
    )  # fmt: skip
    parser.add_argument("--ending", default=".mp4", help="kind of file in an output folder (default: .mp4)")
    parser.add_argument("--fps", type=_frame_rate, default=Fraction(24), help="frame rate of a folder of pictures")
    parser.add_argument("--skip-existing", action="store_true", help="leave out videos whose result is there already")
    parser.add_argument("--no-resume", action="store_true", help="keep no unfinished work on the disk")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="S",
        help="keep looking for new videos in the inputs, every S seconds (default: 10), until Ctrl-C",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON: one object, or a line each")
    parser.set_defaults(run=run)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `Restorer.stream`: what was given; the rest is left to the preset and its defaults."""
    settings = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    settings["cuts"] = () if args.no_cuts else "auto"
    return settings


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or 3 if some of several videos failed. Errors: SeTeVSRError if the only one failed, or the networks
    cannot be had, without which all would fail; a file that was there before stays untouched then.
    """
    done = failed = 0
    rows: list[dict[str, Any]] = []
    with _Networks(args) as networks:
        jobs, several = _jobs(args)
        for source, target in jobs:
            try:
                with _readable_errors(source):
                    row = _restore_one(args, source, target, networks)
            except SeTeVSRError as error:
                if networks.failed or not (several or args.json):
                    raise
                row = {"input": str(source), "output": str(target), "status": "failed", "error": str(error)}
            failed, done = failed + (row["status"] == "failed"), done + (row["status"] != "failed")
            if args.watch is None:
                rows.append(row)
            if not args.json:
                _print_row(row)
            elif args.watch is not None:
                print(json.dumps(row), flush=True)
    if args.json and args.watch is None:
        print(json.dumps({"files": rows, "done": done, "failed": failed}, indent=1))
    elif several and not args.json:
        print(f"{done} of {done + failed} videos are done" + (f", {failed} failed" if failed else ""))
    return 0 if not failed else SOME_FAILED if several else 2


def _jobs(args: argparse.Namespace) -> tuple[Iterable[tuple[Path, Path]], bool]:
    """(input, output) of every video, whether they are several; with --watch for ever."""
    from .batch import plan

    if args.watch is None:
        jobs, several = plan(args.inputs, args.output, args.ending)
        if several:
            _make_folder(args.output)
        return jobs, several
    from .watching import watch

    if not 0 < args.watch < math.inf:
        raise SettingsError(f"--watch is {args.watch:g}; give the seconds between two looks, above 0")
    folder = args.output.rstrip("/\\") + "/"

    def look() -> list[tuple[Path, Path]]:
        return plan(args.inputs, folder, args.ending, may_be_empty=True)[0]

    def find() -> list[tuple[Path, Path]]:
        try:
            return look()
        except VideoError as error:  # such as a network folder that is away for a while
            log.warning("%s; looking again in %g seconds", error, args.watch)
            return []

    look()  # what cannot be meant is said at once
    _make_folder(folder)
    return watch(find, args.watch), True


@contextmanager
def _readable_errors(source: Path) -> Iterator[None]:
    """One sentence for what has nothing to do with this program, so that the other videos are not stopped by it."""
    from .memory import readable_memory_error

    try:
        with readable_memory_error():
            yield
    except OSError as error:
        raise VideoError(f"'{source}' cannot be restored: {error}") from error


def _make_folder(name: str) -> None:
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoError(f"the folder '{name}' cannot be made: {error.strerror}; give another one") from error


def _frame_rate(text: str) -> Fraction:
    """The value of --fps."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no frame rate; give one above 0, such as 25 or 30000/1001")
    return rate


def _restore_one(args: argparse.Namespace, source: Path, target: Path, networks: _Networks) -> dict[str, Any]:
    """One row of the summary. Errors: SeTeVSRError."""
    from tqdm import tqdm

    from .video_job import Output, footage_of, restore_video

    if args.skip_existing and _is_there(target):
        return {"input": str(source), "output": str(target), "status": "skipped"}
    if _same_file(source, target):
        raise VideoError(f"'{target}' is the input itself; choose another name for the result")
    begin = time.monotonic()
    with _open(args, source, target) as reader:
        restorer = networks.restorer()
        journal = None if args.no_resume else journal_beside(target)
        output = Output(target, args.codec, args.quality, journal)
        with tqdm(total=reader.expected_frames, unit="frame", desc=source.name, disable=None) as bar:
            result = restore_video(
                restorer, footage_of(reader), output, settings_of(args),
                progress=lambda done, message, preview: bar.set_postfix_str(message), on_frames=bar.update,
            )  # fmt: skip
    return {
        "input": str(source), "output": str(target), "status": "done", "frames": result.num_frames,
        "width": result.size[1], "height": result.size[0], "resumed_frames": result.resumed,
        "seconds": round(time.monotonic() - begin, 2),
    }  # fmt: skip


def journal_beside(target: Path) -> Path:
    """The folder for the unfinished work of a result, `OUT.setevsr`; for pictures beside their folder."""
    from .video.sequence import is_pattern

    named = target.parent if is_pattern(target) else target
    return named.with_name(named.name + ".setevsr")


def _is_there(target: Path) -> bool:
    """Whether a result is complete: its file, or the folder of its pictures."""
    from .video.sequence import is_pattern

    if is_pattern(target):
        return target.parent.is_dir() and any(target.parent.iterdir())
    return target.exists()


def _open(args: argparse.Namespace, source: Path, target: Path) -> Any:
    """The reader of a video file or of a folder of pictures."""
    from .video.reading import VideoReader
    from .video.sequence import SequenceReader
    from .video_job import keeps_alpha

    alpha = keeps_alpha(target, args.codec)
    if source.is_dir():
        return SequenceReader(source, args.fps, args.start, args.duration, alpha)
    return VideoReader(source, args.start, args.duration, alpha)


def _print_row(row: dict[str, Any]) -> None:
    if row["status"] == "done":
        print(f"{row['output']}: {row['frames']} frames, {row['width']}x{row['height']}")
    elif row["status"] == "skipped":
        print(f"{row['output']}: is there already")
    else:
        print(f"setevsr: {row['error']}", file=sys.stderr)


class _Networks:
    """The restorer of the options, made for the first video that can be read and kept for the others.

    Errors, at once: SettingsError for a device that is not there; on a cluster only its workers know.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from .devices import usable_device

        self._args = args
        self._device = None if args.ray or args.device is None else usable_device(args.device)
        self._restorer: Any = None
        self._open = ExitStack()
        self.failed = False
        """Whether the restorer could not be made."""

    def restorer(self) -> Any:
        if self._restorer is None:
            self.failed = True
            self._restorer = self._cluster() if self._args.ray else self._local()
            self.failed = False
        return self._restorer

    def _cluster(self) -> Any:
        from .cluster import ClusterRestorer

        args = self._args
        return self._open.enter_context(
            ClusterRestorer(args.ray, args.preset, device=args.device, dtype=args.dtype, workers=args.workers)
        )

    def _local(self) -> Any:
        import torch

        from .restorer import Restorer

        dtype = None if self._args.dtype is None else getattr(torch, self._args.dtype)
        return Restorer.from_preset(self._args.preset, device=self._device, dtype=dtype)

    def __enter__(self) -> _Networks:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()


def _same_file(first: Path, second: Path) -> bool:
    return second.exists() and first.exists() and first.samefile(second)

