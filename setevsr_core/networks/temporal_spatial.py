"""TSAM, the temporal-spatio awareness module (paper section III-C, Eq. 4-5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import FeedForward, SelfAttention
from .temporal_transformer import TimePositions, add_time_positions

TSAM_HEAD_DIM = 32  # the halves are 160, 320, 640 wide at full size: 64 does not divide 160


class AttentionBlock(nn.Module):
    """x + Attention(Norm(x)), then x + FFN(Norm(x)) (Eq. 4, one branch).

    over_time: every token attends to itself in the segment's frames, with time positions; otherwise to all tokens of
    its frame. pooling: of these, keys and values come from means over so many pixels each way.
    """

    def __init__(self, channels: int, *, over_time: bool = False, pooling: int = 1, ops: Any = nn,
                 dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.over_time, self.pooling = over_time, pooling
        self.norm1 = ops.LayerNorm(channels, **kw)
        self.attn = SelfAttention(channels, min(TSAM_HEAD_DIM, channels), ops=ops, **kw)
        self.norm2 = ops.LayerNorm(channels, **kw)
        self.ff = FeedForward(channels, ops=ops, **kw)

    def forward(self, tokens: Tensor, num_frames: int, grid: tuple[int, int], positions: TimePositions | None = None
                ) -> Tensor:
        """tokens (B*T, n, C) of frames of (h, w) = grid latents, h * w = n -> the same shape."""
        normed = self.norm1(tokens)
        if self.over_time:
            update = self.attn.over_time(add_time_positions(normed, num_frames, positions), num_frames)
        else:
            update = self.attn(normed, None if self.pooling == 1 else pool_tokens(normed, grid, self.pooling))
        tokens = tokens + update
        return tokens + self.ff(self.norm2(tokens))


def pool_tokens(tokens: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Tokens (N, h*w, C) of a grid (h, w) -> means over factor x factor pixels, (N, ceil(h/f)*ceil(w/f), C)."""
    pixels = tokens.transpose(1, 2).unflatten(2, grid)
    return F.avg_pool2d(pixels, factor, ceil_mode=True).flatten(2).transpose(1, 2)


class TemporalSpatialAwareness(nn.Module):
    """F + MLP(Concat(spatial(F_s), temporal(F_t))) where F_s, F_t = Split(F) along the channels (Eq. 4-5).

    The MLP's last layer starts at zero (`initialise.zero_new_modules`), which makes a fresh module an identity.
    pooling: of the keys and values of the spatial branch; it changes no weights.
    """

    def __init__(self, channels: int, pooling: int = 1, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.spatial = AttentionBlock(channels // 2, pooling=pooling, ops=ops, **kw)
        self.temporal = AttentionBlock(channels // 2, over_time=True, ops=ops, **kw)
        self.mlp_in = ops.Linear(channels, channels, **kw)
        self.mlp_out = ops.Linear(channels, channels, **kw)

    def forward(self, x: Tensor, num_frames: int, positions: TimePositions | None = None) -> Tensor:
        """x (B*T, C, h, w) -> the same shape."""
        halves = (half.contiguous() for half in x.flatten(2).transpose(1, 2).chunk(2, dim=-1))
        branches = [branch(half, num_frames, (x.shape[2], x.shape[3]), positions)
                    for branch, half in zip((self.spatial, self.temporal), halves, strict=True)]
        update = self.mlp_out(F.gelu(self.mlp_in(torch.cat(branches, dim=-1))))
        return x + update.transpose(1, 2).unflatten(2, x.shape[2:])
