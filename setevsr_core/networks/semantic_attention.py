"""SeAM, the semantic alignment module (paper section III-B, Eq. 2-3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import CrossAttention

SEMANTIC_CHANNELS = 256  # width of SAM 2's image embedding, the same for all its sizes


@dataclass(frozen=True)
class SemanticKeys:
    """Keys and values of every SeAM site, laid out on the semantic grid; they do not depend on the diffusion step.

    sites: one (key, value) pair per site, each (N, gh, gw, C), or None where the site has no SeAM.
    """

    sites: tuple[tuple[Tensor, Tensor] | None, ...]

    def crop(self, top: float, bottom: float, left: float, right: float) -> SemanticKeys:
        """Keep the tokens that touch the region given as fractions 0..1 of the frame (at least one token)."""

        def cut(x: Tensor) -> Tensor:
            return x[:, _token_range(top, bottom, x.shape[1]), _token_range(left, right, x.shape[2])]

        return SemanticKeys(tuple(None if site is None else (cut(site[0]), cut(site[1])) for site in self.sites))


def _token_range(start: float, stop: float, tokens: int) -> slice:
    first = min(max(int(start * tokens), 0), tokens - 1)
    last = min(max(-int(-stop * tokens // 1), first + 1), tokens)
    return slice(first, last)


class SemanticAttention(nn.Module):
    """x + W_o softmax(Q K^T / sqrt(d)) V with Q from the spatial feature, K and V from the semantic embedding.

    Its place is after text cross-attention and before the feed-forward. The output projection starts at zero
    (`initialise.zero_new_modules`), so that a fresh module leaves the network as it was.
    """

    def __init__(self, channels: int, head_dim: int, pooling: int = 1, *, ops: Any = nn,
                 dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.pooling = pooling
        self.norm = ops.LayerNorm(channels, **kw)
        self.norm_context = ops.LayerNorm(SEMANTIC_CHANNELS, **kw)
        self.attn = CrossAttention(channels, SEMANTIC_CHANNELS, head_dim, ops=ops, **kw)

    def project(self, semantics: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic embedding (N, 256, gh, gw) -> key and value, each (N, gh', gw', C), gh' = ceil(gh / pooling)."""
        if self.pooling > 1:
            semantics = F.avg_pool2d(semantics, self.pooling, ceil_mode=True)
        return self.attn.project(self.norm_context(semantics.movedim(1, -1)))

    def forward(self, tokens: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        key, value = (x.flatten(1, 2) for x in keys_values)
        return tokens + self.attn(self.norm(tokens), (key, value))
