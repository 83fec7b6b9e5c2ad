"""One attention site of the U-Net: spatial transformer with SeAM, then temporal transformer, then TSAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import CrossAttention, FeedForward, SelfAttention
from .semantic_attention import SemanticAttention
from .temporal_spatial import TemporalSpatialAwareness
from .temporal_transformer import TemporalTransformer, TimePositions

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SiteModules:
    """Which of SeTe-VSR's modules one site has, and how far SeAM and TSAM pool their keys and values."""

    semantic: bool
    temporal: bool
    temporal_spatial: bool
    semantic_pooling: int = 1
    temporal_spatial_pooling: int = 1


class TransformerBlock(nn.Module):
    """Self-attention, text cross-attention, SeAM, feed-forward; each with its norm and residual."""

    def __init__(self, channels: int, head_dim: int, context_dim: int, semantic: bool, semantic_pooling: int, *,
                 ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw: dict[str, Any] = {"ops": ops, "dtype": dtype, "device": device}
        self.norm1 = ops.LayerNorm(channels, dtype=dtype, device=device)
        self.attn1 = SelfAttention(channels, head_dim, **kw)
        self.norm2 = ops.LayerNorm(channels, dtype=dtype, device=device)
        self.attn2 = CrossAttention(channels, context_dim, head_dim, **kw)
        self.semantic_attention = SemanticAttention(channels, head_dim, semantic_pooling, **kw) if semantic else None
        self.norm3 = ops.LayerNorm(channels, dtype=dtype, device=device)
        self.ff = FeedForward(channels, **kw)

    def forward(self, tokens: Tensor, text: KeysValues, semantics: KeysValues | None) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), text)
        if self.semantic_attention is not None and semantics is not None:
            tokens = self.semantic_attention(tokens, semantics)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """GroupNorm, linear in, transformer block over the pixels of each frame, linear out, residual (SD 2.1)."""

    def __init__(self, channels: int, head_dim: int, context_dim: int, semantic: bool, semantic_pooling: int, *,
                 ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.norm = ops.GroupNorm(32, channels, eps=1e-6, dtype=dtype, device=device)
        self.proj_in = ops.Linear(channels, channels, dtype=dtype, device=device)
        self.transformer_blocks = nn.ModuleList([
            TransformerBlock(channels, head_dim, context_dim, semantic, semantic_pooling, ops=ops, dtype=dtype,
                             device=device)
        ])
        self.proj_out = ops.Linear(channels, channels, dtype=dtype, device=device)

    def forward(self, x: Tensor, text: KeysValues, semantics: KeysValues | None) -> Tensor:
        """x (N, C, h, w) -> the same shape."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, text, semantics))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])

    @property
    def block(self) -> TransformerBlock:
        block = self.transformer_blocks[0]
        assert isinstance(block, TransformerBlock)
        return block


class AttentionSite(SpatialTransformer):
    """A spatial transformer followed by the temporal transformer and TSAM, where the site has them."""

    def __init__(self, channels: int, head_dim: int, context_dim: int, modules: SiteModules, **kw: Any):
        super().__init__(channels, head_dim, context_dim, modules.semantic, modules.semantic_pooling, **kw)
        self.temporal_transformer = TemporalTransformer(channels, head_dim, **kw) if modules.temporal else None
        pooling = modules.temporal_spatial_pooling
        self.temporal_spatial = TemporalSpatialAwareness(channels, pooling, **kw) if modules.temporal_spatial else None

    def after(self, x: Tensor, num_frames: int, positions: TimePositions | None = None) -> Tensor:
        """The part over time; apart from `forward`, because the baseline's mid-block layers come in between."""
        if self.temporal_transformer is not None:
            x = self.temporal_transformer(x, num_frames, positions)
        if self.temporal_spatial is not None:
            x = self.temporal_spatial(x, num_frames, positions)
        return x
