"""Activation checkpointing: blocks forget what they computed and compute it again in the backward pass."""

from __future__ import annotations

from functools import partial

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


def checkpoint_blocks(network: nn.Module) -> int:
    """Make every block of `network` forget its activations in training; returns how many blocks do.

    Names and weights do not change. Costs about a third more time and leaves a fraction of the memory.
    """
    found = 0
    for module in network.modules():
        name = "piece" if isinstance(module, Trunk) else "forward" if isinstance(module, BLOCKS) else None
        if name and not isinstance(getattr(module, name), partial):
            setattr(module, name, partial(checkpoint, getattr(module, name), use_reentrant=False))
            found += 1
    return found
