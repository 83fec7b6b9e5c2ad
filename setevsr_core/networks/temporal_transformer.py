"""The temporal transformer behind every spatial transformer: each pixel looks along time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import FeedForward, SelfAttention, sinusoidal_embedding


def frames_to_pixels(x: Tensor, num_frames: int) -> Tensor:
    """(B*T, n, C) -> (B*n, T, C): one sequence in time for every spatial token."""
    return x.unflatten(0, (-1, num_frames)).transpose(1, 2).flatten(0, 1)


def pixels_to_frames(x: Tensor, tokens: int) -> Tensor:
    """(B*n, T, C) -> (B*T, n, C): the inverse of `frames_to_pixels`."""
    return x.unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1)


def add_time_positions(x: Tensor) -> Tensor:
    """Add sinusoidal positions 0..T-1 to sequences (M, T, C); without them attention cannot tell before from after."""
    positions = torch.arange(x.shape[1], device=x.device)
    return x + sinusoidal_embedding(positions, x.shape[2]).to(x.dtype)


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

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """x (B*T, C, h, w) -> the same shape."""
        tokens = x.flatten(2).transpose(1, 2)
        time = frames_to_pixels(tokens, num_frames)
        time = time + self.attn(add_time_positions(self.norm1(time)))
        time = time + self.ff(self.norm2(time))
        # Back in frame order the tokens are contiguous again; otherwise `Linear` copies its weights for every pixel.
        update = self.proj_out(pixels_to_frames(time, tokens.shape[1]))
        return x + update.transpose(1, 2).unflatten(2, x.shape[2:])
