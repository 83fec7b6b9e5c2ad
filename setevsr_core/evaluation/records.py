"""Rows of an evaluation on disk: one line per clip and method, written as they come, so that a run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, SettingsError

TRUTH = "truth"
"""Name of the row that holds the truth's own figures."""


@dataclass(frozen=True)
class Row:
    """Figures of one method on one clip. shift: pixels (right, down) and their standard error; seconds: per frame."""

    clip: str
    method: str
    fingerprint: str
    frames: int
    size: tuple[int, int]
    seconds: float
    shift: tuple[float, float, float] | None = None
    figures: dict[str, float | None] = field(default_factory=dict)


class Records:
    """The rows in a folder's `rows.jsonl`, the newest of each clip and method, and the settings they were made with."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Errors: SettingsError where the folder holds an evaluation with other settings."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._settings = folder / "rows.jsonl", folder / "settings.json"
        wanted = json.loads(json.dumps(dict(settings)))
        if self._settings.exists():
            there = _read_json(self._settings)
            changed = sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))
            if changed:
                key = changed[0]
                raise SettingsError(f"'{folder}' holds an evaluation with {key} {there.get(key)!r} and not "
                                    f"{wanted.get(key)!r}; choose another folder with --out")
        else:
            self._settings.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
        self.rows = self._read()

    def _read(self) -> dict[tuple[str, str], Row]:
        rows: dict[tuple[str, str], Row] = {}
        if not self.path.exists():
            return rows
        text = self.path.read_text("utf-8")
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # the run ended in the middle of this line
            with self.path.open("r+b") as file:
                file.truncate(len(text.encode()) - len(lines.pop().encode()))
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                values["size"] = tuple(values["size"])
                values["shift"] = None if values["shift"] is None else tuple(values["shift"])
                row = Row(**values)
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"line {number} of '{self.path}' is damaged ({error}); remove that line") from error
            rows[row.clip, row.method] = row
        return rows

    def find(self, clip: str, method: str, fingerprint: str, figures: list[str]) -> Row | None:
        """The row of this very method with all these figures, if it was measured already."""
        row = self.rows.get((clip, method))
        if row is None or row.fingerprint != fingerprint or not set(figures) <= set(row.figures):
            return None
        return row

    def add(self, row: Row) -> None:
        """Appends the row and makes sure that it is on the disk."""
        self.rows[row.clip, row.method] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"'{path}' is damaged ({error}); choose another folder with --out") from error
