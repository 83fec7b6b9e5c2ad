"""`setevsr estimate`: memory and time of a run before it starts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import torch

from .devices import usable_device
from .errors import SettingsError
from .estimate import describe, estimate, full_size_on_meta, law, matmul_rate, networks_on_meta
from .precision import automatic_dtype
from .settings import DTYPES, resolve_settings

FULL_SIZE = "sd21"


def add_parser(subparsers: Any) -> None:
    """Add `estimate` to the command line."""
    parser = subparsers.add_parser("estimate", help="say how much memory and time a run will take")
    parser.add_argument("--size", required=True, metavar="WxH", help="size of the input, such as 480x270")
    parser.add_argument("--frames", type=int, required=True, help="number of frames")
    parser.add_argument("--preset", default="nano", help="preset by name or folder (default nano)")
    parser.add_argument("--denoiser-size", choices=(FULL_SIZE,), help="full-size networks instead of a preset's")
    for name in ("scale", "strength"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("steps", "length", "overlap", "tile", "tile-overlap"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--sampler")
    parser.add_argument("--device", help="where it would run (default: CUDA if there is one, else the CPU)")
    parser.add_argument("--dtype", choices=DTYPES, help="number type (default: the device's best)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    width, height = parse_size(args.size)
    device = usable_device(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else automatic_dtype(device)
    full = args.denoiser_size == FULL_SIZE
    networks, defaults = (full_size_on_meta(dtype), {}) if full else networks_on_meta(args.preset, dtype)
    names = ("scale", "strength", "steps", "length", "overlap", "tile", "tile_overlap", "sampler")
    settings = resolve_settings({name: getattr(args, name) for name in names}, defaults)
    found = estimate(networks, height, width, args.frames, settings, rate=matmul_rate(device, dtype))
    if args.json:
        sums = {name: getattr(found, name) for name in ("device_bytes", "least_bytes", "result_bytes", "seconds")}
        print(json.dumps(dataclasses.asdict(found) | sums, indent=2))
    else:
        print(describe(found))
        print(f"({dtype}, {device}; {law()['measured']})".replace("torch.", ""))
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "480x270"."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SettingsError(f"--size must be WIDTHxHEIGHT, such as 480x270, got {text!r}")
    return int(parts[0]), int(parts[1])
