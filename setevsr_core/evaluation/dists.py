"""DISTS (Ding et al. 2020) through its authors' package `DISTS-pytorch`, without its download."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..checkpoints.backbones import fill_backbone
from ..errors import require
from .metrics import mean_distance


class DISTS:
    """Structure and texture distance on VGG16 features, 0 (equal) to 1.

    weights: safetensors with VGG16's convolutions (`<torchvision index>.weight|bias`); the package brings its own
    alpha and beta. device: where it computes.
    Errors: CheckpointError for a file that does not fit, MissingPackageError without the package.
    """

    def __init__(self, weights: Path, device: torch.device | str | None = None) -> None:
        package = require("DISTS_pytorch", "DISTS-pytorch", "DISTS")
        self.metric = _without_download(package)
        own = torch.load(Path(str(package.__file__)).with_name("weights.pt"), map_location="cpu", weights_only=True)
        with torch.no_grad():
            self.metric.alpha.copy_(own["alpha"])
            self.metric.beta.copy_(own["beta"])
        fill_backbone(self.metric, weights)
        self.device = torch.device(device or "cpu")
        self.metric.eval().to(self.device)

    @torch.inference_mode()
    def distance(self, first: Tensor, second: Tensor) -> float:
        """Of two frames (1, 3, H, W) in 0..1."""
        return float(self.metric(*(x.to(self.device).float() for x in (first, second))))

    def __call__(self, result: Tensor, truth: Tensor) -> float:
        """Mean distance over the frames."""
        return mean_distance(self.distance, result, truth)


def _without_download(package: Any) -> Any:
    """The network with random convolutions: its constructor asks torchvision for pretrained ones, over the network."""
    from torchvision import models

    plain = models.vgg16
    with mock.patch.object(models, "vgg16", lambda **_: plain(weights=None)):
        return package.DISTS(load_weights=False)
