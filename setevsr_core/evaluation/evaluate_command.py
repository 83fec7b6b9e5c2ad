"""`setevsr evaluate DATA`: methods compared on a data set, as tables and pictures."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from .names import FIGURES


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure methods on a data set",
        description="Restores every clip with every method and writes tables and pictures. Rows are written as they "
        "come: the same command again goes on where it was interrupted.",
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="the data set, or a folder of videos or frame folders")
    parser.add_argument("--dataset", default="folder", help="its layout: folder (default), REDS, REDS4, SPMCS, UDM10, "
                        "Vid4 or VideoLQ (without truth)")
    parser.add_argument("--lr", default="auto", help="low resolution: degrade (made here, seeded), BI, BD or LQ (ready-"
                        "made); auto (default) takes the ready-made version where there is exactly one")
    parser.add_argument("--methods", nargs="+", default=["bicubic", "preset:nano"], metavar="METHOD",
                        help="bicubic, preset:NAME[:steps=4,strength=0.5], a weight file that spandrel knows, or a "
                        "folder of results by clip name; LABEL@METHOD names it; bicubic and files take "
                        ":steady=4,steady_result=2 (default: bicubic preset:nano)")
    parser.add_argument("--metrics", nargs="+", default=list(FIGURES), metavar="METRIC",
                        help=f"which figures (default: all): {', '.join(FIGURES)}")
    parser.add_argument("--weights", nargs="+", type=Path, default=[], metavar="FOLDER",
                        help="folders with the metrics' weight files (docs/evaluation.md lists them)")
    parser.add_argument("--ffmpeg", help="an ffmpeg with libvmaf (default: imageio-ffmpeg's, else the search path's)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where tables and pictures go")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help="only these clips (seeds stay with the clip)")
    parser.add_argument("--frames", type=int, default=0, help="only the first so many frames (default: all)")
    parser.add_argument("--crop", metavar="WxH", help="only the centre of the truth (default: native size)")
    parser.add_argument("--scale", type=int, default=4, help="enlargement (default: 4)")
    parser.add_argument("--seed", type=int, default=1000, help="degradation seed of the first clip; the n-th has "
                        "seed + n (default: 1000)")
    parser.add_argument("--bootstrap-seed", type=int, default=0, help="seed of the intervals (default: 0)")
    parser.add_argument("--max-shift", type=float, default=0.25, metavar="PX", help="a result that is surely shifted "
                        "by more against the truth is refused (default: 0.25)")
    parser.add_argument("--picture-crop", default="96x72", metavar="WxH", help="size of the compared crop")
    parser.add_argument("--picture-at", metavar="X,Y", help="its upper left corner (default: most detail)")
    parser.add_argument("--profile", choices=("row", "column"), default="row", help="line of the temporal profile")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: CUDA if there is one, else the CPU)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Errors: SeTeVSRError for data, methods, settings or an out folder that do not fit; rows so far are kept."""
    import torch
    from tqdm import tqdm

    from ..devices import usable_device
    from ..video.layouts import find_clips
    from .datasets import ClipLoader
    from .measures import Equipment, Instruments
    from .methods import parse_methods
    from .records import Records
    from .running import Evaluation, PictureSettings
    from .tables import markdown, write_csv

    crop = _pair(args.crop, "x", "--crop") if args.crop else None
    device = str(usable_device(args.device))
    loader = ClipLoader(args.scale, args.frames, crop, args.seed)
    clips = _chosen(find_clips(args.data, args.dataset, args.lr), args.clips)
    look = PictureSettings(_pair(args.picture_crop, "x", "--picture-crop"),
                           _pair(args.picture_at, ",", "--picture-at", least=0) if args.picture_at else None,
                           args.profile)
    methods = parse_methods(args.methods, scale=args.scale, device=device)
    equipment = Equipment(args.weights, args.ffmpeg, device, torch.get_num_threads())
    instruments = Instruments.build(dict.fromkeys(args.metrics), equipment)
    for name, reason in instruments.missing.items():
        print(f"{name}: not measured: {reason}", file=sys.stderr)
    settings = {
        "data": args.data.resolve().name, "dataset": args.dataset,
        "low": " and ".join(dict.fromkeys(clip.version for clip in clips)),
        "scale": args.scale, "frames": args.frames, "crop": crop, "seed": args.seed,
        "picture": [look.crop, look.at],
    }
    records = Records(args.out, settings)
    evaluation = Evaluation(clips, methods, loader, instruments, records, args.out, args.max_shift, look)
    with tqdm(total=len(clips) * (len(methods) + 1), unit="row", disable=None) as bar:

        def show(clip: str, method: str) -> None:
            bar.set_postfix_str(f"{clip}, {method}")
            bar.update()

        rows = evaluation.run(show)
    settings["bootstrap_seed"] = args.bootstrap_seed
    text = markdown(rows, args.metrics, settings, instruments.missing)
    (args.out / "table.md").write_text(text, "utf-8")
    write_csv(args.out, rows, args.metrics, settings)
    print(text)
    print(f"{args.out}: table.md, clips.csv, means.csv, pictures/")
    return 0


def _pair(text: str, separator: str, option: str, least: int = 1) -> tuple[int, int]:
    match = re.fullmatch(rf"(\d+)\s*{separator}\s*(\d+)", text.strip(), re.IGNORECASE)
    if match is None or min(int(match[1]), int(match[2])) < least:
        raise SettingsError(f"{option} is '{text}'; write two whole numbers, as in 512{separator}384")
    return int(match[1]), int(match[2])


def _chosen(clips: list[Any], names: list[str] | None) -> list[Any]:
    if names is None:
        return clips
    known = {clip.name: clip for clip in clips}
    for name in names:
        if name not in known:
            raise SettingsError(f"there is no clip {name!r}; the set has {', '.join(known)}")
    return [clip for clip in clips if clip.name in set(names)]

