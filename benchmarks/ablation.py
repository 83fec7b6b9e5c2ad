"""The paper's Table II at nano scale: what SeAM and TSAM each add, with everything else equal.

    python -m benchmarks.ablation PACK VALPACK --vae FILE --denoiser FILE --semantic FILE --vgg FILE \
        --lpips-weights alexnet_features.safetensors --steps 300 --out DIR

Four denoisers, (a) neither module, (b) SeAM, (c) TSAM, (d) both, train on PACK and are measured on VALPACK, which
training must not have seen. What makes them comparable:

- One start. All SeAM and TSAM weights of `--denoiser` are taken away; each variant then gets its modules anew, with
  zero outputs. So all four compute the same function before the first step. (Without `--denoiser` the rest is random,
  by one seed.) The temporal transformers belong to the base: TSAM splits what they give.
- Equal batches, noises and learning rate, drawn from one seed, and every weight of the denoiser learns. The default is
  equal steps: a step costs more where there are more modules, so weights and seconds per step are printed. With
  `--minutes M` each variant trains for M minutes instead, on a machine that does nothing else: equal compute, fewer
  steps for more modules.
- One stage, `turbo`, with the VAE frozen: losses on pictures of clips of three frames, at the very steps and strength
  that are measured afterwards. The paper's two stages with their noise-prediction loss cost as much a step, but a few
  hundred of them move the restored picture of a small network hardly at all; this loss is what the table asks about.

The columns are the paper's (LPIPS, BRISQUE, DOVER), with PSNR, E_warp and the costs. BRISQUE needs the package
`brisque`, DOVER a set-up copy of its repository in `--weights FOLDER` (docs/evaluation.md); without them they are
"not measured".

Each variant is a run folder DIR/a ... DIR/d; the same command again goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from setevsr_core import Restorer
from setevsr_core.checkpoints import load_denoiser, load_semantic_encoder, load_temporal_vae
from setevsr_core.checkpoints.denoiser import is_added
from setevsr_core.errors import CheckpointError
from setevsr_core.evaluation.measures import MEASURES, Equipment, Instruments
from setevsr_core.evaluation.metrics import LPIPS
from setevsr_core.evaluation.statistics import bootstrap
from setevsr_core.evaluation.tables import interval_text
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.initialise import zero_new_modules
from setevsr_core.training.data import PackedDataset
from setevsr_core.training.losses import PerceptualLoss
from setevsr_core.training.processes import Processes
from setevsr_core.training.rollout_stages import TurboStage
from setevsr_core.training.train_command import save_networks
from setevsr_core.training.trainer import PRECISIONS, Trainer, TrainSettings, require_same
from setevsr_core.training.vae_stages import PixelLoss

from .measuring import Figures, held_out, measure

BLIND = ("brisque", "dover")
"""The paper's columns that need no truth."""

MOST_STEPS = 10**6
"""Never reached: what ends a training by minutes is the clock."""

WITHOUT: dict[str, Any] = {"semantic_levels": (), "temporal_spatial_sites": "none"}


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    seam: bool
    tsam: bool

    def changes(self, config: DenoiserConfig) -> dict[str, Any]:
        """The modules of this variant, at all sites."""
        levels = tuple(range(len(config.channels))) if self.seam else ()
        return {"semantic_levels": levels, "temporal_spatial_sites": "all" if self.tsam else "none"}


VARIANTS = (Variant("a", False, False), Variant("b", True, False), Variant("c", False, True), Variant("d", True, True))


def start(path: Path | None, variant: Variant, seed: int, device: torch.device, base: DenoiserConfig) -> Denoiser:
    """The denoiser of a variant before its first step: the same function for all variants of one file and seed.

    base: the sizes where there is no file. Errors: CheckpointError for a file without the empty prompt.
    """
    torch.manual_seed(seed)
    if path is None:
        bare = Denoiser(DenoiserConfig(**{**vars(base), **WITHOUT}), empty_text=torch.randn(1, 4, base.context_dim))
        zero_new_modules(bare)
    else:
        bare = load_denoiser(path, dtype=torch.float32, changes=WITHOUT)
    if bare.empty_text is None:
        raise CheckpointError(f"{path} stores no embedding of the empty prompt; give a denoiser that training wrote")
    network = Denoiser(DenoiserConfig(**{**vars(bare.config), **variant.changes(bare.config)}),
                       empty_text=bare.empty_text)
    zero_new_modules(network)
    missing, left = network.load_state_dict(bare.state_dict(), strict=False)
    assert not left and all(is_added(name) for name in missing), "the base is a part of every variant"
    return network.to(device)


def train(variant: Variant, args: argparse.Namespace, data: PackedDataset) -> None:
    """Run a variant to its end, unless it has got there already."""
    folder = args.out / variant.name
    if (folder / "record.json").is_file():
        return
    processes = Processes(args.device)
    device = processes.device
    vae = load_temporal_vae(args.vae, dtype=torch.float32, device=device)
    encoder = load_semantic_encoder(args.semantic, dtype=torch.float32, device=device) if variant.seam else None
    if encoder is not None:
        encoder.requires_grad_(False)
    denoiser = start(args.denoiser, variant, args.seed, device, DenoiserConfig.nano())
    perceptual = PerceptualLoss(args.vgg).to(device) if args.lpips_weight else None
    loss = PixelLoss(perceptual, args.lpips_weight, args.batch * args.frames, 64, 0.25)
    stage = TurboStage(vae, denoiser, encoder, loss, strength=args.strength, steps=(args.rollout_steps,),
                       latent_weight=0.2)
    settings = TrainSettings(
        steps=args.steps, minutes=args.minutes, batch=args.batch, crop=args.crop, frames=args.frames,
        learning_rate=args.learning_rate, seed=args.seed, warmup=min(50, args.steps), decay_from=0.6,
        precision=args.precision, device=args.device, log_every=1, save_every=50,
    )  # fmt: skip
    Trainer(stage, data, settings, folder, save_networks, processes, {"variant": vars(variant)}).run()


