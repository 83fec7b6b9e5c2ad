"""`setevsr degrade IN OUT`: make a bad video out of a good one, with the degradation that training uses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingsError, VideoError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "degrade",
        help="make a bad video out of a good one, as for training",
        description="Blurs, shrinks, adds noise and compresses a video as training does; its sound is copied.",
    )
    parser.add_argument("input", metavar="IN", help="the clean video")
    parser.add_argument("output", metavar="OUT", help="the video to write: .mp4, .mov or .mkv")
    parser.add_argument("--scale", type=int, default=4, help="how many times smaller the result is (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pixels (default: 0)")
    parser.add_argument("--fixed-order", action="store_true", help="always end with resize and sinc, as MGLD-VSR does")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="begin at this second (default: 0)")
    parser.add_argument("--duration", type=float, metavar="S", help="degrade only so many seconds")
    parser.add_argument("--crf", type=float, default=12, help="quality of the written file, 0 to 51 (default: 12)")
    parser.add_argument("--device", help="blurs, resizes and noise by torch there, such as cuda (default: OpenCV)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Frame by frame in bounded memory: the wandering of the parameters goes on over the whole clip.

    Errors: VideoError for unreadable or unwritable files, SettingsError for a wrong scale or seed; an output file
    that was there before stays untouched then.
    """
    from ..video.reading import VideoReader
    from ..video_job import footage_of
    from .degradation import Degradation, DegradationConfig
    from .degraded_video import degrade_footage

    if args.seed < 0:
        raise SettingsError(f"seed is {args.seed}; it must be 0 or more")
    if Path(args.output).exists() and Path(args.input).exists() and Path(args.output).samefile(args.input):
        raise VideoError(f"'{args.output}' is the input itself; choose another name for the result")
    degradation = Degradation(DegradationConfig(shuffle_last=not args.fixed_order), args.device)
    with VideoReader(args.input, args.start, args.duration) as reader:
        written = degrade_footage(degradation, footage_of(reader), args.output, args.scale, args.seed, args.crf)
    print(f"{args.output}: {written.num_frames} frames, {written.size[1]}x{written.size[0]}")
    return 0
