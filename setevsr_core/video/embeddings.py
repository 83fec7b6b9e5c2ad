"""Embeddings of frames as pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def principal_colours(embeddings: Tensor, size: tuple[int, int]) -> Tensor:
    """Embeddings (N,C,h,w) as colours (N,H,W,3) 0..1: their three strongest principal components over all frames.

    Regions of like meaning get like colours, the same in every frame. Scaled to `size` (H, W) without smoothing.
    """
    count, channels, height, width = embeddings.shape
    # Frame by frame: the tokens of a long video as one matrix would take the memory of its embeddings once more.
    mean = torch.stack([frame.float().mean((1, 2)).cpu() for frame in embeddings]).mean(0)

    def tokens(frame: Tensor) -> Tensor:
        return frame.float().cpu().flatten(1).T - mean

    gram = torch.zeros(channels, channels)
    for frame in embeddings:
        centred = tokens(frame)
        gram += centred.T @ centred
    _, vectors = torch.linalg.eigh(gram)
    axes = vectors.flip(1)[:, :3]
    # An eigenvector's sign is arbitrary; this choice keeps the colours from one run to the next.
    strongest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(strongest < 0, -1.0, 1.0)
    colours = torch.cat([tokens(frame) @ axes for frame in embeddings])
    low, high = torch.quantile(_thinned(colours), torch.tensor([0.02, 0.98]), dim=0)
    colours = ((colours - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    picture = colours.reshape(count, height, width, 3).movedim(-1, 1)
    return functional.interpolate(picture, size=size, mode="nearest").movedim(1, -1).contiguous()


def _thinned(rows: Tensor, limit: int = 100_000) -> Tensor:
    return rows[:: max(1, len(rows) // limit)]
