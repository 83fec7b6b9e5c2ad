"""From options to a training stage: which networks it needs, from which files, and with which losses."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import checkpoints
from ..checkpoints.denoiser import read_text
from ..errors import SettingsError
from ..networks.denoiser import Denoiser, DenoiserConfig
from ..networks.initialise import start_vae, zero_new_modules
from ..networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig
from ..networks.temporal_vae import TemporalVAE, VAEConfig
from .compact import read_compact, with_compact_decoder
from .denoiser_stages import DenoiserStage, SemanticStage, VGGTeacher
from .losses import PerceptualLoss
from .rollout_stages import DecoderStage, Learning, TurboStage
from .trainer import Stage
from .vae_stages import Adversary, PixelLoss, VAEStage

LOADERS = {"vae": checkpoints.load_temporal_vae, "denoiser": checkpoints.load_denoiser,
           "semantic": checkpoints.load_semantic_encoder}


def build_stage(options: argparse.Namespace, device: torch.device) -> Stage:
    """The stage named in the options, its networks in fp32 on `device`; the same seed builds the same weights.

    Errors: SettingsError where a file that the stage needs was not given or options have no meaning, CheckpointError
    where a file is wrong.
    """
    check_decoder_options(options)
    torch.manual_seed(options.seed)
    with device:  # whatever is made new is made there
        return _build(options, device)


def build_to_count(options: argparse.Namespace, device: torch.device) -> Stage:
    """The stage as it would be trained, to count what a step takes; of `build_weightless` where files are missing."""
    needed = {"vae": (), "semantic": (), "stage1": ("vae",), "stage2": ("vae",)}.get(options.stage, ("vae", "denoiser"))
    given = [name for name in LOADERS if getattr(options, name) is not None]
    complete = given and all(name in given for name in needed)
    return build_stage(options, device) if complete else build_weightless(options, device)


def build_weightless(options: argparse.Namespace, device: torch.device) -> Stage:
    """The stage of fake tensors, which have shapes and no data: it needs no files, and full size fits anywhere.

    All networks have the options' size and everything in them, with the trunk and refinement that the options add;
    files in the options are not looked at.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    check_decoder_options(options)
    options = argparse.Namespace(**{**vars(options), **dict.fromkeys((*LOADERS, "text", "compact"))})
    # Made of numbers on the CPU, since Hiera computes with them while it is constructed; then faked on the device.
    encoder = _semantic(options, torch.device("cpu"))
    with mode, device:  # fake tensors cannot change places inside a module: all are made on the device
        options.semantic = encoder._apply(lambda tensor: mode.from_tensor(tensor).to(device))
        options.vae = _vae(options, device)
        if options.stage in ("decoder", "turbo"):
            options.denoiser = _denoiser(options, device)
        return _build(options, device)


def check_decoder_options(options: argparse.Namespace) -> None:
    """SettingsError for options on the decoder that the stage would pass over, or that contradict each other."""
    given = [f"--{name.replace('_', '-')}" for name in ("trunk", "refine", "freeze_trunk") if getattr(options, name)]
    if given and options.stage != "decoder" and not (options.stage == "turbo" and options.with_decoder):
        raise SettingsError(f"{given[0]} has no meaning for '{options.stage}': leave it out, or give it to the stage "
                            "'decoder' or to 'turbo' with --with-decoder")
    if not options.compact:
        return
    if options.stage != "decoder":
        raise SettingsError(f"--compact has no meaning for '{options.stage}': give it to the stage 'decoder', which "
                            "makes the decoder anew, and that stage's VAE to the others")
    if not options.everything:
        raise SettingsError("--compact makes the decoder anew, so all of it has to learn: give --everything, or leave "
                            "--compact out")
    if options.trunk or options.refine:
        raise SettingsError(f"{given[0]} does not go with --compact, whose network is the trunk and has no refinement: "
                            "leave one of the two out")


def _build(options: argparse.Namespace, device: torch.device) -> Stage:
    if options.stage == "vae":
        return VAEStage(_vae(options, device), _pixel_loss(options, device), _adversary(options, device),
                        lr_share=options.lr_share)
    if options.stage == "semantic":
        return SemanticStage(_semantic(options, device), VGGTeacher(options.vgg, device))
    path = _needed(options, "vae")
    adds = isinstance(path, Path) and (options.stage == "decoder" or options.stage == "turbo" and options.with_decoder)
    vae = _with_new_layers(path, options, device) if adds else load("vae", path, device)
    if options.stage == "decoder" and options.compact:
        vae = with_compact_decoder(vae, read_compact(options.compact))
    encoder = load("semantic", options.semantic, device) if options.semantic else None
    if encoder is not None:
        encoder.requires_grad_(False)
    if options.stage in ("decoder", "turbo"):
        return _rollout_stage(options, vae, encoder, device)
    number = 1 if options.stage == "stage1" else 2
    return DenoiserStage(number, _denoiser(options, device), vae, encoder, trains=options.trains, draws=options.draws)


def load(kind: str, path: Path | nn.Module, device: torch.device) -> Any:
    """A network of a file, in fp32: training keeps its weights exact and lets autocast choose what computes lower.

    A network in place of the path (of `build_weightless`) is taken as it is.
    """
    if isinstance(path, nn.Module):
        return path
    return LOADERS[kind](path, dtype=torch.float32, device=device)


def _vae(options: argparse.Namespace, device: torch.device) -> TemporalVAE:
    if options.vae:
        return load("vae", options.vae, device)
    config = getattr(VAEConfig, options.size)()
    vae = TemporalVAE(replace(config, **_additions(options, config)))
    start_vae(vae)
    return vae


