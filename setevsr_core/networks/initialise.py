"""Explicit initialisation for training; constructors do none (a host may create layers without weights)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .semantic_attention import SemanticAttention
from .temporal_spatial import TemporalSpatialAwareness
from .temporal_transformer import TemporalTransformer
from .temporal_vae import Refinement, TemporalVAE, Trunk


@torch.no_grad()
def zero_new_modules(network: nn.Module) -> None:
    """Zero what SeAM, temporal transformer, TSAM, trunk and refinement end with: the network equals its baseline.

    Of a trunk everything is set (`start_trunk`), not its ends alone: its depth needs start values of its own.
    """
    for module in network.modules():
        if isinstance(module, SemanticAttention):
            outputs = [module.attn.to_out[0]]
        elif isinstance(module, TemporalTransformer):
            outputs = [module.proj_out]
        elif isinstance(module, TemporalSpatialAwareness):
            outputs = [module.mlp_out]
        elif isinstance(module, Refinement):
            outputs = [module.conv2]
        elif isinstance(module, Trunk):
            outputs = [module.join, module.conv_out]
            start_trunk(module)
        else:
            continue
        for layer in outputs:
            for parameter in layer.parameters():
                parameter.zero_()


@torch.no_grad()
def start_trunk(trunk: Trunk) -> None:
    """Inner convolutions start as identities and a little noise (`start_inner`), `skip` as an identity."""
    start_inner(trunk.convs)
    nn.init.dirac_(trunk.skip.weight)
    trunk.skip.bias.zero_()
    trunk.slopes.fill_(0.25)


@torch.no_grad()
def start_inner(convs: Iterable[Any]) -> None:
    """Start values of the 3x3 convolutions inside a plain stack, each an identity and a little noise.

    Under PyTorch's initialisation a stack as deep as a trunk forgets its input.
    """
    for conv in convs:
        nn.init.dirac_(conv.weight)
        conv.weight += 0.1 * (2 / (9 * len(conv.weight))) ** 0.5 * torch.randn_like(conv.weight)
        conv.bias.zero_()


@torch.no_grad()
def start_vae(vae: TemporalVAE) -> None:
    """Start values of a VAE that is trained from scratch.

    The posterior starts narrow (log-variance -4 everywhere): with PyTorch's default it starts as wide as a standard
    normal, which drowns the latents, and the decoder first learns to ignore them. A residual VAE's last convolution
    starts at zero: its decoder then returns the encoder's pixels, and so does a refinement.
    """
    zero_new_modules(vae)
    latents = vae.config.latent_channels
    bias = vae.quant_conv.bias
    assert bias is not None
    vae.quant_conv.weight[latents:] = 0
    bias[latents:] = -4
    if vae.config.residual:
        for parameter in vae.decoder.conv_out.parameters():
            parameter.zero_()
