"""Figures of merit of a restored clip. Clips are (N, H, W, 3) float in 0..1, result and truth of equal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, require


def check_pair(result: Tensor, truth: Tensor) -> None:
    """Raise InputError unless both clips have the same shape (N, H, W, 3)."""
    if result.shape != truth.shape or result.ndim != 4 or result.shape[-1] != 3:
        raise InputError(f"result {tuple(result.shape)} and truth {tuple(truth.shape)} must both be (N, H, W, 3) "
                         "and equal: compare the same frames at the same size")


def psnr(result: Tensor, truth: Tensor) -> float:
    """Mean over the frames of the RGB PSNR in dB."""
    check_pair(result, truth)
    error = ((result.double() - truth.double()) ** 2).mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())


def ssim(result: Tensor, truth: Tensor) -> float:
    """Mean structural similarity of the luma (Gaussian window of 11, sigma 1.5; Wang et al. 2004)."""
    check_pair(result, truth)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    x, y = ((clip.double() @ weights)[:, None] for clip in (result, truth))
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(z, window)

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def sharpness(clip: Tensor) -> float:
    """Mean absolute luma gradient in 8-bit levels per pixel: tells blur from detail, but also noise from neither."""
    luma = clip.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return float(255 * 0.5 * (luma.diff(dim=1).abs().mean() + luma.diff(dim=2).abs().mean()))


def warping_error(clip: Tensor, truth: Tensor) -> float:
    """E_warp: mean absolute difference (8-bit levels) of each frame from its predecessor moved along the truth's flow.

    Flow and visibility come from the truth (DIS optical flow), so that all methods are measured on the same pixels.
    """
    check_pair(clip, truth)
    cv2: Any = require("cv2", "opencv-python", "the warping error")
    if len(clip) < 2:
        return 0.0
    from ..training.losses import warp

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = (truth.mean(-1) * 255).round().byte().numpy()
    errors = []
    for i in range(len(clip) - 1):
        flow = torch.from_numpy(dis.calc(grey[i + 1], grey[i], None)).permute(2, 0, 1)[None]
        before, after = (x.float().permute(2, 0, 1)[None] for x in (clip[i], clip[i + 1]))
        true_before, true_after = (x.float().permute(2, 0, 1)[None] for x in (truth[i], truth[i + 1]))
        visible = (warp(true_before, flow) - true_after).abs().mean(1, keepdim=True) < 0.05
        difference = (warp(before, flow) - after).abs().mean(1, keepdim=True)
        errors.append(255 * float(difference[visible].mean()) if visible.any() else 0.0)
    return sum(errors) / len(errors)


class LPIPS:
    """LPIPS on AlexNet (Zhang et al. 2018), the perceptual distance that results are judged by; never a loss here.

    weights: safetensors with AlexNet's convolutions (`<torchvision index>.weight|bias`).
    """

    def __init__(self, weights: Path):
        from ..training.losses import load_backbone

        lpips = require("lpips", purpose="LPIPS")
        self.metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        load_backbone(self.metric.net, weights)
        self.metric.eval()

    @torch.inference_mode()
    def __call__(self, result: Tensor, truth: Tensor) -> float:
        """Mean distance over the frames."""
        check_pair(result, truth)
        distances = [float(self.metric(*(x[i : i + 1].float().movedim(-1, 1) * 2 - 1 for x in (result, truth))))
                     for i in range(len(result))]
        return sum(distances) / len(distances)
