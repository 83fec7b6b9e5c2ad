"""`setevsr pack OUT SOURCE...`: prepare training data from folders of videos and photographs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingsError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "pack",
        help="prepare training data from folders of videos and pictures",
        description="Cuts, degrades and stores training segments; run again with the same options to go on.",
    )
    parser.add_argument("output", metavar="OUT", help="the folder to fill")
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="folder of videos (files, or folders of numbered pictures) "
        "and/or photographs; FOLDER=NOTE records its rights"
    )
    parser.add_argument("--dataset", default="", metavar="NAME", help="the sources are published sets of this layout, "
                        "of which the truth is taken: REDS, REDS4, SPMCS, UDM10 or Vid4; or folder: clips as "
                        "`setevsr evaluate` finds them (default: what lies directly in the sources)")
    parser.add_argument("--segments", type=int, required=True, help="how many segments to make")
    parser.add_argument("--frames", type=int, default=5, help="frames per segment (default: 5)")
    parser.add_argument("--size", type=int, default=256, help="side of the clean crops in pixels (default: 256)")
    parser.add_argument("--scale", type=int, default=4, help="clean side over degraded side (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same data (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--photo-share", type=float, default=0.3, help="share of pictures, 0 to 1 (default: 0.3)")
    parser.add_argument("--sharpen", type=float, default=0.5, help="sharpening of the targets, 0 = off (default: 0.5)")
    parser.add_argument("--steady", type=int, default=0, metavar="RADIUS", help="average degraded frames along the "
                        "motion with so many before and after, as a preset with this setting does (default: 0)")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="clips or pictures to leave out, such "
                        "as those kept for measuring (NAME or FOLDER/NAME)")
    parser.add_argument("--device", help="blurs, resizes and noise by torch there, such as cuda (default: OpenCV)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Errors: InputError without usable material, SettingsError for wrong numbers or a folder of another pack, and for
    a data set that is unknown or has no truth.
    """
    from .data import PackedDataset, Source, pack

    if args.seed < 0:
        raise SettingsError(f"seed is {args.seed}; it must be 0 or more")
    sources = []
    for text in args.sources:
        folder, _, note = text.partition("=")
        sources.append(Source(Path(folder), note, args.dataset))
    out = pack(
        sources,
        args.output,
        segments=args.segments,
        frames=args.frames,
        size=args.size,
        scale=args.scale,
        seed=args.seed,
        workers=args.workers,
        photo_share=args.photo_share,
        sharpen_weight=args.sharpen,
        steady=args.steady,
        device=args.device,
        without=args.without,
    )
    print(f"{out}: {len(PackedDataset(out))} segments of {args.frames} frames, {args.size} px")
    return 0
