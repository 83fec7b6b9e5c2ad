"""Residual blocks of the U-Net and the LR encoder, and SPADE, through which the LR maps enter every block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SPADE(nn.Module):
    """Spatially adaptive normalisation: GroupNorm(x) * (1 + gamma(map)) + beta(map), after MGLD-VSR.

    The norm sits on the residual branch, so a fresh SPADE is *not* an identity: a model starts from trained SPADE
    weights or trains them.
    """

    def __init__(self, channels: int, map_channels: int, hidden: int = 128, *, ops: Any = nn,
                 dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.param_free_norm = ops.GroupNorm(32, channels, eps=1e-5, **kw)
        self.mlp_shared = nn.ModuleList([ops.Conv2d(map_channels, hidden, 3, padding=1, **kw)])
        self.mlp_gamma = ops.Conv2d(hidden, channels, 3, padding=1, **kw)
        self.mlp_beta = ops.Conv2d(hidden, channels, 3, padding=1, **kw)

    def forward(self, x: Tensor, lr_map: Tensor) -> Tensor:
        """x (N, C, h, w), lr_map (N, map_channels, h, w) -> (N, C, h, w)."""
        hidden = F.relu(self.mlp_shared[0](lr_map))
        # The first factor decides the layout in memory: a convolution's, not the norm's, which knows no channels-last.
        return (1 + self.mlp_gamma(hidden)) * self.param_free_norm(x) + self.mlp_beta(hidden)


class ResidualBlock(nn.Module):
    """GN, SiLU, conv; + time; GN, SiLU, conv; SPADE where the block has LR maps; + skip.

    spade: channels of the LR maps and of SPADE's hidden layer, or None for a block without SPADE.
    """

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, spade: tuple[int, int] | None = None, *,
                 ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.norm1 = ops.GroupNorm(32, in_channels, eps=1e-5, **kw)
        self.conv1 = ops.Conv2d(in_channels, out_channels, 3, padding=1, **kw)
        self.time_emb_proj = ops.Linear(time_dim, out_channels, **kw)
        self.norm2 = ops.GroupNorm(32, out_channels, eps=1e-5, **kw)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 3, padding=1, **kw)
        self.spade = SPADE(out_channels, *spade, ops=ops, **kw) if spade else None
        self.conv_shortcut = ops.Conv2d(in_channels, out_channels, 1, **kw) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor, lr_map: Tensor | None = None) -> Tensor:
        """x (N, C_in, h, w), time (N, time_dim), lr_map (N, map_channels, h, w) -> (N, C_out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(F.silu(time))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        if self.spade is not None and lr_map is not None:
            hidden = self.spade(hidden, lr_map)
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Half the size: 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
