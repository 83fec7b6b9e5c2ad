"""`setevsr info FILE` and `setevsr convert IN OUT`: what a weight file is, and writing it as a native file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import CheckpointError, SettingsError
from ..settings import DTYPES
from .building import main_dtype
from .denoiser import load_denoiser, read_text
from .files import TensorFile, open_source
from .native import save_native, stored_config
from .registry import (
    ALL_COMPONENTS,
    COMPONENTS,
    DENOISER,
    KINDS,
    SEMANTIC,
    VAE,
    FileInfo,
    converted,
    describe,
    find,
    match,
)
from .semantic import load_semantic_encoder
from .vae import load_temporal_vae

LOADERS: dict[str, Any] = {DENOISER: load_denoiser, VAE: load_temporal_vae, SEMANTIC: load_semantic_encoder}


def add_parser(subparsers: Any) -> None:
    """Add `info` and `convert` to the command line."""
    info = subparsers.add_parser("info", help="say what a weight file is")
    info.add_argument("file", help="weight file or diffusers folder")
    info.add_argument("--json", action="store_true", help="print as JSON")
    info.set_defaults(run=run_info)

    convert = subparsers.add_parser("convert", help="write a weight file in the native format")
    convert.add_argument("source", help="weight file or diffusers folder")
    convert.add_argument("target", help="native file to write (.safetensors)")
    convert.add_argument("--kind", choices=KINDS, help="what to take from a file that holds several (default: first)")
    convert.add_argument("--dtype", choices=DTYPES, help="stored number type (default: that of most weights)")
    convert.add_argument("--head-dim", type=int, default=64, help="width of the U-Net's attention heads (default 64)")
    convert.add_argument("--lr-heads", type=int, default=4, help="attention heads of the LR encoder (default 4)")
    convert.add_argument("--lora", nargs=2, action="append", default=[], metavar=("FILE", "STRENGTH"),
                         help="add a LoRA to the denoiser for good; may be given several times")
    convert.add_argument("--light", action="store_true",
                         help="store the lighter setting of a denoiser: TSAM on the way up, pooled keys and values")
    convert.add_argument("--empty-text", metavar="FILE",
                         help="store this embedding of the empty prompt in the denoiser: a file with one tensor "
                              "(1, tokens, width), made with the text encoder of its base model")
    convert.set_defaults(run=run_convert)


def run_info(args: argparse.Namespace) -> int:
    file = open_source(args.file, ALL_COMPONENTS)
    report = info_report(file)
    print(json.dumps(report, indent=2) if args.json else info_text(report))
    return 0


def info_report(file: TensorFile) -> dict[str, Any]:
    """What a file is, as plain values."""
    info: FileInfo = describe(file)
    report: dict[str, Any] = {
        "file": info.name, "kind": info.kind, "layout": info.layout, "description": info.description,
        "dtype": info.dtype, "parameters": info.parameters, "tensors": info.tensors, "holds": list(info.modules),
        "parts": parts(file),
    }
    if file.metadata:
        report["metadata"] = {key: value for key, value in file.metadata.items() if key != "setevsr.config"}
        config = stored_config(file)
        if config is not None:
            report["config"] = config
    return report


def parts(file: TensorFile) -> dict[str, int]:
    """Parameter counts of the usable parts, under our names (unet, lr_encoder, encoder, decoder, ...)."""
    counts: dict[str, int] = {}
    for kind in KINDS:
        found = match(file, kind)
        if found is None:
            continue
        entry, prefix = found
        for key, value in converted(file, entry, prefix).items():
            for part in named_parts(kind, key):
                counts[part] = counts.get(part, 0) + value.numel()
    return counts


MODULE_TITLES = {".semantic_attention.": "SeAM", ".temporal_transformer.": "temporal transformer",
                 ".temporal_spatial.": "TSAM", ".spade.": "SPADE", ".temporal_convs.": "temporal convolutions",
                 ".temporal_attentions.": "temporal attention", ".fusion_layer_": "skip fusion",
                 "decoder.trunk.": "trunk", "decoder.refinement.": "refinement"}


def named_parts(kind: str, key: str) -> list[str]:
    """The part a tensor belongs to and, within it, the added module."""
    top = f"{kind}.{key.split('.', 1)[0]}"
    return [top] + [f"{top}: {title}" for part, title in MODULE_TITLES.items() if part in key]


def info_text(report: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    lines = [f"{report['file']}", f"  is {report['description']}"]
    lines.append(f"  kind {report['kind']}, layout {report['layout']}, {report['dtype']}, "
                 f"{report['parameters']:,} parameters in {report['tensors']} tensors")
    lines += [f"  {name}: {size:,}" for name, size in report["parts"].items()]
    if len(report["holds"]) > 1:
        lines.append(f"  usable as: {', '.join(report['holds'])}")
    lines += [f"  {key} = {value[:200]}" for key, value in report.get("metadata", {}).items() if key != "format"]
    return "\n".join(lines)


def run_convert(args: argparse.Namespace) -> int:
    target = Path(args.target)
    if target.suffix != ".safetensors":
        raise SettingsError(f"The target {target} must end with .safetensors.")
    wanted = COMPONENTS[args.kind] if args.kind else ALL_COMPONENTS
    file = open_source(args.source, wanted)
    kind = args.kind or describe(file).kind
    if kind not in LOADERS:
        raise CheckpointError(f"{file.name} is {describe(file).description}; nothing in it can be converted.")
    if kind != DENOISER and (args.lora or args.light or args.empty_text):
        raise SettingsError(f"--lora, --light and --empty-text are for a denoiser; from {file.name} comes a {kind}.")
    options = denoiser_options(args) if kind == DENOISER else {}
    dtype = getattr(torch, args.dtype) if args.dtype else stored_dtype(file, kind)
    network = LOADERS[kind](file, dtype=dtype, **options)
    if args.empty_text:
        network.empty_text = read_text(args.empty_text, network.config.context_dim).to(network.dtype)
    record = file.metadata if stored_config(file) is not None else {}  # of its training, say
    try:
        save_native(network, target, {**record, "source": Path(file.name).name})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} cannot be written ({error}); check folder and free disk space.") from error
    print(f"{target}: {kind}, {sum(p.numel() for p in network.parameters()):,} parameters, "
          f"{target.stat().st_size / 1e6:.1f} MB")
    return 0


def stored_dtype(file: TensorFile, kind: str) -> torch.dtype:
    """The type most weights of `kind` are stored in; for fp8 beside wider types the widest, which loses nothing."""
    entry, prefix = find(file, kind)
    tensors = converted(file, entry, prefix).values()
    main = main_dtype(tensors)
    wider = (value.dtype for value in tensors if value.is_floating_point())
    return main if main.itemsize > 1 else max(wider, key=lambda kind: kind.itemsize)


def denoiser_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `load_denoiser` needs besides the file."""
    try:
        loras = [(path, float(strength)) for path, strength in args.lora]
    except ValueError as error:
        raise SettingsError(f"the strength of a LoRA must be a number ({error}).") from error
    return {"head_dim": args.head_dim, "lr_heads": args.lr_heads, "loras": loras, "light": args.light}
