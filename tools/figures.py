"""Figures of a clip against its original, for the demo and the tests: setevsr_core's metrics on uint8 clips."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from setevsr_core.errors import SeTeVSRError
from setevsr_core.evaluation.metrics import LPIPS, psnr, sharpness, ssim

LPIPS_WEIGHTS_VARIABLE = "SETEVSR_LPIPS_WEIGHTS"


def as_tensor(frames: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> the same as float32 in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).float() / 255


def lpips_metric() -> tuple[LPIPS | None, str]:
    """LPIPS (AlexNet), or None and the reason why it cannot be measured here.

    The environment variable ``SETEVSR_LPIPS_WEIGHTS`` names a safetensors file with torchvision's AlexNet convolutions
    (``0.weight`` ... ``10.bias``); the linear layers come with the package ``lpips``.
    """
    named = os.environ.get(LPIPS_WEIGHTS_VARIABLE)
    if not named:
        return None, f"set {LPIPS_WEIGHTS_VARIABLE} to the AlexNet weights to measure it"
    try:
        return LPIPS(Path(named)), ""
    except (OSError, SeTeVSRError) as error:
        return None, str(error)


def measure(frames: np.ndarray, original: np.ndarray | None, lpips: LPIPS | None = None) -> dict[str, float]:
    """Sharpness, and with an original of the same shape PSNR, SSIM and, where there is a metric, LPIPS."""
    clip = as_tensor(frames)
    entry = {"sharpness": sharpness(clip)}
    if original is not None:
        truth = as_tensor(original)
        entry["psnr_db"] = psnr(clip, truth)
        entry["ssim"] = ssim(clip, truth)
        if lpips is not None:
            entry["lpips"] = lpips(clip, truth)
    return entry
