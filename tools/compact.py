"""Make a compact upscaler smaller, deeper or softer: the file that `setevsr train decoder --compact` begins with.

    python -m tools.compact OUT.safetensors A.safetensors [--mix B.safetensors 0.1] [--keep 37 --pack PACK]
    python -m tools.compact OUT.safetensors vae.safetensors [--deepen 40]

A VAE in place of a compact network gives its trunk, to be trained on alone (`benchmarks.regressor --start`).
--mix takes so large a share of a second training of the same network (network interpolation, ESRGAN section 3.4): a
little of one with an adversary. --keep leaves so many inner convolutions: one after the other goes whose absence
changes the result least, on frames of PACK (a folder of `setevsr pack`). --deepen adds inner convolutions at the end
that change nothing before they learn, up to so many: room for as many weights as another network has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.init import dirac_

from setevsr_core.checkpoints import identify, load_temporal_vae
from setevsr_core.checkpoints.registry import VAE
from setevsr_core.errors import SeTeVSRError, SettingsError
from setevsr_core.training.compact import compact_of, convolutions, read_compact
from setevsr_core.training.data import PackedDataset
from setevsr_core.training.gathering import mix_of, mixture

FRAMES, CROP, SEED = 16, 128, 3  # batch, side in clean pixels, and which of the pack's
Weights = dict[str, Tensor]


def residual(weights: Weights, frames: Tensor, inner: list[int]) -> Tensor:
    """What the network adds to frames (N, 3, h, w) in 0..1, with the inner convolutions of these places in `body`."""

    def conv(place: int, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f"body.{place}.weight"], weights[f"body.{place}.bias"], padding=1)

    x = F.prelu(conv(0, frames), weights["body.1.weight"])
    for place in inner:
        x = F.prelu(conv(place, x), weights[f"body.{place + 1}.weight"])
    return conv(2 * convolutions(weights) + 2, x)


def pruned(weights: Weights, keep: int, frames: Tensor) -> Weights:
    """The network with `keep` of its inner convolutions.

    Errors: SettingsError where it has not so many, and for none at all.
    """
    if not 1 <= keep <= convolutions(weights):
        raise SettingsError(f"--keep is {keep}, it must lie in 1..{convolutions(weights)}: so many inner convolutions "
                            "there are")
    last = 2 * convolutions(weights) + 2
    places = list(range(2, last, 2))
    whole = residual(weights, frames, places)
    while len(places) > keep:
        def loss(place: int) -> float:
            rest = [other for other in places if other != place]  # noqa: B023 - called within the round
            return float(F.mse_loss(residual(weights, frames, rest), whole))

        places.remove(min(places, key=loss))
    result: Weights = {}
    for i, place in enumerate([0, *places, last]):
        result |= {f"body.{2 * i}.{name}": weights[f"body.{place}.{name}"] for name in ("weight", "bias")}
        if place != last:
            result[f"body.{2 * i + 1}.weight"] = weights[f"body.{place + 1}.weight"]
    return result


def deepened(weights: Weights, count: int) -> Weights:
    """The network with `count` inner convolutions: those added repeat what they get, with slopes of one.

    Errors: SettingsError where it has more already.
    """
    inner = convolutions(weights)
    if count < inner:
        raise SettingsError(f"--deepen is {count}, and there are {inner} inner convolutions: --keep takes some away")
    result = {key: value for key, value in weights.items() if not key.startswith(f"body.{2 * inner + 2}.")}
    width = len(weights["body.0.weight"])
    for place in range(2 * inner + 2, 2 * count + 2, 2):
        result |= {f"body.{place}.weight": dirac_(torch.empty(width, width, 3, 3)),
                   f"body.{place}.bias": torch.zeros(width), f"body.{place + 1}.weight": torch.ones(width)}
    return result | {f"body.{2 * count + 2}.{name}": weights[f"body.{2 * inner + 2}.{name}"]
                     for name in ("weight", "bias")}


def compact_or_trunk(path: Path) -> Weights:
    """A compact network's weights, or those of the trunk in a native VAE's decoder."""
    if identify(path).kind != VAE:
        return read_compact(path)
    vae = load_temporal_vae(path, dtype=torch.float32)
    if not vae.config.trunk:
        raise SettingsError(f"{path} is a VAE without a trunk: give a compact network, or a VAE that has one as nano's")
    return compact_of(vae.decoder.trunk)


@torch.no_grad()
def made(args: argparse.Namespace) -> Weights:
    """The weights that the command line asks for."""
    weights = compact_or_trunk(args.network)
    if args.mix:
        file, share = mix_of(*args.mix)
        weights = mixture(weights, read_compact(file), share)
    if args.keep is not None:
        data = PackedDataset(args.pack)
        lr, _ = data.sample(np.random.default_rng(SEED), FRAMES, min(CROP, data.size), 1)
        frames = torch.from_numpy(lr).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        weights = pruned(weights, args.keep, frames)
    if args.deepen is not None:
        weights = deepened(weights, args.deepen)
    return weights


def main(argv: list[str] | None = None) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("network", type=Path, help="a compact upscaler, or a VAE whose trunk is taken")
    parser.add_argument("--mix", nargs=2, metavar=("FILE", "SHARE"))
    parser.add_argument("--keep", type=int)
    parser.add_argument("--deepen", type=int)
    parser.add_argument("--pack", type=Path, help="frames by which --keep chooses")
    args = parser.parse_args(argv)
    if args.keep is not None and args.pack is None:
        parser.error("--keep needs --pack")
    try:
        weights = made(args)
        save_file({key: value.contiguous() for key, value in weights.items()}, args.out)
    except (SeTeVSRError, SafetensorError, OSError) as error:
        parser.error(str(error))
    print(f"{args.out}: {convolutions(weights)} inner convolutions, "
          f"{sum(value.numel() for value in weights.values()) / 1e6:.2f} million weights")


if __name__ == "__main__":
    main()
