"""TSAM, the temporal-spatio awareness module (paper section III-C, Eq. 4-5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import FeedForward, SelfAttention
from .temporal_transformer import add_time_positions, frames_to_pixels, pixels_to_frames

TSAM_HEAD_DIM = 32  # the halves are 160, 320, 640 wide at full size: 64 does not divide 160


class AttentionBlock(nn.Module):
    """x + Attention(Norm(x)), then x + FFN(Norm(x)) (Eq. 4, one branch); `positions` adds time positions."""

    def __init__(self, channels: int, *, positions: bool = False, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.positions = positions
        self.norm1 = ops.LayerNorm(channels, **kw)
        self.attn = SelfAttention(channels, min(TSAM_HEAD_DIM, channels), ops=ops, **kw)
        self.norm2 = ops.LayerNorm(channels, **kw)
        self.ff = FeedForward(channels, ops=ops, **kw)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attn(add_time_positions(normed) if self.positions else normed)
        return tokens + self.ff(self.norm2(tokens))


class TemporalSpatialAwareness(nn.Module):
    """F + MLP(Concat(spatial(F_s), temporal(F_t))) where F_s, F_t = Split(F) along the channels (Eq. 4-5).

    The MLP's last layer starts at zero (`initialise.zero_new_modules`), which makes a fresh module an identity.
    """

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.spatial = AttentionBlock(channels // 2, ops=ops, **kw)
        self.temporal = AttentionBlock(channels // 2, positions=True, ops=ops, **kw)
        self.mlp_in = ops.Linear(channels, channels, **kw)
        self.mlp_out = ops.Linear(channels, channels, **kw)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """x (B*T, C, h, w) -> the same shape."""
        spatial, temporal = x.flatten(2).transpose(1, 2).chunk(2, dim=-1)
        tokens = spatial.shape[1]
        spatial = self.spatial(spatial)
        temporal = pixels_to_frames(self.temporal(frames_to_pixels(temporal, num_frames)), tokens)
        update = self.mlp_out(F.gelu(self.mlp_in(torch.cat([spatial, temporal], dim=-1))))
        return x + update.transpose(1, 2).unflatten(2, x.shape[2:])
