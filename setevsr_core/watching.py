"""Folders that are watched: every new video once, when it is there completely."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

Job = tuple[Path, Path]
Stamp = tuple[int, int]


def watch(find: Callable[[], list[Job]], interval: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[Job]:
    """(input, output) of every video that `find` comes to list, for ever; ends at Ctrl-C between two looks.

    A video is given when its size and time are the same in two looks, `interval` seconds apart, so none that is still
    being copied; it is given again only if it changes. One whose result is there when it first appears is left out.
    """
    known: dict[Path, Stamp] = {}
    given: dict[Path, Stamp] = {}
    while True:
        for source, target in find():
            stamp = _stamp(source)
            if stamp is None or given.get(source) == stamp:
                continue
            if source not in given and target.exists():
                given[source] = stamp
            elif known.get(source) == stamp:
                given[source] = stamp
                yield source, target
            known[source] = stamp
        try:
            sleep(interval)
        except KeyboardInterrupt:
            return


def _stamp(path: Path) -> Stamp | None:
    """Size and time of a file, of a folder its newest entry's; None if it has just gone."""
    try:
        entries = [path, *path.iterdir()] if path.is_dir() else [path]
        facts = [entry.stat() for entry in entries]
    except OSError:
        return None
    return sum(fact.st_size for fact in facts), max(fact.st_mtime_ns for fact in facts)
