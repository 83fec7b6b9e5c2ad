"""`setevsr train STAGE`: the training stages as commands."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError

if TYPE_CHECKING:
    from .trainer import Stage, TrainSettings

# What each stage needs besides its own network, and its settings per size: steps, batch, crop, frames, rate.
# sd21: the paper's optimiser settings (section IV-A); nano: chosen for two CPU cores.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "vae": {"sd21": {"steps": 200_000, "batch": 4, "crop": 256, "frames": 1, "learning_rate": 1e-4},
            "nano": {"steps": 4000, "batch": 8, "crop": 128, "frames": 1, "learning_rate": 4e-4, "decay_from": 0.6}},
    "semantic": {"sd21": {"steps": 50_000, "batch": 16, "crop": 256, "frames": 1, "learning_rate": 1e-4},
                 "nano": {"steps": 1500, "batch": 8, "crop": 256, "frames": 1, "learning_rate": 1e-3,
                          "decay_from": 0.6}},
    "stage1": {"sd21": {"steps": 100_000, "batch": 3, "crop": 512, "frames": 5, "learning_rate": 1e-4},
               "nano": {"steps": 4000, "batch": 8, "crop": 256, "frames": 1, "learning_rate": 4e-4,
                        "decay_from": 0.7}},
    "stage2": {"sd21": {"steps": 50_000, "batch": 3, "crop": 512, "frames": 5, "learning_rate": 5e-5},
               "nano": {"steps": 1000, "batch": 1, "crop": 256, "frames": 5, "learning_rate": 2e-4,
                        "decay_from": 0.7}},
    "decoder": {"sd21": {"steps": 50_000, "batch": 1, "crop": 512, "frames": 5, "learning_rate": 5e-5},
                "nano": {"steps": 1500, "batch": 2, "crop": 128, "frames": 3, "learning_rate": 4e-4,
                         "decay_from": 0.6}},
    "turbo": {"sd21": {"steps": 10_000, "batch": 1, "crop": 512, "frames": 5, "learning_rate": 1e-5},
              "nano": {"steps": 1500, "batch": 2, "crop": 128, "frames": 3, "learning_rate": 2e-4,
                       "decay_from": 0.6}},
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("train", help=f"train a network: {', '.join(DEFAULTS)}")
    parser.add_argument("stage", choices=[*DEFAULTS, "preset"], help="the stage; 'preset' gathers finished networks")
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR",
                        help="folder(s) with videos or photographs, or one packed folder")
    parser.add_argument("--segments", type=int, default=2000, help="how many degraded segments to prepare from --data")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare them")
    parser.add_argument("--out", type=Path, required=True, help="run folder; an interrupted run there is resumed")
    parser.add_argument("--size", choices=["nano", "sd21"], default="nano", help="network size when starting afresh")
    parser.add_argument("--vae", type=Path, help="VAE file (start of 'vae' and 'decoder', frozen in the others)")
    parser.add_argument("--denoiser", type=Path,
                        help="denoiser file (start of 'stage1', 'stage2' and 'turbo', frozen in 'decoder')")
    parser.add_argument("--semantic", type=Path, help="semantic encoder file; without it SeAM sees nothing")
    parser.add_argument("--vgg", type=Path, help="VGG16 convolutions as safetensors; else torchvision's are fetched")
    parser.add_argument("--trains", choices=["all", "new"], help="stage1: all weights, or SeAM, SPADE and LR encoder")
    parser.add_argument("--draws", type=int, default=1, help="stages 1 and 2: noise draws per encoded frame")
    parser.add_argument("--strength", type=float, default=1.0,
                        help="decoder and turbo: strength at which latents are made")
    parser.add_argument("--rollout-steps", type=int, nargs="+", metavar="N",
                        help="decoder and turbo: the sampler's steps, one of them drawn per batch "
                             "(default 2 4, turbo 4)")
    parser.add_argument("--with-decoder", action="store_true", help="turbo: the decoder learns along")
    parser.add_argument("--no-pixels", action="store_true", help="turbo: the loss looks at latents only")
    parser.add_argument("--latent-weight", type=float, default=1.0, help="turbo: weight of the loss on latents")
    parser.add_argument("--teacher-steps", type=int, default=0,
                        help="turbo: aim at where the unchanged denoiser arrives in so many steps; 0: at the truth")
    parser.add_argument("--lpips-weight", type=float, default=1.0)
    parser.add_argument("--lpips-images", type=int, default=4, help="pictures per batch that LPIPS looks at")
    parser.add_argument("--lpips-patch", type=int, default=0,
                        help="side of the random window of each picture that LPIPS looks at, in pixels; 0: all of it")
    parser.add_argument("--lr-share", type=float,
                        help="vae and decoder: share of the material decoded from latents of the degraded frame "
                             "(default 0.35 and 0.25); more serves the use without diffusion")
    parser.add_argument("--gan-weight", type=float, default=0.0)
    parser.add_argument("--gan-start", type=int, default=500, help="step from which the discriminator counts")
    for name, kind in (("steps", int), ("batch", int), ("crop", int), ("frames", int), ("learning-rate", float),
                       ("decay-from", float), ("accumulate", int), ("ema-decay", float), ("minutes", float),
                       ("seed", int), ("save-every", int), ("log-every", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.stage == "preset":
        return gather_preset(args)
    if not args.data:
        raise SettingsError("training needs --data: a folder with videos, or a packed folder")
    from .trainer import Trainer

    settings = _settings(args)
    trainer = Trainer(_stage(args, settings), _dataset(args, settings), settings, args.out, save_networks)
    record = trainer.run()
    logging.info("%s", json.dumps({k: v for k, v in record.items() if k not in ("data", "settings")}))
    return 0


def _settings(args: argparse.Namespace) -> TrainSettings:
    from .trainer import TrainSettings

    values = dict(DEFAULTS[args.stage][args.size])
    names = ("steps", "batch", "crop", "frames", "learning_rate", "decay_from", "accumulate", "ema_decay", "minutes",
             "seed", "save_every", "log_every", "precision", "device")
    values |= {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return TrainSettings(**values)


def _dataset(args: argparse.Namespace, settings: TrainSettings) -> Any:
    from .data import PackedDataset, pack

    first = args.data[0]
    if len(args.data) == 1 and (first / "meta.json").is_file():
        return PackedDataset(first)
    folder = args.out.parent / "packed"
    if not (folder / "meta.json").is_file():
        pack(args.data, folder, segments=args.segments, frames=max(settings.frames, 5), size=max(settings.crop, 256),
             seed=settings.seed, workers=args.workers)
    return PackedDataset(folder)


def _stage(args: argparse.Namespace, settings: TrainSettings) -> Stage:
    import torch

    from ..networks.initialise import start_vae
    from ..networks.temporal_vae import TemporalVAE, VAEConfig
    from .denoiser_stages import DenoiserStage, SemanticStage, VGGTeacher
    from .losses import PerceptualLoss
    from .rollout_stages import DecoderStage, TurboStage
    from .vae_stages import Adversary, PixelLoss, VAEStage

    torch.manual_seed(settings.seed)
    device = settings.device

    def pixel_loss() -> PixelLoss:
        perceptual = PerceptualLoss(args.vgg).to(device) if args.lpips_weight else None
        return PixelLoss(perceptual, args.lpips_weight, args.lpips_images, args.lpips_patch)

    def adversary() -> Adversary | None:
        return Adversary(args.gan_weight, args.gan_start, settings.learning_rate, device) if args.gan_weight else None

    shares = {} if args.lr_share is None else {"lr_share": args.lr_share}
    if args.stage == "vae":
        vae = _load("vae", args.vae, device) if args.vae else TemporalVAE(getattr(VAEConfig, args.size)()).to(device)
        if not args.vae:
            start_vae(vae)
        return VAEStage(vae, pixel_loss(), adversary(), **shares)
    if args.stage == "semantic":
        from ..networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig

        config = SemanticEncoderConfig.nano() if args.size == "nano" else SemanticEncoderConfig.sam2("tiny")
        encoder = _load("semantic", args.semantic, device) if args.semantic else SemanticEncoder(config).to(device)
        return SemanticStage(encoder, VGGTeacher(args.vgg).to(device))

    vae = _load("vae", _needed(args, "vae"), device)
    encoder = _load("semantic", args.semantic, device) if args.semantic else None
    if encoder is not None:
        encoder.requires_grad_(False)
    if args.stage in ("decoder", "turbo"):
        path = _needed(args, "denoiser")
        denoiser = _with_text(_load("denoiser", path, device))
        common = {"strength": args.strength, "everything": args.size == "nano"} | shares
        if args.rollout_steps:
            common["steps"] = tuple(args.rollout_steps)
        if args.stage == "decoder":
            return DecoderStage(vae, denoiser, encoder, pixel_loss(), adversary(), **common)
        return TurboStage(vae, denoiser, encoder, pixel_loss(), adversary(), latent_weight=args.latent_weight,
                          pixels=not args.no_pixels, with_decoder=args.with_decoder,
                          teacher=_load("denoiser", path, device) if args.teacher_steps else None,
                          teacher_steps=args.teacher_steps, **common)
    number = 1 if args.stage == "stage1" else 2
    trains = args.trains or ("all" if args.size == "nano" else "new")
    return DenoiserStage(number, _denoiser(args, device), vae, encoder, trains=trains, draws=args.draws)


def _denoiser(args: argparse.Namespace, device: str) -> Any:
    import torch

    from .. import checkpoints
    from ..networks.denoiser import Denoiser, DenoiserConfig
    from ..networks.initialise import zero_new_modules

    # Stage 1 knows no temporal modules; stage 2 adds those that are missing, as identities.
    sites = "none" if args.stage == "stage1" else "all"
    changes = {"temporal_sites": sites, "temporal_spatial_sites": sites}
    if args.denoiser:
        return checkpoints.load_denoiser(args.denoiser, dtype=torch.float32, device=device, changes=changes)
    config = getattr(DenoiserConfig, args.size)(**changes)
    # A network of its own has no text model: four constant tokens stand for the empty prompt.
    denoiser = Denoiser(config, empty_text=torch.randn(1, 4, config.context_dim)).to(device)
    zero_new_modules(denoiser)
    return denoiser


def _load(kind: str, path: Path, device: str) -> Any:
    import torch

    from .. import checkpoints

    load = {"vae": checkpoints.load_temporal_vae, "denoiser": checkpoints.load_denoiser,
            "semantic": checkpoints.load_semantic_encoder}[kind]
    return load(path, dtype=torch.float32, device=device)


def _with_text(denoiser: Any) -> Any:
    if denoiser.empty_text is None:
        raise SettingsError("this denoiser stores no embedding of the empty prompt: give one with --text")
    return denoiser


def _needed(args: argparse.Namespace, name: str) -> Path:
    path = getattr(args, name)
    if path is None:
        raise SettingsError(f"the stage '{args.stage}' needs --{name}: the file that the earlier stage wrote")
    return path


def save_networks(stage: Stage, folder: Path, record: dict[str, Any]) -> None:
    """Write the networks of a finished stage as native files, and `record.json`."""
    from ..checkpoints import save_native

    for name, network in stage.networks.items():
        if hasattr(network, "config"):
            save_native(network, folder / f"{name}.safetensors")
    (folder / "record.json").write_text(json.dumps(record, indent=1, default=str) + "\n")


def gather_preset(args: argparse.Namespace) -> int:
    """Write --vae, --denoiser and --semantic as fp16 into a preset folder, with their runs' records and curves."""
    import torch

    from ..checkpoints import save_native

    record: dict[str, Any] = {}
    names = {"vae": "vae", "denoiser": "denoiser", "semantic": "semantic_encoder"}
    for kind, name in names.items():
        path = getattr(args, kind)
        if path is None:
            continue
        save_native(_load(kind, path, "cpu"), args.out / f"{name}.safetensors", dtype=torch.float16)
    given: list[Path] = [getattr(args, kind) for kind in names if getattr(args, kind)]
    runs: set[Path] = {*(args.data or []), *(path.parent for path in given)}
    for run in sorted(runs):
        if (run / "record.json").is_file():
            record[run.name] = json.loads((run / "record.json").read_text())
            (args.out / f"curve_{run.name}.csv").write_text((run / "log.csv").read_text())
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0
