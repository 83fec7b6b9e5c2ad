"""The baseline that diffusion has to beat: a plain convolutional network, trained on the same pack by the same loop.

    python -m benchmarks.regressor PACK --out RUN --vgg vgg16_features.safetensors --minutes 40
    setevsr evaluate DATA --methods bicubic preset:nano regressor@RUN/regressor.safetensors ...

The network is Real-ESRGAN's compact one (3x3 convolutions and PReLU on the low-resolution frame, pixel shuffle at the
end), frame by frame, with about as many weights as nano's decoder. `spandrel` knows it by its keys, so the result is
a method of `setevsr evaluate`, and ComfyUI's own "Load Upscale Model" takes it. PACK is a folder of `setevsr pack`; the
losses are those of the stage `vae`: L1 and LPIPS (VGG) on random windows. An interrupted run in RUN is resumed.
--teacher FILE aims at what a finished upscaler makes of the degraded frames, in place of the clean ones.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from setevsr_core.errors import SettingsError, require
from setevsr_core.evaluation.methods import load_upscaler
from setevsr_core.networks.initialise import start_inner
from setevsr_core.training.batches import Batch
from setevsr_core.training.data import PackedDataset
from setevsr_core.training.losses import PerceptualLoss
from setevsr_core.training.options import recorded
from setevsr_core.training.processes import Processes
from setevsr_core.training.trainer import PRECISIONS, Stage, Trainer, TrainSettings
from setevsr_core.training.vae_stages import Adversary, PictureStage, PixelLoss, enlarge

WIDTH, CONVOLUTIONS = 128, 40
"""Give 6.0 million weights, as many as nano's decoder has."""


def compact(width: int = WIDTH, convolutions: int = CONVOLUTIONS, scale: int = 4) -> nn.Module:
    """The network, RGB in 0..1 -> RGB `scale` times as large; at its start it repeats pixels.

    Its inner layers start as those of a trunk (`start_inner`), and the last as zero: all the network does at first is
    what it adds its work to.
    """
    module: Any = require("spandrel.architectures.Compact", "spandrel", "the regressor")
    network = module.Compact(num_feat=width, num_conv=convolutions, upscale=scale)
    inner = [layer for layer in network.body if isinstance(layer, nn.Conv2d)][1:-1]
    with torch.no_grad():
        start_inner(inner)
        for parameter in network.body[-1].parameters():
            parameter.zero_()
    return network


class RegressorStage(PictureStage):
    """One picture in, one picture out; the losses of the stage `vae` without latents."""

    name = "regressor"

    def __init__(self, network: nn.Module, pixel_loss: PixelLoss, adversary: Adversary | None = None,
                 teacher: nn.Module | None = None):
        super().__init__({"regressor": network}, pixel_loss, adversary)
        self.network, self.teacher = network, teacher

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def predict(self, lr: Tensor) -> Tensor:
        """Low-resolution frames (N, 3, h, w) -> enlarged ones, both in -1..1."""
        frames = ((lr + 1) / 2).contiguous(memory_format=torch.channels_last)
        return self.network(frames).float() * 2 - 1

    def aimed(self, batch: Batch) -> Batch:
        """The batch with the frames that the network is to make: the teacher's in place of the clean ones."""
        if self.teacher is None:
            return batch
        with torch.no_grad():
            return replace(batch, hr=self.teacher((batch.lr + 1) / 2).float().clamp(0, 1) * 2 - 1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.picture_losses(self.predict(batch.lr), self.aimed(batch))

    @torch.no_grad()
    def finish(self, next_batch: Any) -> dict[str, Any]:
        """L1 of the averaged weights on fixed batches, to compare runs."""
        batches = [self.aimed(next_batch()) for _ in range(8)]
        return {"final_l1": sum(float(F.l1_loss(self.predict(b.lr), b.hr)) for b in batches) / len(batches)}

    def sample(self, batch: Batch) -> list[Tensor]:
        return [enlarge(batch.lr, batch.hr), self.predict(batch.lr), self.aimed(batch).hr]


def load_teacher(path: Path, scale: int, device: torch.device) -> nn.Module:
    """The network of an upscaler file, RGB in 0..1 -> RGB `scale` times as large.

    Errors: CheckpointError for another file, SettingsError for another scale.
    """
    model = load_upscaler(path, str(device))
    if model.scale != scale:
        raise SettingsError(f"'{path}' enlarges by {model.scale}, the pack's scale is {scale}")
    return model.model.requires_grad_(False).to(memory_format=torch.channels_last)


def save(stage: Stage, folder: Path, record: dict[str, Any]) -> None:
    """`regressor.safetensors` in the layout that spandrel reads, and `record.json`."""
    from safetensors.torch import save_file

    weights = {key: value.contiguous() for key, value in stage.networks["regressor"].state_dict().items()}
    save_file(weights, folder / "regressor.safetensors")
    (folder / "record.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="run folder; an interrupted run there is resumed")
    parser.add_argument("--start", type=Path, help="a regressor.safetensors to go on from, in a run of its own")
    parser.add_argument("--teacher", type=Path, help="an upscaler that spandrel knows, of the pack's scale")
    parser.add_argument("--vgg", type=Path, help="VGG16 convolutions as safetensors; else torchvision's are fetched")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop at the first step past so many")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--crop", type=int, default=96, help="side of the training crops in HR pixels")
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--decay-from", type=float, default=0.6)
    parser.add_argument("--l1-weight", type=float, default=1.0)
    parser.add_argument("--lpips-weight", type=float, default=1.0, help="0 trains by L1 alone")
    parser.add_argument("--lpips-patch", type=int, default=64, help="side of LPIPS' random windows")
    parser.add_argument("--gan-weight", type=float, default=0.0, help="of a patch discriminator, 0 for none")
    parser.add_argument("--gan-channels", type=int, default=48)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--sharpen", type=float, default=0.0, help="unsharp mask on the clean frames, as nano had it")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--convolutions", type=int, default=CONVOLUTIONS)
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="write what a kill would lose")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    settings = TrainSettings(
        steps=args.steps, batch=args.batch, crop=args.crop, frames=1, learning_rate=args.learning_rate, seed=args.seed,
        decay_from=args.decay_from, ema_decay=args.ema_decay, precision=args.precision, device=args.device,
        minutes=args.minutes, sharpen=args.sharpen, save_every=args.save_every,
    )  # fmt: skip
    data, processes = PackedDataset(args.pack), Processes(args.device)
    torch.manual_seed(args.seed)
    network = compact(args.width, args.convolutions, data.scale)
    network.to(processes.device, memory_format=torch.channels_last)  # the faster layout of plain convolutions
    if args.start:
        from safetensors.torch import load_file

        network.load_state_dict(load_file(args.start))
    perceptual = PerceptualLoss(args.vgg).to(processes.device) if args.lpips_weight else None
    loss = PixelLoss(perceptual, args.lpips_weight, args.batch, args.lpips_patch, args.l1_weight)
    adversary = None
    if args.gan_weight:
        adversary = Adversary(args.gan_weight, 0, args.learning_rate, processes.device, args.gan_channels)
    teacher = load_teacher(args.teacher, data.scale, processes.device) if args.teacher else None
    stage = RegressorStage(network, loss, adversary, teacher)
    record = Trainer(stage, data, settings, args.out, save, processes, recorded(args)).run()
    weights = sum(p.numel() for p in network.parameters())
    print(f"{args.out / 'regressor.safetensors'}: {weights / 1e6:.2f} million weights, {record['steps']} steps in "
          f"{record['seconds']} s, L1 {record['final_l1']:.4f}")


if __name__ == "__main__":
    main()
