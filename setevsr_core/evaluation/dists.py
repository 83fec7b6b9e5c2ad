"""DISTS (Ding et al. 2020) through its authors' package `DISTS-pytorch`, without its download."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..errors import CheckpointError, require
from .metrics import mean_distance


class DISTS:
    """Structure and texture distance on VGG16 features, 0 (equal) to 1.

    weights: safetensors with VGG16's convolutions (`<torchvision index>.weight|bias`); the package brings its own
    alpha and beta. device: where it computes.
    Errors: CheckpointError for a file that does not fit, MissingPackageError without the package.
    """

    def __init__(self, weights: Path, device: torch.device | str | None = None) -> None:
        package = require("DISTS_pytorch", "DISTS-pytorch", "DISTS")
        stored = _read(weights)
        self.metric = _without_download(package)
        own = torch.load(Path(str(package.__file__)).with_name("weights.pt"), map_location="cpu", weights_only=True)
        with torch.no_grad():
            self.metric.alpha.copy_(own["alpha"])
            self.metric.beta.copy_(own["beta"])
        _fill(self.metric, stored, weights)
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


def _read(weights: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{weights}' is no safetensors file ({error}); give torchvision's VGG16 "
                              "convolutions") from error


def _fill(network: Any, stored: dict[str, Tensor], weights: Path) -> None:
    parts = {name: p for name, p in network.named_parameters() if name.startswith("stage")}
    with torch.no_grad():
        for name, parameter in parts.items():
            key = name.split(".", 1)[1]
            if key not in stored or stored[key].shape != parameter.shape:
                raise CheckpointError(f"'{weights}' has no VGG16 layer '{key}'; give torchvision's VGG16 convolutions")
            parameter.copy_(stored[key].float())
