"""Unfinished work on disk: finished frames as lossless chunks beside a description of the job.

A chunk's name is its commit: `<first>-<stop>-<sha256>.chunk` appears by a rename, after its bytes are on the disk. So
whatever ends a run - kill -9, a power cut, a full disk - leaves chunks that are whole or are recognised as broken.
`<first>-<sha256>.carry` holds what the run had in hand when the frames before `first` were finished. It is written
before the chunk that ends there, so whoever finds the chunk finds its carry.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import VideoError
from .durable import sync_folder, write_atomically
from .locking import LockFile

logger = logging.getLogger(__name__)

VERSION = 1
_NAME = re.compile(r"(\d{9})-(\d{9})-([0-9a-f]{32})\.chunk")
_CARRY = re.compile(r"(\d{9})-([0-9a-f]{32})\.carry")


class Journal:
    """The folder of one job; a context manager that holds the job's lock.

    `job` describes all that decides the result, by topic (values that JSON can hold). A folder of the same job is
    continued; one of another job is emptied and the log says which topic differs. Leaving the block keeps the folder
    if it holds chunks, unless `finish()` was called. check_cancel() is called for every chunk that is looked at, and
    stops by raising.
    Errors: VideoError if another process works on the folder, or it cannot be written.
    """

    def __init__(
        self, folder: Path, job: Mapping[str, Any], check_cancel: Callable[[], None] | None = None
    ) -> None:
        self.folder = folder
        self._check_cancel = check_cancel or (lambda: None)
        self._job = json.loads(json.dumps({"version": VERSION, **job}, default=str))
        self._lock: LockFile | None = None
        self._chunks: list[Path] = []
        self.frames_done = 0

    def __enter__(self) -> Journal:
        with _disk_errors(self.folder):
            self._lock = _lock(self.folder)
            try:
                self._adopt()
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None and not self._chunks:
            self._remove()
        self._release()

    def add(self, data: bytes, frames: int) -> None:
        """Keeps a chunk with the next `frames` frames; on return it survives a power cut."""
        first, stop = self.frames_done, self.frames_done + frames
        path = self.folder / f"{first:09d}-{stop:09d}-{_digest(data)}.chunk"
        with _disk_errors(self.folder):
            write_atomically(path, data)
        self._chunks.append(path)
        self.frames_done = stop
        self._drop_carries(keep=stop)

    def carry(self, first: int, data: bytes) -> None:
        """Keeps what is in hand once the frames before `first` are added; call it before they are."""
        with _disk_errors(self.folder):
            write_atomically(self.folder / f"{first:09d}-{_digest(data)}.carry", data)

    def carried(self) -> bytes | None:
        """What `carry` kept for the frames that are done; None if it is not there or damaged."""
        for path in self.folder.glob(f"{self.frames_done:09d}-*.carry"):
            with _disk_errors(self.folder):
                data = path.read_bytes()
            match = _CARRY.fullmatch(path.name)
            if match and match[2] == _digest(data):
                return data
            logger.warning("'%s' is damaged; the segments that overlap are restored again", path)
        return None

    def chunks(self) -> list[Path]:
        """The whole chunks from frame 0 on, in order."""
        return list(self._chunks)

    def finish(self) -> None:
        """The result is complete: the folder goes away."""
        self._chunks = []
        self._remove()

    def _adopt(self) -> None:
        """Takes over what an earlier run of the same job has left, and clears away the rest."""
        description = self.folder / "job.json"
        known = _read_json(description)
        if known == self._job:
            self._find_chunks()
            if self.frames_done:
                logger.warning("continuing an unfinished run: %d frames are there already", self.frames_done)
        elif known is not None:
            logger.warning("starting afresh: %s; the unfinished work in '%s' is dropped",
                           _difference(known, self._job), self.folder)  # fmt: skip
        self._clear()
        if known != self._job:
            # Not before the old chunks are gone for good: beside the new description they would pass for its own.
            sync_folder(self.folder)
            write_atomically(description, json.dumps(self._job, indent=1, sort_keys=True).encode())

    def _clear(self) -> None:
        """Removes chunks that are not taken over, what was half written, and all carries but the one to go on from."""
        for path in self.folder.iterdir():
            if path.suffix in (".chunk", ".tmp") and path not in self._chunks:
                path.unlink(missing_ok=True)
        self._drop_carries(keep=self.frames_done)

    def _drop_carries(self, keep: int) -> None:
        for path in self.folder.glob("*.carry"):
            if not path.name.startswith(f"{keep:09d}-"):
                path.unlink(missing_ok=True)

    def _find_chunks(self) -> None:
        for path in sorted(self.folder.glob("*.chunk")):
            self._check_cancel()
            match = _NAME.fullmatch(path.name)
            if match is None or int(match[1]) != self.frames_done or int(match[2]) <= self.frames_done:
                return
            if _digest(path.read_bytes()) != match[3]:
                logger.warning("'%s' is damaged; its frames are restored again", path)
                return
            self._chunks.append(path)
            self.frames_done = int(match[2])

    def _remove(self) -> None:
        if self._lock is not None:
            _remove(self.folder, self._lock)
            self._lock = None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def drop_abandoned(parent: Path, days: float) -> list[Path]:
    """Removes the journals in `parent` that no run has written for so many days, and returns their folders.

    What is in use, or is no journal, stays.
    """
    dropped = []
    for folder in sorted(path.parent for path in parent.glob("*/job.json")):
        try:
            if time.time() - folder.stat().st_mtime < days * 86400:
                continue
            lock = _lock(folder)
        except (VideoError, OSError):  # in use, or finished just now
            continue
        _remove(folder, lock)
        dropped.append(folder)
    return dropped


def _remove(folder: Path, lock: LockFile) -> None:
    """Removes a journal whose lock is held, and lets go of that."""
    if os.name == "nt":  # Windows removes no open file
        lock.close()
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _lock(folder: Path) -> LockFile:
    """The locked file of a journal, whose folder is made if need be."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            return LockFile(folder / "lock")
        except FileNotFoundError:  # another run has just finished and removed the folder
            continue


class _disk_errors:  # noqa: N801 - reads as a context
    """OSError -> VideoError that names the folder; a full disk is said plainly."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VideoError(
                f"The disk is full while '{self._folder}' is written; free some space and run the same again: "
                "it continues where it stopped"
            ) from error
        raise VideoError(
            f"'{self._folder}', the folder for unfinished work, cannot be written: {error.strerror or error}"
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    if not isinstance(old, dict) or old.get("version") != new["version"]:
        return "another version wrote it"
    topics = [topic for topic in sorted({*old, *new}) if old.get(topic) != new.get(topic)]
    return f"the {' and the '.join(topics)} changed"
