"""The LR encoder: low-resolution latents and the timestep -> four maps that SPADE feeds to the U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import TimeEmbedding
from .residual import Downsample, ResidualBlock


class PixelAttention(nn.Module):
    """x + W_o attention(GN(x)) over pixels, with 1-D convolutions as projections (MGLD-VSR layout).

    Queries, keys and values are interleaved per head: channels of `qkv` are [head][q, k, v][head_dim].
    """

    def __init__(self, channels: int, heads: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.heads = heads
        self.norm = ops.GroupNorm(32, channels, eps=1e-5, **kw)
        self.qkv = ops.Conv1d(channels, 3 * channels, 1, **kw)
        self.proj_out = ops.Conv1d(channels, channels, 1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x).flatten(2))
        # Contiguous, because the fused kernels want a head's channels side by side; without, all scores are kept.
        query, key, value = qkv.unflatten(1, (self.heads, 3, -1)).transpose(-1, -2).contiguous().unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(-1, -2).flatten(1, 2)
        return x + self.proj_out(attended).unflatten(2, x.shape[2:])


class LREncoderLevel(nn.Module):
    def __init__(self, in_channels: int, channels: int, layers: int, time_dim: int, heads: int, attention: bool,
                 downsample: bool, **kw: Any):
        super().__init__()
        self.resnets = nn.ModuleList([
            ResidualBlock(in_channels if i == 0 else channels, channels, time_dim, **kw) for i in range(layers)
        ])
        self.attentions = nn.ModuleList([PixelAttention(channels, heads, **kw) for _ in range(layers)] if attention
                                        else [])
        self.downsamplers = nn.ModuleList([Downsample(channels, **kw)] if downsample else [])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if len(self.attentions):
                x = self.attentions[i](x)
        return x


class MidLevel(nn.Module):
    def __init__(self, channels: int, time_dim: int, heads: int, **kw: Any):
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels, time_dim, **kw) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(channels, heads, **kw)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time)), time)


class LREncoder(nn.Module):
    """Latents (N, 4, h, w) and timesteps (N,) -> maps (N, map_channels, h/2^i, w/2^i), i = 0..levels-1.

    It knows the timestep (the LR picture means more the noisier the latents are), so it runs again at every step.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], map_channels: int, layers: int, heads: int, *,
                 ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw: dict[str, Any] = {"ops": ops, "dtype": dtype, "device": device}
        time_dim = 4 * channels[0]
        last = len(channels) - 1
        self.time_embedding = TimeEmbedding(channels[0], **kw)
        self.conv_in = ops.Conv2d(in_channels, channels[0], 3, padding=1, dtype=dtype, device=device)
        self.down_blocks = nn.ModuleList([
            LREncoderLevel(channels[max(i - 1, 0)], width, layers, time_dim, heads, i < last, i < last, **kw)
            for i, width in enumerate(channels)
        ])
        self.mid_block = MidLevel(channels[-1], time_dim, heads, **kw)
        self.taps = nn.ModuleList([ResidualBlock(width, map_channels, time_dim, **kw) for width in channels])

    def forward(self, latents: Tensor, timesteps: Tensor) -> list[Tensor]:
        time = self.time_embedding(timesteps, latents.dtype)
        x = self.conv_in(latents)
        features = []
        for level in self.down_blocks:
            x = level(x, time)
            for downsample in level.downsamplers:  # type: ignore[union-attr]
                features.append(x)
                x = downsample(x)
        features.append(self.mid_block(x, time))
        return [tap(feature, time) for tap, feature in zip(self.taps, features, strict=True)]
