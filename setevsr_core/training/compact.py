"""A trained compact upscaler (Real-ESRGAN's layout) as the trunk of a VAE's decoder.

What such a network has learnt of single frames is where a decoder that folds pixels can begin: it adds what latents and
neighbouring frames tell. `benchmarks.regressor` trains one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CheckpointError
from ..networks.initialise import start_vae
from ..networks.temporal_vae import TemporalVAE, Trunk, VAEConfig

SIDE, PICTURES = 40, 8  # low-resolution pixels along one side, and pictures, that the fit looks at
Weights = Mapping[str, Tensor]


def read_compact(path: Path) -> dict[str, Tensor]:
    """`body.0.weight` and so on: convolutions at even places, slopes of PReLU between them.

    Errors: CheckpointError for a file that cannot be read or holds another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read as safetensors ({error})") from error
    found = {key: tuple(value.shape) for key, value in weights.items()}
    expected = _layout(found)
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            raise CheckpointError(f"'{path}' is no compact upscaler of RGB as Real-ESRGAN's with PReLU: {key} is "
                                  f"{found.get(key, 'missing')}, expected {expected.get(key, 'no such tensor')}")
    return weights


def convolutions(weights: Mapping[str, Any]) -> int:
    """How many lie between the first and the last."""
    return len(weights) // 3 - 1


def _layout(found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the compact network with as many tensors, of this width and enlargement."""
    last = 2 * max(convolutions(found), 1) + 2
    width, made = ((found.get(f"body.{place}.bias") or (1,))[0] for place in (0, last))
    sizes = {place: (width, 3 if place == 0 else width) for place in range(0, last, 2)}
    sizes[last] = (3 * max(math.isqrt(made // 3), 1) ** 2, width)
    expected: dict[str, tuple[int, ...]] = {f"body.{place}.weight": (width,) for place in range(1, last, 2)}
    for place, (outputs, inputs) in sizes.items():
        expected |= {f"body.{place}.weight": (outputs, inputs, 3, 3), f"body.{place}.bias": (outputs,)}
    return expected


def with_compact_decoder(vae: TemporalVAE, weights: Weights) -> TemporalVAE:
    """A VAE with this one's encoder and latents, and a new decoder of nano's size around the compact network.

    It decodes at first what the network makes of the frame, whatever the latents. Errors: CheckpointError where the
    VAE does not fold pixels by the network's enlargement, or has not as many levels as nano's.
    """
    last = weights[f"body.{2 * convolutions(weights) + 2}.weight"]
    if 3 * vae.config.patch**2 != len(last) or not vae.config.residual:
        raise CheckpointError(f"the compact network writes {len(last)} channels, this VAE "
                              f"{3 * vae.config.patch**2}{'' if vae.config.residual else ' without a residual'}: a "
                              "VAE that folds pixels by the network's enlargement is needed, as nano's")
    sizes = VAEConfig.nano()
    if len(vae.config.channels) != len(sizes.channels):
        raise CheckpointError(f"this VAE has {len(vae.config.channels)} levels, and the decoder around a compact "
                              f"network is nano's, of {len(sizes.channels)}: train a VAE of nano's size for it")
    config = replace(vae.config, decoder_channels=sizes.decoder_channels, fusion_levels=sizes.fusion_levels,
                     growth=sizes.growth, refine=0, descreen=False, sharpen=0.0, trunk=convolutions(weights),
                     trunk_channels=len(weights["body.0.weight"]))
    device = next(vae.parameters()).device
    with device:
        renewed = TemporalVAE(config)
    start_vae(renewed)
    for part in ("encoder", "quant_conv", "post_quant_conv"):
        getattr(renewed, part).load_state_dict(getattr(vae, part).state_dict())
    adopt(renewed.decoder.trunk, weights)
    return renewed


@torch.no_grad()
def adopt(trunk: Trunk, weights: Weights) -> None:
    """The compact network's weights, for pixels in -1..1 instead of 0..1 that were enlarged (bicubic) and folded.

    `conv_in` and `skip` have to take the enlargement back. Both are linear in the frame, so they are solved for, by
    least squares on noise.
    """
    count = convolutions(weights)
    # Fitted on the CPU wherever the trunk lies, and whatever device is chosen around: its noise comes from there.
    weights = {key: value.cpu() for key, value in weights.items()}
    patch = round((len(weights[f"body.{2 * count + 2}.weight"]) // 3) ** 0.5)
    low, folded = _noise(patch)
    first = F.conv2d(low, weights["body.0.weight"], weights["body.0.bias"], padding=1)
    _solve(trunk.conv_in, folded, first)
    _solve(trunk.skip, folded, (low * 2 - 1).repeat_interleave(patch**2, dim=1))
    for i, conv in enumerate(trunk.convs):
        _fill(conv, weights, i + 1)
    for i, slope in enumerate(trunk.slopes):
        slope.copy_(weights[f"body.{2 * i + 1}.weight"])
    _fill(trunk.conv_out, weights, count + 1, factor=2)


@torch.no_grad()
def compact_of(trunk: Trunk) -> dict[str, Tensor]:
    """The compact network that a trunk on the CPU is without what feeds it (`join`): `adopt` the other way round.

    Exact, but for rounding, where `conv_in` and `skip` are as `adopt` made them; a trunk that learnt since has no equal
    among compact networks, and this is the nearest.
    """
    patch = math.isqrt(trunk.conv_out.weight.shape[0] // 3)
    low, folded = _noise(patch)
    first = torch.nn.Conv2d(3, len(trunk.conv_in.weight), 3, padding=1)
    _solve(first, low, trunk.conv_in(folded))
    layers = [first, *trunk.convs, trunk.conv_out]
    weights = {f"body.{2 * i}.{name}": getattr(layer, name).detach().clone()
               for i, layer in enumerate(layers) for name in ("weight", "bias")}
    for name in ("weight", "bias"):
        weights[f"body.{2 * len(trunk.convs) + 2}.{name}"] /= 2
    return weights | {f"body.{2 * i + 1}.weight": slope.detach().clone() for i, slope in enumerate(trunk.slopes)}


def _noise(patch: int) -> tuple[Tensor, Tensor]:
    """Low-resolution pictures (N, 3, h, w) in 0..1, and the same in -1..1 as a trunk gets them: enlarged and folded."""
    low = torch.rand(PICTURES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), device="cpu")
    low = low * 0.5 + 0.25  # bicubic overshoots would be clipped at the ends of the range
    return low, F.pixel_unshuffle(F.interpolate(low * 2 - 1, scale_factor=patch, mode="bicubic"), patch)


def _fill(conv: Any, weights: Weights, number: int, factor: float = 1) -> None:
    conv.weight.copy_(factor * weights[f"body.{2 * number}.weight"])
    conv.bias.copy_(factor * weights[f"body.{2 * number}.bias"])


def _solve(conv: Any, given: Tensor, wanted: Tensor) -> None:
    """Weights of a 3x3 convolution that makes `wanted` of `given`, (N, C, h, w) each, away from the border."""
    inner = (..., slice(1, -1), slice(1, -1))
    columns = F.unfold(given[inner], 3).transpose(1, 2).flatten(0, 1).double()
    columns = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
    targets = wanted[inner][inner].flatten(2).transpose(1, 2).flatten(0, 1).double()
    # A little of the identity keeps directions in which pictures never differ at zero.
    ridge = 1e-6 * len(columns) * torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
    solution = torch.linalg.solve(columns.T @ columns + ridge, columns.T @ targets)
    conv.weight.copy_(solution[:-1].T.reshape(conv.weight.shape))
    conv.bias.copy_(solution[-1])
