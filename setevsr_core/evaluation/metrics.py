"""Figures of merit of a restored clip. Clips are (N, H, W, 3) float in 0..1, result and truth of equal size.

All of them go frame by frame, so that their memory does not grow with the clip.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints.backbones import fill_backbone
from ..errors import InputError, require
from ..video.motion import motion_back, warp

FrameDistance = Callable[[Tensor, Tensor], float]
"""Distance of two frames (1, 3, H, W) in 0..1."""


def check_pair(result: Tensor, truth: Tensor) -> None:
    """Raise InputError unless both clips have the same shape (N, H, W, 3)."""
    if result.shape != truth.shape or result.ndim != 4 or result.shape[-1] != 3:
        raise InputError(f"result {tuple(result.shape)} and truth {tuple(truth.shape)} must both be (N, H, W, 3) "
                         "and equal: compare the same frames at the same size")


def luma(clip: Tensor) -> Tensor:
    """Y of BT.601 in studio range, as 'PSNR-Y' in the literature means it: (..., 3) in 0..1 -> (...), 16..235 / 255."""
    return (clip.double() @ torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) + 16) / 255


def psnr(result: Tensor, truth: Tensor, *, of_luma: bool = False) -> float:
    """Mean over the frames of the PSNR in dB, of RGB or of the luma; equal frames count 100 dB."""
    check_pair(result, truth)
    view = luma if of_luma else torch.Tensor.double
    errors = torch.stack([((view(a) - view(b)) ** 2).mean() for a, b in zip(result, truth, strict=True)])
    return float((-10 * errors.clamp(min=1e-10).log10()).mean())


def ssim(result: Tensor, truth: Tensor, *, of_luma: bool = True) -> float:
    """Mean structural similarity (Gaussian window of 11, sigma 1.5; Wang et al. 2004) of the luma or of RGB.

    Errors: InputError for frames below 11x11.
    """
    check_pair(result, truth)
    if min(result.shape[1:3]) < 11:
        raise InputError(f"SSIM needs frames of 11x11 or more, got {result.shape[2]}x{result.shape[1]}")
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))

    c1, c2 = 0.01**2, 0.03**2
    values = []
    for pair in zip(result, truth, strict=True):
        x, y = ((luma(z)[None] if of_luma else z.double().movedim(-1, 0))[:, None] for z in pair)
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        values.append((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    return float(torch.stack(values).mean())


def sharpness(clip: Tensor) -> float:
    """Mean absolute luma gradient in 8-bit levels per pixel: tells blur from detail, but also noise from neither."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    steps = []
    for frame in clip:
        grey = frame.double() @ weights
        steps.append(grey.diff(dim=0).abs().mean() + grey.diff(dim=1).abs().mean())
    return float(255 * 0.5 * torch.stack(steps).mean())


def warping_error(clip: Tensor, truth: Tensor) -> float:
    """E_warp: mean absolute difference (8-bit levels) of each frame from its predecessor moved along the truth's flow.

    Flow and visibility come from the truth (DIS optical flow), so that all methods are measured on the same pixels.
    """
    check_pair(clip, truth)
    if len(clip) < 2:
        return 0.0
    errors = []
    for i in range(len(clip) - 1):
        before, after, true_before, true_after = (frame.float().permute(2, 0, 1)[None]
                                                  for frame in (clip[i], clip[i + 1], truth[i], truth[i + 1]))
        flow, visible = motion_back(true_before, true_after, "MEDIUM", "the warping error")
        difference = (warp(before, flow) - after).abs().mean(1, keepdim=True)
        errors.append(255 * float(difference[visible].mean()) if visible.any() else 0.0)
    return sum(errors) / len(errors)


def mean_distance(distance: FrameDistance, result: Tensor, truth: Tensor) -> float:
    """The mean of a frame-wise distance over a clip."""
    check_pair(result, truth)
    return sum(distance(a, b) for a, b in zip(planes(result), planes(truth), strict=True)) / len(result)


def temporal_distance(distance: FrameDistance, result: Tensor, truth: Tensor) -> float:
    """How far the changes from frame to frame are from the truth's: mean |d(out_t, out_t+1) - d(gt_t, gt_t+1)|.

    With LPIPS as the distance this is tLPIPS (Chu et al. 2020). 0 for a single frame.
    """
    check_pair(result, truth)
    if len(result) < 2:
        return 0.0
    ours, theirs = list(planes(result)), list(planes(truth))
    changes = [abs(distance(ours[i], ours[i + 1]) - distance(theirs[i], theirs[i + 1])) for i in range(len(ours) - 1)]
    return sum(changes) / len(changes)


def planes(clip: Tensor) -> list[Tensor]:
    """The frames (N, H, W, 3) of a clip as views (1, 3, H, W)."""
    return [frame.movedim(-1, 0)[None] for frame in clip]


class LPIPS:
    """LPIPS on AlexNet (Zhang et al. 2018), the perceptual distance that results are judged by; never a loss here.

    weights: safetensors with AlexNet's convolutions (`<torchvision index>.weight|bias`). device: where it computes.
    """

    def __init__(self, weights: Path, device: torch.device | str | None = None):
        lpips = require("lpips", purpose="LPIPS")
        with warnings.catch_warnings():  # the package uses an argument that torchvision has renamed
            warnings.simplefilter("ignore", UserWarning)
            self.metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        fill_backbone(self.metric.net, weights)
        self.device = torch.device(device or "cpu")
        self.metric.eval().to(self.device)

    @torch.inference_mode()
    def distance(self, first: Tensor, second: Tensor) -> float:
        """Of two frames (1, 3, H, W) in 0..1. Errors: InputError for frames below 31x31."""
        if min(first.shape[2:]) < 31:  # nothing would be left of them after AlexNet's strides
            raise InputError(f"LPIPS needs frames of 31x31 or more, got {first.shape[3]}x{first.shape[2]}")
        return float(self.metric(*(x.to(self.device).float() * 2 - 1 for x in (first, second))))

    def __call__(self, result: Tensor, truth: Tensor) -> float:
        """Mean distance over the frames."""
        return mean_distance(self.distance, result, truth)
