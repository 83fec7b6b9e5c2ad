"""Convolutions of torchvision's AlexNet and VGG16 from a file, for the networks that LPIPS and DISTS stand on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError


@torch.no_grad()
def fill_backbone(network: nn.Module, weights: Path) -> None:
    """Fill the convolutions of a network's parts (`slice1.0.weight`) from torchvision's names (`0.weight`).

    Parameters of the network itself, in no part, stay as they are. Errors: CheckpointError for a file that is not
    there, is no safetensors, or does not hold these layers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not weights.is_file():
        raise CheckpointError(f"no perceptual weights at {weights}: give the path of a safetensors file with "
                              "torchvision's convolution layers")
    try:
        stored = load_file(weights)
        for name, parameter in network.named_parameters():
            if "." in name:
                parameter.copy_(_of_shape(stored[name.split(".", 1)[1]], parameter.shape, name))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"'{weights}' is no safetensors file of torchvision's convolution layers (0.weight, "
                              f"0.bias, ...) for this network ({error})") from error


def _of_shape(value: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    if value.shape != shape:  # `copy_` alone would stretch one number over all
        raise ValueError(f"{name} is {tuple(value.shape)}, expected {tuple(shape)}")
    return value