def _semantic(options: argparse.Namespace, device: torch.device) -> SemanticEncoder:
    if options.semantic:
        return load("semantic", options.semantic, device)
    config = SemanticEncoderConfig.nano() if options.size == "nano" else SemanticEncoderConfig.sam2("tiny")
    return SemanticEncoder(config, device=device)


def _denoiser(options: argparse.Namespace, device: torch.device) -> Denoiser:
    if options.denoiser:
        found = checkpoints.load_denoiser(options.denoiser, device="meta").config
        denoiser = checkpoints.load_denoiser(options.denoiser, dtype=torch.float32, device=device,
                                             changes=_changes(options.stage, found))
        return _with_text(denoiser, options)
    config = getattr(DenoiserConfig, options.size)()
    config = replace(config, **_changes(options.stage, config))
    # A network of its own has no text model: four constant tokens stand for the empty prompt.
    denoiser = Denoiser(config, empty_text=torch.randn(1, 4, config.context_dim))
    zero_new_modules(denoiser)
    return denoiser


def _changes(stage: str, found: DenoiserConfig) -> dict[str, Any]:
    """What a stage takes away from a denoiser, and what it adds (as identities) where a file lacks it.

    Stage 1 knows no temporal modules, and SD 2.1 brings neither SeAM nor SPADE. Stage 2 trains what temporal modules
    there are (the lighter setting has fewer), and all of them where there are none.
    """
    if stage != "stage1":
        return {name: "all" for name in ("temporal_sites", "temporal_spatial_sites") if getattr(found, name) == "none"}
    changes: dict[str, Any] = {"temporal_sites": "none", "temporal_spatial_sites": "none", "spade": True}
    return changes if found.semantic_levels else changes | {"semantic_levels": tuple(range(len(found.channels)))}


def _with_text(denoiser: Denoiser, options: argparse.Namespace) -> Denoiser:
    """The denoiser with the embedding of the empty prompt: its own, or the one tensor of the file --text."""
    if options.text is not None:
        text = read_text(options.text, denoiser.config.context_dim)
        denoiser.empty_text = text.to(next(denoiser.parameters()).device, torch.float32)
    if denoiser.empty_text is None:
        raise SettingsError(f"{options.denoiser} stores no embedding of the empty prompt: give one with --text, a "
                            f"weight file with one tensor (n, {denoiser.config.context_dim})")
    return denoiser


def _with_new_layers(path: Path, options: argparse.Namespace, device: torch.device) -> TemporalVAE:
    """The VAE of a file with the layers that the decoder's training is there for.

    SD 2.1's lacks temporal and fusion layers; a trunk and a refinement are added where they are asked for.
    """
    found = checkpoints.load_temporal_vae(path, device="meta").config
    changes: dict[str, Any] = {} if found.temporal else {"temporal": True}
    if not found.fusion_levels:
        changes["fusion_levels"] = VAEConfig.sd21().fusion_levels
    changes |= _additions(options, found)
    return checkpoints.load_temporal_vae(path, dtype=torch.float32, device=device, changes=changes)


def _additions(options: argparse.Namespace, found: VAEConfig) -> dict[str, Any]:
    """The trunk and the refinement that the options add to a decoder without them.

    Errors: SettingsError where a trunk is to stay as it is and there is none yet.
    """
    if options.freeze_trunk and not found.trunk and not options.compact:
        raise SettingsError("--freeze-trunk keeps what a trunk has learnt, and this VAE has none: train one first, by "
                            "--trunk or --compact, or leave --freeze-trunk out")
    return {name: getattr(options, name) for name in ("trunk", "refine")
            if getattr(options, name) and not getattr(found, name)}


def _rollout_stage(options: argparse.Namespace, vae: TemporalVAE, encoder: SemanticEncoder | None,
                   device: torch.device) -> Stage:
    path = _needed(options, "denoiser")
    denoiser = _with_text(load("denoiser", path, device), options)
    losses = (_pixel_loss(options, device), _adversary(options, device))
    common: dict[str, Any] = {"strength": options.strength, "steps": tuple(options.rollout_steps),
                              "lr_share": options.lr_share,
                              "learning": Learning(options.everything, options.freeze_trunk),
                              "flow_weight": options.flow_weight}
    if options.stage == "decoder":
        return DecoderStage(vae, denoiser, encoder, *losses, **common)
    teacher = _with_text(load("denoiser", path, device), options) if options.teacher_steps else None
    return TurboStage(vae, denoiser, encoder, *losses, latent_weight=options.latent_weight, pixels=options.pixels,
                      with_decoder=options.with_decoder, teacher=teacher, teacher_steps=options.teacher_steps,
                      **common)


def _pixel_loss(options: argparse.Namespace, device: torch.device) -> PixelLoss:
    perceptual = PerceptualLoss(options.vgg, device) if options.lpips_weight else None
    return PixelLoss(perceptual, options.lpips_weight, options.lpips_images, options.lpips_patch,
                     options.l1_weight)


def _adversary(options: argparse.Namespace, device: torch.device) -> Adversary | None:
    if not options.gan_weight:
        return None
    return Adversary(options.gan_weight, options.gan_start, options.learning_rate, device, options.gan_channels)


def _needed(options: argparse.Namespace, name: str) -> Path:
    path = getattr(options, name)
    if path is None:
        raise SettingsError(f"the stage '{options.stage}' needs --{name}: the file that the earlier stage wrote")
    return path
