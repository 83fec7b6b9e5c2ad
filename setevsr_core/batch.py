"""Which videos a command means, and where each result goes."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .errors import VideoError
from .video.formats import VIDEO_ENDINGS, is_video


def plan(
    inputs: Sequence[str], output: str, ending: str, *, may_be_empty: bool = False
) -> tuple[list[tuple[Path, Path]], bool]:
    """((input, output) of every video, whether `output` is a folder for several).

    An input is a video file, a folder of videos (its direct files), a folder of numbered pictures (one video), or a
    pattern. `output` is a folder if there is more than one input, if it is an existing folder, or ends with a slash;
    a result is named after its video, and after its ending too where two would collide. may_be_empty: an input in
    which there is nothing (yet) is left out, instead of being an error. What a pattern finds among the results of an
    earlier run, directly in `output`, is left out.
    Errors: VideoError for an input in which nothing is found, or only results, for an `output` that would have to be a
    folder and names a file, or an input folder, and for numbered pictures without a folder of their own.
    """
    from .video.sequence import is_pattern

    target = Path(output)
    found = [_expand(name) for name in inputs]
    if not may_be_empty:
        _require_all(inputs, found)
    found = [_without_results(name, videos, target) for name, videos in zip(inputs, found, strict=True)]
    sources = list({path.resolve(): path for videos in found for path in videos}.values())
    chosen_one_by_one = len(inputs) == 1 and sources == [Path(inputs[0])]
    several = not chosen_one_by_one or target.is_dir() or output.endswith(("/", "\\"))
    if not several:
        if is_pattern(target) and target.parent.name in ("", ".."):
            raise VideoError(f"'{output}' names no new folder, and pictures get one of their own; give one, "
                             f"as in restored/{target.name}")
        return [(sources[0], target)], False
    if target.is_file() or is_pattern(target) or target.suffix.lower() in VIDEO_ENDINGS:
        raise VideoError(f"'{output}' is the name of one file, and there may be several results; give a folder")
    if target.resolve() in (Path(name).resolve() for name in inputs):
        raise VideoError(f"'{output}' is an input itself: the next run would take the results for videos; give another "
                         "folder")
    ending = ending if ending.startswith(".") else "." + ending
    stems = Counter(path.stem for path in sources)
    taken: Counter[str] = Counter()
    jobs: list[tuple[Path, Path]] = []
    for path in sources:
        stem = path.stem if stems[path.stem] == 1 else path.name.replace(".", "_")
        taken[stem] += 1  # the same name in two folders
        jobs.append((path, target / f"{stem}{f'_{taken[stem]}' if taken[stem] > 1 else ''}{ending}"))
    return jobs, True


def _require_all(inputs: Sequence[str], found: Sequence[list[Path]]) -> None:
    for name, videos in zip(inputs, found, strict=True):
        if not videos and Path(name).is_dir():
            raise VideoError(f"'{name}' is a folder without videos or pictures; give another one")
        if not videos:
            raise VideoError(f"no video is called '{name}'; check the pattern")


def _without_results(name: str, videos: list[Path], target: Path) -> list[Path]:
    """What a pattern has found but for what lies where the results go: the next look would take them for videos."""
    if Path(name).exists():  # named by the user, or in a folder so named
        return videos
    results = target.resolve()
    kept = [video for video in videos if results not in (video.resolve(), video.parent.resolve())]
    if videos and not kept:
        raise VideoError(f"'{name}' finds videos in '{target}' only, where the results go; give another folder")
    return kept


def _expand(name: str) -> list[Path]:
    """The videos that one input stands for; none in an empty folder, or if a pattern fits nothing."""
    path = Path(name)
    try:
        if path.is_dir():
            return _videos_in(path)
        if not path.exists() and glob.has_magic(name):
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
            return [video for match in matches for video in (_videos_in(match) if match.is_dir() else [match])]
    except OSError as error:
        raise VideoError(f"'{name}' cannot be read: {error.strerror}; check it, or give another input") from error
    return [path]


def _videos_in(folder: Path) -> list[Path]:
    """The videos of a folder, or the folder itself where it holds numbered pictures instead."""
    from .video.sequence import pictures_in

    videos = sorted(entry for entry in folder.iterdir() if is_video(entry) and entry.is_file())
    return videos or ([folder] if pictures_in(folder) else [])