def training_loss(folder: Path) -> float:
    """The sum of a variant's losses, averaged over the last quarter of its steps; equal steps saw the same batches."""
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        # An interrupted run repeats the steps since its last checkpoint: the later line counts.
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    last = sorted(rows)[-max(1, len(rows) // 4) :]
    return sum(float(value) for step in last for key, value in rows[step].items()
               if key not in ("step", "seconds")) / len(last)


@torch.inference_mode()
def measured(
    variant: Variant, args: argparse.Namespace, data: PackedDataset, lpips: LPIPS, others: Instruments
) -> Figures:
    """The trained variant on the held-out segments, at the steps and strength of its training."""
    device = Processes(args.device).device
    networks = [load_denoiser(args.out / variant.name / "denoiser.safetensors", dtype=torch.float32),
                load_temporal_vae(args.vae, dtype=torch.float32),
                load_semantic_encoder(args.semantic, dtype=torch.float32) if variant.seam else None]
    restorer = Restorer(*networks, device=device)
    settings: dict[str, Any] = {"steps": args.rollout_steps, "strength": args.strength, "sampler": "ddim", "seed": 0}
    return measure(lambda lr: restorer.restore(lr, scale=data.scale, **settings), held_out(data, args.segments),
                   lpips.distance, others)


def row(variant: Variant, folder: Path, figures: Figures) -> str:
    """A line of the table: modules, figures with their 95 % bootstrap intervals over the segments, and the costs."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    weights = sum(p.numel() for p in load_denoiser(folder / "denoiser.safetensors", device="meta").parameters())
    shown = {"lpips": figures.lpips, **{name: figures.others.get(name, []) for name in BLIND}, "psnr": figures.psnr,
             "warping": figures.warping}
    cells = [interval_text(bootstrap(values) if values else None, name) for name, values in shown.items()]
    marks = ["✓" if on else "" for on in (variant.seam, variant.tsam)]
    return " | ".join(["| (" + variant.name + ")", *marks, *cells, f"{training_loss(folder):.4f}",
                       f"{weights / 1e6:.2f}", f"{record['steps']}",
                       f"{record['seconds'] / record['steps']:.2f}", f"{figures.seconds:.2f} |"])


def keep_settings(args: argparse.Namespace) -> None:
    """Write what decides the runs into DIR, or compare with what is there: all rows belong to one experiment.

    Errors: SettingsError where DIR holds another one.
    """
    decides = {key: str(value) for key, value in vars(args).items()
               if key not in ("out", "valpack", "segments", "lpips_weights", "weights", "device")}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "ablation.json"
    if not path.exists():
        path.write_text(json.dumps(decides, indent=1), encoding="utf-8")
    else:
        require_same(json.loads(path.read_text(encoding="utf-8")), decides, f"'{args.out}' holds an ablation")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("valpack", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--semantic", type=Path, required=True)
    parser.add_argument("--denoiser", type=Path, help="the start; its SeAM and TSAM are not used (default: random)")
    parser.add_argument("--vgg", type=Path, help="VGG16 convolutions as safetensors; else torchvision's are fetched")
    parser.add_argument("--lpips-weights", type=Path, required=True, help="AlexNet's convolutions, to measure with")
    parser.add_argument("--weights", type=Path, nargs="+", default=[], help="folders that hold DOVER, to measure with")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="equal steps for every variant (default: 300)")
    length.add_argument("--minutes", type=float, default=math.inf, help="equal time for every variant instead of equal "
                        "steps; does not repeat bit for bit")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--lpips-weight", type=float, default=1.0)
    parser.add_argument("--rollout-steps", type=int, default=2, help="sampling steps in training and measuring")
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--segments", type=int, default=16, help="of VALPACK that are measured")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    timed = args.minutes != math.inf
    args.steps = args.steps or (MOST_STEPS if timed else 300)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    keep_settings(args)
    data, held, lpips = PackedDataset(args.pack), PackedDataset(args.valpack), LPIPS(args.lpips_weights)
    for variant in VARIANTS:
        train(variant, args, data)
    others = Instruments.build(BLIND, Equipment(args.weights, device=str(Processes(args.device).device)))
    rows = [row(variant, args.out / variant.name, measured(variant, args, held, lpips, others)) for variant in VARIANTS]
    each = f"Equal time: {args.minutes:g} minutes" if timed else f"Equal steps: {args.steps}"
    table = "\n".join([
        f"{each}, of {args.batch} clips of {args.frames} frames, {args.crop} px, seed {args.seed}; measured "
        f"on {args.segments} segments of {held.frames} frames, {held.size} px, DDIM {args.rollout_steps} steps, "
        f"strength {args.strength:g}, noise seed 0; 95 % bootstrap intervals; torch {torch.__version__}\n",
        "| Exp. | SeAM | TSAM | LPIPS ↓ | BRISQUE ↓ | DOVER ↑ | PSNR ↑ | E_warp ↓ | training loss | million weights "
        "| steps | s/step | s/frame |",
        "|" + "---|" * 13, *rows,
        *(f"\n{MEASURES[name].title}: not measured: {reason}" for name, reason in others.missing.items()),
    ])  # fmt: skip
    (args.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
