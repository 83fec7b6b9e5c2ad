"""Temporal layers of the MGLD-VSR baseline: a convolution and an attention over time, mixed in by a learnt alpha.

Both compute alpha * f(x) + (1 - alpha) * x. Alpha 0 switches a layer off exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import SelfAttention


def mix(update: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    """alpha * update + (1 - alpha) * x in the type of x, to which both others are cast; alpha is a raw parameter.

    Under CUDA's autocast norms, and so x, come in fp32, and what a layer makes of it in half precision.
    """
    return torch.lerp(x, update.to(x.dtype), alpha.to(device=x.device, dtype=x.dtype))


class TemporalConv(nn.Module):
    """Convolution of kernel 3 over time at every pixel, zero-padded at the segment's ends."""

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.temporal_conv = ops.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), dtype=dtype, device=device)
        self.temporal_alpha = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """x (B*T, C, h, w) -> the same shape."""
        video = x.unflatten(0, (-1, num_frames)).transpose(1, 2)
        update = self.temporal_conv(video).transpose(1, 2).flatten(0, 1)
        return mix(update, x, self.temporal_alpha)


class TemporalAttention(nn.Module):
    """Self-attention over time at every pixel, without positions: it commutes with any order of the frames."""

    def __init__(self, channels: int, head_dim: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.norm = ops.LayerNorm(channels, **kw)
        self.temporal_attn = SelfAttention(channels, head_dim, ops=ops, **kw)
        self.temporal_alpha = nn.Parameter(torch.zeros(1, **kw))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """x (B*T, C, h, w) -> the same shape."""
        tokens = x.flatten(2).transpose(1, 2)
        update = self.temporal_attn.over_time(self.norm(tokens), num_frames)
        return mix(update.transpose(1, 2).unflatten(2, x.shape[2:]), x, self.temporal_alpha)
