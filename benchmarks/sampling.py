"""What steps, strength, sampler and colour do to quality, on packed segments: the figures behind a preset's defaults.

    python -m benchmarks.sampling PACK --lpips-weights alexnet_features.safetensors [--segments 16]
    python -m benchmarks.sampling PACK --lpips-weights ... --curve steps [--strength 1.0] [--csv F.csv] [--plot F.png]
    python -m benchmarks.sampling PACK --lpips-weights ... --curve strength [--steps 4]
    python -m benchmarks.sampling PACK --lpips-weights ... --curve sharpen|descreen|steady_result

PACK is a folder made by `setevsr pack`; take one that training did not draw from, and never the test clips. A curve
moves one setting and leaves the others as the preset has them, or as given; `sharpen` and `descreen` are the VAE's.
Below strength 1 only that share of the steps is taken, at least one: the curve against steps at strength 1 is the one
to compare with papers.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from setevsr_core import Restorer
from setevsr_core.evaluation.metrics import LPIPS
from setevsr_core.training.data import PackedDataset

from .measuring import begin, held_out, measure

RUNS: list[dict[str, Any]] = [
    {"steps": 0},
    *({"steps": n, "sampler": "ddim", "strength": s} for s in (0.5, 1.0) for n in (2, 4, 8)),
    *({"steps": n, "sampler": "ddim", "strength": 0.5, "colour": c} for c in ("none", "adain") for n in (0, 2)),
    {"steps": 8, "sampler": "dpmpp_2m", "strength": 1.0},
    {"steps": 15, "sampler": "ddpm", "strength": 1.0},
]
CURVES: dict[str, tuple[float, ...]] = {"steps": (1, 2, 4, 8, 15, 25, 50), "strength": (0.1, 0.25, 0.5, 0.75, 1.0),
                                       "sharpen": (0.0, 0.3, 0.6, 1.0, 1.5), "descreen": (False, True),
                                       "steady_result": (0, 1, 2, 4)}
FIGURES = ("LPIPS", "PSNR", "E_warp", "s/frame")


def curve_runs(moved: str, fixed: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a curve: `moved` takes its values in turn, the others stay as in `fixed` (None: the preset's)."""
    rest = {key: value for key, value in fixed.items() if key != moved and value is not None}
    return [{moved: value, **rest} for value in CURVES[moved]]


def restored(restorer: Restorer, lr: Tensor, scale: int, run: dict[str, Any]) -> Tensor:
    """One segment by the settings of a run."""
    settings = dict(run)
    ending = {name: settings.pop(name) for name in ("descreen", "sharpen") if name in settings}
    restorer.vae.config = replace(restorer.vae.config, **ending)
    return restorer.restore(lr, scale=scale, seed=0, **settings)


def write_csv(path: Path, runs: Sequence[dict[str, Any]], rows: Sequence[Sequence[float]]) -> None:
    """One line per run: its settings, then the figures; a setting that a run leaves to the preset stays empty."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, *FIGURES])
        writer.writeheader()
        for run, row in zip(runs, rows, strict=True):
            writer.writerow({**run, **dict(zip(FIGURES, row, strict=True))})


def draw_curves(path: Path, moved: str, values: Sequence[float], rows: Sequence[Sequence[float]]) -> None:
    """One panel per figure of quality against `moved`, values evenly spaced; a PNG drawn with Pillow."""
    from PIL import Image, ImageDraw

    side, height, margin = 320, 240, 48
    picture = Image.new("RGB", (side * 3, height), "white")
    draw = ImageDraw.Draw(picture)
    for panel, name in enumerate(FIGURES[:3]):
        heights = [row[panel] for row in rows]
        low, high = min(heights), max(heights)
        left, right, top, bottom = panel * side + margin, (panel + 1) * side - 16, 32, height - margin
        place = [(left + (right - left) * i / max(len(values) - 1, 1),
                  bottom - (bottom - top) * ((y - low) / (high - low) if high > low else 0.5))
                 for i, y in enumerate(heights)]
        draw.rectangle((left, top, right, bottom), outline="#bbbbbb")
        draw.text((left, 8), f"{name} against {moved}", fill="black")
        for y, text in ((top, high), (bottom, low)):
            draw.text((left - 44, y - 6), f"{text:.4g}", fill="black")
        for (x, _), value in zip(place, values, strict=True):
            draw.text((x - 6, bottom + 8), f"{value:g}", fill="black")
        draw.line(place, fill="#1f5fa8", width=2)
        for x, y in place:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="#1f5fa8")
    picture.save(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--lpips-weights", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="only these lines of the table, from 0")
    parser.add_argument("--curve", choices=CURVES, help="the curve against this setting instead of the table")
    parser.add_argument("--steps", type=int, help="of a curve against strength (default: the preset's)")
    parser.add_argument("--strength", type=float, help="of a curve against steps (default: the preset's)")
    parser.add_argument("--sampler", help="of a curve (default: the preset's)")
    parser.add_argument("--csv", type=Path, help="write the figures there too")
    parser.add_argument("--plot", type=Path, help="draw a curve as a PNG")
    args = parser.parse_args(argv)
    if args.plot and not args.curve:
        parser.error("--plot draws a curve: give --curve too")

    data, lpips, restorer = PackedDataset(args.pack), LPIPS(args.lpips_weights), Restorer.from_preset(args.preset)
    pairs = held_out(data, args.segments)
    fixed = {"steps": args.steps, "strength": args.strength, "sampler": args.sampler}
    runs = curve_runs(args.curve, fixed) if args.curve else RUNS
    runs = [runs[n] for n in args.only] if args.only else runs
    begin(f"{args.segments} segments of {data.frames} frames, {data.size} px", dtype=restorer.denoiser.dtype)
    if args.curve:
        kept = restorer.settings(**{key: value for key, value in fixed.items() if key != args.curve})
        print("kept: " + ", ".join(f"{key} {getattr(kept, key)}" for key in fixed if key != args.curve))
    print(f"| setting | {' | '.join(FIGURES)} |\n|---|---|---|---|---|")
    rows = []
    for run in runs:
        figures = measure(lambda lr, run=run: restored(restorer, lr, data.scale, run), pairs, lpips.distance).means()
        rows.append(figures)
        setting = ", ".join(f"{key} {value}" for key, value in run.items())
        print(f"| {setting} | {figures[0]:.4f} | {figures[1]:.2f} | {figures[2]:.2f} | {figures[3]:.2f} |", flush=True)
    if args.csv:
        write_csv(args.csv, runs, rows)
    if args.plot:
        draw_curves(args.plot, args.curve, [run[args.curve] for run in runs], rows)


if __name__ == "__main__":
    main()
