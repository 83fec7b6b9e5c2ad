"""Losses of the training stages. Images are (N, 3, H, W) in -1..1 unless said otherwise."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ..checkpoints.backbones import fill_backbone
from ..errors import CheckpointError, require
from ..video.motion import motion_back, warp


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al. 2018) on VGG16 as a loss, through the `lpips` package; frozen.

    weights: safetensors with VGG16's convolutions (`<torchvision index>.weight|bias`). Without it, `lpips` fetches
    torchvision's own (but nothing where fake tensors only count memory). Only VGG is offered: LPIPS on AlexNet is
    what results are measured with. device: where the pictures will be.
    """

    def __init__(self, weights: Path | None, device: torch.device | str = "cpu"):
        super().__init__()
        self.metric = vgg_metric(weights, "the perceptual loss", device)
        # Channels last is the faster layout of its many plain convolutions, on CPUs and GPUs alike.
        if detect_fake_mode() is None:  # fake tensors cannot change places inside a module
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """-> mean distance, a scalar."""
        return self.metric(prediction, target).mean()


def vgg_metric(weights: Path | None, purpose: str, device: torch.device | str = "cpu") -> Any:
    """The package's LPIPS module on VGG16, on `device`, its convolutions from `weights` or from torchvision.

    Errors: CheckpointError for a file that is not there or does not fit, and where torchvision's cannot be fetched.
    """
    lpips = require("lpips", purpose=purpose)
    counting = detect_fake_mode() is not None
    # The package uses an argument that torchvision has renamed.
    try:
        with warnings.catch_warnings(), torch.device(device):
            warnings.simplefilter("ignore", UserWarning)
            metric = lpips.LPIPS(net="vgg", pnet_rand=counting or weights is not None, verbose=False)
    except OSError as error:
        raise CheckpointError(f"torchvision's VGG16 for {purpose} cannot be fetched ({error}); give its convolutions "
                              "as a safetensors file with --vgg") from error
    metric.scaling_layer.to(device)  # its constants come from the old torch.Tensor(), which knows no device context
    if weights is not None and not counting:
        fill_backbone(metric.net, weights)
    return metric


class PatchDiscriminator(nn.Module):
    """PatchGAN: three strided convolutions and a score per patch (MGLD-VSR's decoder training).

    Spectral normalisation bounds how steep its scores are, so that a wide one does not run away from the generator.
    """

    def __init__(self, channels: int = 48):
        super().__init__()
        widths = [3, channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [spectral_norm(nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator from its scores."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of the posterior from N(0, 1), averaged over all elements."""
    return 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()


def temporal_difference(prediction: Tensor, target: Tensor, num_frames: int) -> Tensor:
    """L1 between the frame-to-frame changes of prediction and target, (B*T, 3, H, W); 0 for single frames."""
    if num_frames < 2:
        return prediction.new_zeros(())
    prediction, target = (x.unflatten(0, (-1, num_frames)).diff(dim=1) for x in (prediction, target))
    return F.l1_loss(prediction, target)


def flow_consistency(prediction: Tensor, target: Tensor, num_frames: int) -> Tensor:
    """Predictions warped along the *target's* optical flow agree with the next prediction, where nothing is hidden.

    Edges count up to four times (1 + 3 * Sobel edge), as in MGLD-VSR's sequence loss; there the roles of prediction
    and target were exchanged, here the prediction is warped. Flow: DIS of OpenCV, on the target, without gradient.
    """
    if num_frames < 2 or is_fake(prediction):  # OpenCV needs real pictures
        return prediction.new_zeros(())
    previous, following = _neighbours(prediction, num_frames)
    before, after = _neighbours(target, num_frames)
    flow, visible = motion_back((before + 1) / 2, (after + 1) / 2, "ULTRAFAST", "the sequence loss")
    weight = visible * (1 + 3 * _edges(after))
    return (weight * (warp(previous, flow) - following).abs()).mean()


def is_fake(tensor: Tensor) -> bool:
    """True for tensors without data, on which a step is only played through to count its memory."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def _neighbours(pixels: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Clips (B*T, C, H, W) -> the frames that have one after them, and those after them, (B*(T-1), C, H, W) each."""
    video = pixels.unflatten(0, (-1, num_frames))
    return video[:, :-1].flatten(0, 1), video[:, 1:].flatten(0, 1)


def _edges(pixels: Tensor) -> Tensor:
    """Sobel gradient magnitude of the luma, (N, 1, H, W), clipped to 0..1."""
    luma = pixels.float().mean(1, keepdim=True)
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=pixels.device)
    gradients = F.conv2d(luma, torch.stack([kernel, kernel.T])[:, None], padding=1)
    return gradients.norm(dim=1, keepdim=True).clamp(0, 1)
