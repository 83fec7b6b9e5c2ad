"""One run at a time on one result: a locked file, which the system lets go of however the process ends."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

from ..errors import VideoError

logger = logging.getLogger(__name__)


class LockFile:
    """Holds `path`, an empty file that is made if need be, for this object alone until `close()` or `remove()`.

    A file that a killed process has left is simply taken over.
    Errors: VideoError if another run holds it; OSError if it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = _open_locked(path)

    def close(self) -> None:
        """Lets go of the file and keeps it; harmless when that was done before."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def remove(self) -> None:
        """Lets go of the file and removes it; harmless when that was done before."""
        if self._handle is None:
            return
        if os.name == "nt":  # Windows removes no open file
            self.close()
        with suppress(OSError):  # on Windows the next run may have it by now
            self._path.unlink()
        self.close()


def _open_locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                logger.warning("the disk of '%s' knows no locks: let no second run write the same video", path)
                return handle
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise VideoError(
                    f"another run is writing this video already ('{path}' is locked); wait for it or stop it"
                ) from error
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # locked a file that its owner has just removed


def _lock(handle: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
