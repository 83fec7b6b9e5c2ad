"""Small layers shared by the networks: time embedding, attention over tokens, GEGLU feed-forward.

Shape legend: B videos, T frames, N = B*T, C channels, n tokens, h w latent height and width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_PERIOD = 10000.0  # of SD 2.1's embedding of timesteps


def sinusoidal_embedding(positions: Tensor, dim: int) -> Tensor:
    """Embed positions (n,) as (n, dim) fp32: first half cosines, second half sines (SD 2.1 order)."""
    half = dim // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * torch.exp(steps * (-math.log(MAX_PERIOD) / half))[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Timesteps (N,) -> embedding (N, 4 * channels): sinusoid, Linear, SiLU, Linear."""

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.channels = channels
        self.linear_1 = ops.Linear(channels, 4 * channels, **kw)
        self.linear_2 = ops.Linear(4 * channels, 4 * channels, **kw)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        embedding = sinusoidal_embedding(timesteps, self.channels).to(dtype)
        return self.linear_2(F.silu(self.linear_1(embedding)))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V over tokens: query (N, n, C), key and value (N, m, C) -> (N, n, C)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


MOST_SEQUENCES = 2**16 - 1  # in one call: as many as CUDA's kernels of attention take


def attend_over_time(query: Tensor, key: Tensor, value: Tensor, heads: int, num_frames: int) -> Tensor:
    """As `attend`, of every token to itself in the other frames of its video: (B*T, n, C) each -> (B*T, n, C)."""
    videos = query.shape[0] // num_frames
    # A sequence in time is a view of tokens that stay in the order of frames; only several videos need a copy.
    sequences = [x.unflatten(0, (videos, num_frames)).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4)
                 .flatten(0, 1).split(MOST_SEQUENCES) for x in (query, key, value)]  # fmt: skip
    parts = [F.scaled_dot_product_attention(*part) for part in zip(*sequences, strict=True)]
    attended = (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(0, (videos, -1))
    return attended.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (N, n, C); queries, keys and values without bias (SD 2.1 layout)."""

    def __init__(self, channels: int, head_dim: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.heads = channels // head_dim
        self.to_q = ops.Linear(channels, channels, bias=False, **kw)
        self.to_k = ops.Linear(channels, channels, bias=False, **kw)
        self.to_v = ops.Linear(channels, channels, bias=False, **kw)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, **kw)])

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """context (N, m, C): fewer tokens to attend to, such as pooled ones; None attends to all tokens."""
        context = tokens if context is None else context
        return self.to_out[0](attend(self.to_q(tokens), self.to_k(context), self.to_v(context), self.heads))

    def over_time(self, tokens: Tensor, num_frames: int) -> Tensor:
        """Attention of every token (B*T, n, C) to itself in the frames of its video; the same shape."""
        projected = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        return self.to_out[0](attend_over_time(*projected, self.heads, num_frames))


class CrossAttention(nn.Module):
    """Attention from tokens (N, n, C) to a context (M, m, context_dim), M = 1 or N.

    Keys and values are projected apart from the call (`project`), because a context that does not depend on the
    diffusion step is projected once for all steps.
    """

    def __init__(self, channels: int, context_dim: int, head_dim: int, *, ops: Any = nn,
                 dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.heads = channels // head_dim
        self.to_q = ops.Linear(channels, channels, bias=False, **kw)
        self.to_k = ops.Linear(context_dim, channels, bias=False, **kw)
        self.to_v = ops.Linear(context_dim, channels, bias=False, **kw)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, **kw)])

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(context), self.to_v(context)

    def forward(self, tokens: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        key, value = (x.expand(tokens.shape[0], -1, -1) for x in keys_values)
        return self.to_out[0](attend(self.to_q(tokens), key, value, self.heads))


class GEGLU(nn.Module):
    def __init__(self, channels: int, inner: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        self.proj = ops.Linear(channels, 2 * inner, dtype=dtype, device=device)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, gate = self.proj(tokens).chunk(2, dim=-1)
        return hidden * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward with four-fold inner width (SD 2.1: `ff.net.0.proj`, `ff.net.2`).

    On a processor tokens pass in even pieces, unless gradients are wanted: the inner layer is eight times as wide as
    they are, and a piece of it stays in the cache instead of being fresh memory for every operation.
    """

    PIECE = 5 * 2**20  # numbers of the inner layer; `benchmarks.kernels` compares

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        # Index 1 is diffusers' dropout; the identity keeps its names.
        self.net = nn.ModuleList([
            GEGLU(channels, 4 * channels, ops=ops, **kw), nn.Identity(), ops.Linear(4 * channels, channels, **kw)
        ])

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.device.type != "cpu" or torch.is_grad_enabled():
            return self.net[2](self.net[0](tokens))
        pieces = tokens.flatten(0, -2).chunk(math.ceil(8 * tokens.numel() / self.PIECE))
        return torch.cat([self.net[2](self.net[0](piece)) for piece in pieces]).view_as(tokens)
