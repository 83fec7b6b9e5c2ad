"""`setevsr restore IN OUT`: a video file in, the restored video file out, frame by frame, sound copied."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .errors import SettingsError, VideoError

DTYPES = ("float32", "float16", "bfloat16")
# Options that are handed to the restorer as they are; one that is not given stays with the restorer's own default.
_SETTINGS = (
    "scale",
    "steps",
    "seed",
    "strength",
    "sampler",
    "length",
    "overlap",
    "colour",
    "fusion",
    "tile",
    "tile_overlap",
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "restore",
        help="restore and enlarge a video",
        description="Restores and enlarges a video of any length in bounded memory; its sound is copied untouched.",
    )
    parser.add_argument("input", metavar="IN", help="the video to restore")
    parser.add_argument("output", metavar="OUT", help="the video to write: .mp4, .mov or .mkv")
    parser.add_argument("--preset", default="nano", help="name or folder of a trained preset (default: nano)")
    parser.add_argument("--scale", type=float, default=4.0, help="enlargement, 1 to 8, also fractions (default: 4)")
    parser.add_argument(
        "--steps", type=int, help="denoising steps; 0 decodes without diffusion (default: the preset's)"
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same video (default: 0)")
    parser.add_argument("--strength", type=float, help="above 0 to 1: lower is closer to the input and faster")
    parser.add_argument("--sampler", help="ddpm, ddim, dpmpp_2m, unipc, lcm or tcd")
    parser.add_argument(
        "--length", type=int, help="frames restored together; more is steadier and needs more memory (default: 5)"
    )
    parser.add_argument("--overlap", type=int, help="frames shared by neighbouring segments (default: 2)")
    parser.add_argument(
        "--colour", help="colour correction after the input: wavelet, adain, lab or none (default: wavelet)"
    )
    parser.add_argument("--fusion", type=float, help="how much the decoder sees of the input, 0 to 1 (default: 1)")
    parser.add_argument(
        "--tile", type=int, help="side of a diffusion tile in latent pixels (8 output pixels each), 0 for none"
    )
    parser.add_argument("--tile-overlap", type=int, help="overlap of the tiles in latent pixels")
    parser.add_argument(
        "--no-cuts", action="store_true", help="do not look for scene cuts (else no segment crosses a cut)"
    )
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="begin at this second (default: 0)")
    parser.add_argument("--duration", type=float, metavar="S", help="restore only so many seconds")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best there is)")
    parser.add_argument("--dtype", choices=DTYPES, help="number type of the networks (default: by device)")
    parser.add_argument("--crf", type=float, default=18, help="size against quality, 0 (lossless) to 51 (default: 18)")
    parser.set_defaults(run=run)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `Restorer.stream`: what was given; the rest is left to the preset and its defaults."""
    settings = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    settings["cuts"] = () if args.no_cuts else "auto"
    return settings


def run(args: argparse.Namespace) -> int:
    """Errors: SeTeVSRError of any kind; a file that was there before stays untouched then."""
    from .video.reading import VideoReader
    from .video.resize import target_size
    from .video.writing import VideoWriter

    if _same_file(args.input, args.output):
        raise VideoError(f"'{args.output}' is the input itself; choose another name for the result")
    settings = settings_of(args)
    with VideoReader(args.input, args.start, args.duration) as reader:
        restorer = _restorer(args)
        progress = _Progress(reader.expected_frames)
        # The restorer checks its settings in this call, before the output file is begun.
        blocks = restorer.stream(iter(reader), num_frames=reader.expected_frames, progress=progress.message, **settings)
        size = target_size(*reader.size, args.scale)
        writer = VideoWriter(
            args.output,
            reader.frame_rate,
            size,
            quality=args.crf,
            # Wide-gamut and HDR tags must stay; anything else is tagged as its new size wants it.
            colour=reader.tags if reader.tags.wide else None,
            pixel_format="yuv420p10le" if reader.tags.wide and not (size[0] % 2 or size[1] % 2) else "auto",
            pixel_aspect=reader.pixel_aspect,
            audio_from=reader,
        )
        with writer, progress:
            for block in blocks:
                writer.write(block)
                progress.advance(len(block))
    print(f"{args.output}: {writer.num_frames} frames, {size[1]}x{size[0]}")
    return 0


def _restorer(args: argparse.Namespace) -> Any:
    """The restorer of the preset on the device that was asked for."""
    import torch

    from .restorer import Restorer

    try:
        device = None if args.device is None else torch.device(args.device)
    except RuntimeError as error:
        raise SettingsError(f"device is '{args.device}'; give cpu, cuda, cuda:0 or mps") from error
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    return Restorer.from_preset(args.preset, device=device, dtype=dtype)


def _same_file(first: str, second: str) -> bool:
    return Path(second).exists() and Path(first).exists() and Path(first).samefile(second)


class _Progress:
    """A tqdm bar over frames when stderr is a terminal, silence otherwise (and without tqdm)."""

    def __init__(self, total: int | None) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit="frame")

    def message(self, done: float, message: str, preview: Any = None) -> None:
        """The restorer's progress callback; the bar itself counts finished frames."""
        if self._bar is not None:
            self._bar.set_postfix_str(message)

    def advance(self, frames: int) -> None:
        if self._bar is not None:
            self._bar.update(frames)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()
