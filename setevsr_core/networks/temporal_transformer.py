"""The temporal transformer behind every spatial transformer: each pixel looks along time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .layers import FeedForward, SelfAttention, sinusoidal_embedding

TimePositions = Mapping[int, Tensor]
"""Number of channels C -> embedded positions (T, C) of a segment's frames."""


def time_positions(channels: int, num_frames: int, like: Tensor) -> Tensor:
    """Sinusoidal positions 0..T-1, (T, C), in the type and on the device of `like`."""
    positions = torch.arange(num_frames, device=like.device)
    return sinusoidal_embedding(positions, channels).to(like.dtype)


def add_time_positions(tokens: Tensor, num_frames: int, positions: TimePositions | None = None) -> Tensor:
    """Add the frames' positions to tokens (B*T, n, C); without them attention cannot tell before from after.

    positions: where they are at hand; a GPU takes longer to launch the dozen small kernels than to add.
    """
    channels = tokens.shape[-1]
    embedded = time_positions(channels, num_frames, tokens) if positions is None else positions[channels]
    return (tokens.unflatten(0, (-1, num_frames)) + embedded[:, None].to(tokens.dtype)).flatten(0, 1)


class TemporalTransformer(nn.Module):
    """x + W_out(block(x)): temporal self-attention and GEGLU feed-forward, each with its own residual.

    `proj_out` starts at zero (`initialise.zero_new_modules`), which makes a fresh module an identity.
    """

    def __init__(self, channels: int, head_dim: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.norm1 = ops.LayerNorm(channels, **kw)
        self.attn = SelfAttention(channels, head_dim, ops=ops, **kw)
        self.norm2 = ops.LayerNorm(channels, **kw)
        self.ff = FeedForward(channels, ops=ops, **kw)
        self.proj_out = ops.Linear(channels, channels, **kw)

    def forward(self, x: Tensor, num_frames: int, positions: TimePositions | None = None) -> Tensor:
        """x (B*T, C, h, w) -> the same shape."""
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        placed = add_time_positions(self.norm1(tokens), num_frames, positions)
        tokens = tokens + self.attn.over_time(placed, num_frames)
        tokens = tokens + self.ff(self.norm2(tokens))
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
