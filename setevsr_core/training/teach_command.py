"""`setevsr teach PACK OUT --teacher FILE`: training data with the targets of another network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "teach",
        help="training data whose targets an upscaler makes of the degraded frames",
        description="Copies a folder of `setevsr pack` with an upscaler's results, averaged along the motion, in place "
        "of the clean frames; run again with the same options to go on. It costs what the upscaler costs.",
    )
    parser.add_argument("pack", metavar="PACK", type=Path, help="a folder of `setevsr pack`")
    parser.add_argument("output", metavar="OUT", type=Path, help="the folder to fill")
    parser.add_argument("--teacher", metavar="FILE", type=Path, required=True, help="an upscaler that spandrel reads "
                        "(Real-ESRGAN, SwinIR, ...), of the pack's factor")
    parser.add_argument("--segments", type=int, help="only the first so many segments of the pack (default: all)")
    parser.add_argument("--steady", type=int, default=0, metavar="RADIUS", help="average degraded frames along the "
                        "motion first, as `pack --steady` does, for a pack made without it (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the network (default: 1)")
    parser.add_argument("--device", help="where the upscaler runs, such as cuda (default: the CPU)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Errors: as `teaching.teach`."""
    from .data import PackedDataset
    from .teaching import teach

    out = teach(args.pack, args.output, args.teacher, segments=args.segments, steady=args.steady,
                workers=args.workers, device=args.device)
    print(f"{out}: {len(PackedDataset(out))} segments with targets of {args.teacher.name}")
    return 0
