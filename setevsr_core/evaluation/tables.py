"""Tables of an evaluation: means with their intervals, and every clip, as Markdown and CSV."""

from __future__ import annotations

import csv
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .measures import MEASURES
from .records import TRUTH, Row
from .statistics import Interval, bootstrap

ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
SECONDS = "s/frame"


def title(name: str) -> str:
    """The heading of a column, with an arrow to the better side."""
    return name if name not in MEASURES else MEASURES[name].title + ARROWS[MEASURES[name].better]


def means(rows: Sequence[Row], names: Sequence[str], seed: int) -> dict[str, dict[str, Interval]]:
    """Method -> figure -> mean over the clips that have it; methods in the order of their first row."""
    result: dict[str, dict[str, Interval]] = {}
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        result[method] = {}
        for name in names:
            values = [value for row in own if (value := value_of(row, name)) is not None]
            if values:
                result[method][name] = bootstrap(values, seed=seed)
    return result


def value_of(row: Row, name: str) -> float | None:
    """A figure of a row, or its time per frame (none for the truth)."""
    if name == SECONDS:
        return None if row.method == TRUTH else row.seconds
    return row.figures.get(name)


def columns(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The figures that any row has, in the given order, and the time."""
    return [name for name in [*names, SECONDS] if any(value_of(row, name) is not None for row in rows)]


def number(value: float | None, name: str) -> str:
    """As many digits as the figure deserves."""
    if value is None or math.isnan(value):
        return "–"
    digits = 4 if name in ("ssim", "ssim_y", "lpips", "tlpips", "dists", "clipiqa", "dover") else 2
    return f"{value:.{digits}f}"


def header(settings: Mapping[str, Any], clips: int) -> str:
    """One line: the data, the seeds, the machine."""
    crop = settings["crop"]
    size = f"centre {crop[0]}x{crop[1]}" if crop else "native size"
    frames = f"first {settings['frames']} frames" if settings["frames"] else "all frames"
    made = settings["low"] == "degrade"
    low = f"degradation seeds {settings['seed']}.." if made else f"low resolution {settings['low']}"
    machine = platform.processor() or platform.machine()
    return (f"{clips} clips, {frames}, {size}, x{settings['scale']}, {low}, bootstrap seed "
            f"{settings['bootstrap_seed']}; {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def markdown(
    rows: Sequence[Row], names: Sequence[str], settings: Mapping[str, Any], missing: Mapping[str, str]
) -> str:
    """The whole report: header, means with 95 % intervals over clips, every clip, what was not measured and why."""
    shown = columns(rows, names)
    clips = list(dict.fromkeys(row.clip for row in rows))
    lines = ["# Evaluation", "", header(settings, len(clips)), "", "## Means over the clips", ""]
    lines += _head(["method", *map(title, shown)])
    for method, intervals in means(rows, shown, settings["bootstrap_seed"]).items():
        cells = [interval_text(intervals.get(name), name) for name in shown]
        lines.append(_line([method, *cells]))
    lines += ["", "In brackets: 95 % bootstrap interval over the clips.", "", "## Every clip", ""]
    lines += _head(["clip", "method", *map(title, shown), "shift (px)"])
    for row in rows:
        cells = [number(value_of(row, name), name) for name in shown]
        lines.append(_line([row.clip, row.method, *cells, _shift(row)]))
    if missing:
        lines += ["", "## Not measured", ""]
        lines += _head(["metric", "reason"])
        lines += [_line([MEASURES[name].title, reason]) for name, reason in missing.items()]
    return "\n".join(lines) + "\n"


def write_csv(folder: Path, rows: Sequence[Row], names: Sequence[str], settings: Mapping[str, Any]) -> None:
    """`clips.csv` with a line per clip and method, `means.csv` with a line per method and figure."""
    shown = columns(rows, names)
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "method", "frames", "height", "width", *shown, "shift_x", "shift_y", "shift_error"])
        for row in rows:
            values = [_plain(value_of(row, name)) for name in shown]
            shift = [_plain(value) for value in row.shift or (None,) * 3]
            writer.writerow([row.clip, row.method, row.frames, *row.size, *values, *shift])
    with (folder / "means.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "metric", "mean", "low", "high", "clips"])
        for method, intervals in means(rows, shown, settings["bootstrap_seed"]).items():
            for name, interval in intervals.items():
                ends = [_plain(value) for value in (interval.mean, interval.low, interval.high)]
                writer.writerow([method, name, *ends, interval.count])


def interval_text(interval: Interval | None, name: str) -> str:
    """A mean and its ends in brackets, with the digits of the figure `name`; a dash for what was not measured."""
    if interval is None:
        return "–"
    if math.isnan(interval.low):
        return number(interval.mean, name)
    return f"{number(interval.mean, name)} ({number(interval.low, name)} to {number(interval.high, name)})"


def _shift(row: Row) -> str:
    if row.shift is None or math.isinf(row.shift[2]):
        return "–"
    return f"{row.shift[0]:+.2f}, {row.shift[1]:+.2f} ± {row.shift[2]:.2f}"


def _plain(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
