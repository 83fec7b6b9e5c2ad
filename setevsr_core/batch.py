"""Which videos a command means, and where each result goes."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .errors import VideoError

VIDEOS = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".m2ts",
    ".wmv",
    ".flv",
    ".ogv",
    ".3gp",
)


def plan(inputs: Sequence[str], output: str, ending: str) -> tuple[list[tuple[Path, Path]], bool]:
    """((input, output) of every video, whether `output` is a folder for several).

    An input is a video file, a folder of videos (its direct files), a folder of numbered pictures (one video), or a
    pattern. `output` is a folder if there is more than one input, if it is an existing folder, or ends with a slash;
    a result is named after its video, and after its ending too where two would collide.
    Errors: VideoError when nothing is found, or `output` would have to be a folder and is a file.
    """
    from .video.sequence import is_pattern

    found = [path for name in inputs for path in _expand(name)]
    sources = list({path.resolve(): path for path in found}.values())
    target = Path(output)
    chosen_one_by_one = len(inputs) == 1 and sources == [Path(inputs[0])]
    several = not chosen_one_by_one or target.is_dir() or output.endswith(("/", "\\"))
    if not several:
        return [(sources[0], target)], False
    if target.is_file() or is_pattern(target) or target.suffix.lower() in VIDEOS:
        raise VideoError(f"'{output}' is the name of one result, and there are {len(sources)} inputs; give a folder")
    ending = ending if ending.startswith(".") else "." + ending
    stems = Counter(path.stem for path in sources)
    taken: Counter[str] = Counter()
    jobs: list[tuple[Path, Path]] = []
    for path in sources:
        stem = path.stem if stems[path.stem] == 1 else path.name.replace(".", "_")
        taken[stem] += 1  # the same name in two folders
        jobs.append((path, target / f"{stem}{f'_{taken[stem]}' if taken[stem] > 1 else ''}{ending}"))
    return jobs, True


def _expand(name: str) -> list[Path]:
    """The videos that one input stands for."""
    from .video.sequence import pictures_in

    path = Path(name)
    if path.is_dir():
        videos = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in VIDEOS and entry.is_file())
        if videos:
            return videos
        if pictures_in(path):
            return [path]
        raise VideoError(f"'{name}' is a folder without videos or pictures; give another one")
    if not path.exists() and glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        if not matches:
            raise VideoError(f"nothing is called '{name}'; check the pattern")
        return [video for match in matches for video in (_expand(str(match)) if match.is_dir() else [match])]
    return [path]
