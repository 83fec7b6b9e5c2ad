"""Layers of the denoiser: what would cost time without changing a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from setevsr_core.networks.temporal_spatial import TemporalSpatialAwareness
from setevsr_core.networks.temporal_transformer import TemporalTransformer

FRAMES = 3


@pytest.mark.parametrize("kind", [lambda: TemporalTransformer(64, 16), lambda: TemporalSpatialAwareness(64)],
                         ids=["temporal transformer", "TSAM"])  # fmt: skip
@torch.no_grad()
def test_no_linear_layer_copies_its_weights_for_every_pixel(kind: Any) -> None:
    """`Linear` does so with tokens that are not contiguous: it makes a batched product of them."""
    module: nn.Module = kind()
    copies = []

    def look(layer: nn.Module, arguments: Any) -> None:
        copies.append(1 if arguments[0].is_contiguous() else len(arguments[0]))

    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(look)
    module(torch.randn(FRAMES, 64, 4, 5), FRAMES)
    assert copies and max(copies) <= FRAMES
