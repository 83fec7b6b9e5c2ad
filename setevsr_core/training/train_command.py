"""`setevsr train STAGE`: the training stages as commands."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError

if TYPE_CHECKING:
    from .processes import Processes
    from .trainer import Stage

log = logging.getLogger(__name__)

STAGES = ("vae", "semantic", "stage1", "stage2", "decoder", "turbo")
NUMBERS = (
    ("steps", int, "optimiser steps"),
    ("minutes", float, "stop at the first step past so many minutes; such a run does not repeat bit for bit"),
    ("batch", int, "clips per step and process"),
    ("accumulate", int, "batches per optimiser step"),
    ("crop", int, "side of the training crops in HR pixels"),
    ("frames", int, "consecutive frames per crop"),
    ("learning-rate", float, "of Adam"),
    ("warmup", int, "steps over which the learning rate rises"),
    ("decay-from", float, "share of the steps after which the learning rate falls to zero"),
    ("sharpen", float, "unsharp mask (sigma 1 pixel) on the clean frames, so that results come out less soft; preset: "
                       "on what the VAE decodes"),
    ("ema-decay", float, "decay of the averaged weights, which are what is saved"),
    ("seed", int, "decides weights, crops and noise"),
    ("save-every", int, "steps between checkpoints"),
    ("log-every", int, "steps between rows of log.csv"),
    ("draws", int, "stage1, stage2: noise draws per encoded frame"),
    ("l1-weight", float, "weight of L1 in the losses on pictures; less of it gives up PSNR for texture"),
    ("lpips-weight", float, "weight of LPIPS (VGG) in the losses on pictures"),
    ("lpips-images", int, "pictures per batch that LPIPS looks at"),
    ("lpips-patch", int, "side of the random window of each that it looks at, in pixels; 0: all of it"),
    ("gan-weight", float, "weight of a patch discriminator, 0 for none"),
    ("gan-channels", int, "its width: channels after the first of its convolutions"),
    ("gan-start", int, "step from which it counts"),
    ("lr-share", float, "vae, decoder, turbo: share decoded from latents of the degraded frame, without diffusion"),
    ("trunk", int, "decoder, turbo with decoder: convolutions of a plain network after the last level, added where the "
                   "VAE has none; it makes most of a small decoder's detail"),
    ("refine", int, "decoder, turbo with decoder: channels of a refinement at full resolution, added where the VAE has "
                    "none; it smooths the pattern that a VAE which folds pixels leaves on edges"),
    ("flow-weight", float, "decoder, turbo: weight of the loss along the optical flow; the processor finds the flow, "
                           "and a GPU waits for it"),
    ("strength", float, "decoder, turbo: strength at which the sampler starts"),
    ("latent-weight", float, "turbo: weight of the loss on latents"),
    ("teacher-steps", int, "turbo: aim at where the unchanged denoiser arrives in so many steps; 0: at the truth"),
)
FLAGS = (
    ("checkpointing", "recompute activations instead of keeping them: a third slower, a fraction of the memory"),
    ("pixels", "turbo: the loss looks at decoded pictures too"),
    ("with-decoder", "turbo: the decoder learns along"),
    ("everything", "decoder, turbo: all decoder weights learn, not only its temporal and fusion layers"),
    ("freeze-trunk", "decoder, turbo: a trunk keeps what it has, and what feeds it learns to use the latents"),
)
NOT_OPTIONS = ("command", "stage", "data", "dataset", "segments", "workers", "out", "size", "config", "estimate",
               "mix_vae", "descreen", "verbose", "run")
NETWORK_FILES = (
    ("vae", "VAE (start of 'vae' and 'decoder', frozen in the others)"),
    ("denoiser", "denoiser (start of 'stage1', 'stage2' and 'turbo', frozen in 'decoder')"),
    ("semantic", "semantic encoder; without it SeAM sees nothing"),
    ("vgg", "VGG16 convolutions as safetensors; else torchvision's are fetched"),
    ("compact", "decoder: a trained compact upscaler; the decoder is made anew around it"),
    ("text", "embedding of the empty prompt, for denoisers that store none"),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train", help=f"train a network: {', '.join(STAGES)}",
        description="Trains one stage. Defaults depend on stage and --size (setevsr_core/training/configs).",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("stage", choices=[*STAGES, "preset"], help="the stage; 'preset' gathers finished networks")
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", default=None,
                        help="folder(s) with videos or photographs, or one packed folder")
    parser.add_argument("--dataset", default="", metavar="NAME", help="the layout of --data that is not packed, as for "
                        "setevsr pack: REDS, Vid4, ...")
    parser.add_argument("--segments", type=int, default=2000, help="how many degraded segments to prepare from --data")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare them")
    parser.add_argument("--out", type=Path, default=None, help="run folder; an interrupted run there is resumed")
    parser.add_argument("--size", choices=["nano", "sd21"], default="nano", help="defaults, and the network's size "
                        "where none is given")
    parser.add_argument("--config", type=Path, default=None, help="JSON file with options, such as {\"steps\": 1000}")
    parser.add_argument("--estimate", action="store_true", default=False,
                        help="print the memory that a step takes, and stop (on a GPU it is printed at every start); "
                        "without the files of earlier stages it counts networks of --size")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1; several GPUs: accelerate launch -m setevsr_core.cli")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"],
                        help="what autocast computes in; auto: bf16 where the device "
                        "computes in it, else fp16 on a GPU and fp32 on a processor")
    parser.add_argument("--trains", choices=["all", "new"], help="stage1: all weights, or SeAM, SPADE and LR encoder")
    parser.add_argument("--rollout-steps", type=int, nargs="+", metavar="N",
                        help="decoder, turbo: the sampler's steps, one of these drawn per batch")
    parser.add_argument("--mix-vae", nargs=2, metavar=("FILE", "SHARE"), default=None,
                        help="preset: mix so much of a second training of the VAE into it (network interpolation)")
    parser.add_argument("--descreen", action=argparse.BooleanOptionalAction, default=None,
                        help="preset: the VAE takes the pattern of its folds out of what it decodes")
    for name, text in NETWORK_FILES:
        parser.add_argument(f"--{name}", type=Path, help=text)
    for name, kind, text in NUMBERS:
        parser.add_argument(f"--{name}", type=kind, help=text)
    for name, text in FLAGS:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    parser.set_defaults(run=run)


def _require_out(args: argparse.Namespace) -> None:
    if args.out is None:
        raise SettingsError("training needs --out: the folder of the run, or of the preset")


def run(args: argparse.Namespace) -> int:
    logging.getLogger("setevsr_core").setLevel(logging.INFO)  # curves are what this command is watched for
    if args.stage == "preset" or not args.estimate:
        _require_out(args)
    if args.stage == "preset":
        from .gathering import gather_preset, mix_of

        gather_preset(args.out, {name: getattr(args, name, None) for name in ("vae", "denoiser", "semantic")},
                      args.data or [], args.mix_vae and mix_of(*args.mix_vae), getattr(args, "sharpen", None),
                      args.descreen)
        return 0
    if not args.data and not args.estimate:
        raise SettingsError("training needs --data: a folder with videos, or a packed folder")
    from .building import build_stage, build_to_count
    from .options import merged_options, recorded, train_settings
    from .processes import Processes
    from .trainer import Trainer

    given = {name: value for name, value in vars(args).items() if name not in NOT_OPTIONS}
    options = merged_options(args.stage, args.size, given, args.config)
    settings, processes = train_settings(options), Processes(options.device)
    stage = (build_to_count if args.estimate else build_stage)(options, processes.device)
    if args.estimate or processes.device.type == "cuda":
        from .estimate import estimate_memory

        log.info("%s, batch %d x %d frames of %d px: %s", args.stage, settings.batch, settings.frames,
                     settings.crop, estimate_memory(stage, settings, processes.device))
    if args.estimate:
        return 0
    args.out.mkdir(parents=True, exist_ok=True)  # said before hours of packing if it cannot be had
    data = _dataset(args, settings, processes)
    record = Trainer(stage, data, settings, args.out, save_networks, processes, recorded(options)).run()
    log.info("%s", json.dumps({k: v for k, v in record.items() if k not in ("data", "options")}))
    return 0


def _dataset(args: argparse.Namespace, settings: Any, processes: Processes) -> Any:
    """The packed folder that was given, or one beside the run that the first process makes of the material."""
    from .data import PackedDataset, Source, pack

    packs = [folder for folder in args.data if (folder / "meta.json").is_file()]
    if packs and len(args.data) > 1:
        raise SettingsError(f"'{packs[0]}' is packed already, and --data takes one packed folder or any number of "
                            "others; pack all the material into one by `setevsr pack`")
    if packs:
        if args.dataset:
            raise SettingsError(f"'{packs[0]}' is packed already: --dataset is for what is not")
        return PackedDataset(packs[0])
    folder = args.out.parent / "packed"
    if processes.main:
        sources = [Source(source, dataset=args.dataset) for source in args.data]
        pack(sources, folder, segments=args.segments, frames=max(settings.frames, 5), size=max(settings.crop, 256),
             seed=settings.seed, workers=args.workers)
    processes.wait()
    return PackedDataset(folder)


def save_networks(stage: Stage, folder: Path, record: dict[str, Any]) -> None:
    """Write the networks of a finished stage as native files, and `record.json`."""
    from ..checkpoints import save_native

    for name, network in stage.networks.items():
        if hasattr(network, "config"):
            save_native(network, folder / f"{name}.safetensors")
    (folder / "record.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
