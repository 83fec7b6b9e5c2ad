"""Activation checkpointing: blocks forget what they computed and compute it again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..networks.residual import ResidualBlock
from ..networks.spatial_transformer import AttentionSite
from ..networks.temporal_spatial import TemporalSpatialAwareness
from ..networks.temporal_transformer import TemporalTransformer
from ..networks.temporal_vae import DecoderLevel, EncoderLevel, Fusion, MidBlock, Refinement, Trunk

BLOCKS = (ResidualBlock, AttentionSite, TemporalTransformer, TemporalSpatialAwareness, EncoderLevel, DecoderLevel,
          Fusion, MidBlock, Refinement)
"""What is forgotten as a whole: inputs of these are kept, all inside is computed twice. None runs inside another: the
parts over time belong to an attention site, but not to its `forward`. A trunk is too deep for that and is forgotten
in pieces."""


Call = Callable[..., Any]


def forgetful(call: Call) -> Call:
    """The same call, whose inside is forgotten and computed again in the backward pass."""
    return partial(checkpoint, call, use_reentrant=False)


def checkpoint_blocks(network: nn.Module) -> int:
    """Make every block of `network` forget its activations in training; returns how many blocks do.

    Names and weights do not change. Costs about a third more time and leaves a fraction of the memory.
    """
    return len(_wrap([network], forgetful))


@contextmanager
def wrapped_blocks(networks: Iterable[nn.Module], wrap: Callable[[Call], Call]) -> Iterator[None]:
    """Inside, all blocks that checkpointing would make forget are called through `wrap` of their call instead."""
    found = _wrap(networks, wrap)
    try:
        yield
    finally:
        for module, name in found:
            delattr(module, name)  # its class's own comes back


def _wrap(networks: Iterable[nn.Module], wrap: Callable[[Call], Call]) -> list[tuple[nn.Module, str]]:
    """Replace the calls of all blocks that are their class's own; returns which."""
    found = []
    for network in networks:
        for module in network.modules():
            name = "piece" if isinstance(module, Trunk) else "forward" if isinstance(module, BLOCKS) else None
            if name and name not in vars(module):
                setattr(module, name, wrap(getattr(module, name)))
                found.append((module, name))
    return found
