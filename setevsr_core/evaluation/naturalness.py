"""Figures that need no truth, from the statistics of natural pictures: NIQE (Mittal et al. 2013) and BRISQUE (2012)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CheckpointError, InputError, require
from .metrics import luma

BLOCK = 96
"""Side of NIQE's blocks in pixels at full size."""


class NIQE:
    """Distance of a clip's statistics from those of pristine photographs; lower is more natural.

    model: an npz with `mu_pris_param` (1, 36), `cov_pris_param` (36, 36) and `gaussian_window` (7, 7), as BasicSR
    publishes the authors' model. Errors: CheckpointError for another file; InputError for frames with fewer than two
    blocks of 96 x 96; MissingPackageError without scipy.
    """

    def __init__(self, model: Path) -> None:
        require("scipy.special", "scipy", "NIQE")
        try:
            with np.load(model) as stored:
                self.mean = stored["mu_pris_param"].reshape(-1)
                self.covariance = stored["cov_pris_param"]
                self.window = torch.from_numpy(stored["gaussian_window"].astype(np.float64))
        except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
            raise CheckpointError(f"'{model}' is no NIQE model ({error}); give niqe_pris_params.npz") from error

    def __call__(self, clip: Tensor) -> float:
        """Mean over the frames (N, H, W, 3)."""
        return float(np.mean([self.frame(frame) for frame in clip]))

    def frame(self, frame: Tensor) -> float:
        """Of one frame (H, W, 3) in 0..1."""
        rows, columns = (side // BLOCK for side in frame.shape[:2])
        if rows * columns < 2:
            raise InputError(f"NIQE needs at least two blocks of {BLOCK}x{BLOCK} pixels, a frame is "
                             f"{frame.shape[1]}x{frame.shape[0]}")
        picture = (luma(frame) * 255).round()[: rows * BLOCK, : columns * BLOCK]
        halves = []
        for side in (BLOCK, BLOCK // 2):
            normal = local_contrast(picture, self.window)
            blocks = normal.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(-1, side, side)
            halves.append(np.stack([_features(block) for block in blocks]))
            picture = F.interpolate(picture[None, None] / 255, scale_factor=0.5, mode="bicubic", antialias=True)[0, 0]
            picture = picture * 255
        features = np.concatenate(halves, axis=1)
        features = features[np.isfinite(features).all(axis=1)]
        if len(features) < 2:
            raise InputError("NIQE cannot be measured on frames without any texture")
        difference = self.mean - features.mean(axis=0)
        both = (self.covariance + np.cov(features, rowvar=False)) / 2
        return float(np.sqrt(difference @ np.linalg.pinv(both) @ difference))


def local_contrast(picture: Tensor, window: Tensor) -> np.ndarray:
    """Mean subtracted, contrast normalised (MSCN) values of a picture (H, W) in 0..255; borders repeat."""
    pad = window.shape[-1] // 2

    def blur(values: Tensor) -> Tensor:
        padded = F.pad(values[None, None], (pad,) * 4, mode="replicate")
        return F.conv2d(padded, window[None, None])[0, 0]

    mean = blur(picture)
    deviation = (blur(picture**2) - mean**2).abs().sqrt()
    return ((picture - mean) / (deviation + 1)).numpy()


def _features(block: np.ndarray) -> np.ndarray:
    """The 18 features of a block: shape and width of its values, and of their products with four neighbours."""
    shape, left, right = _generalised_gaussian(block)
    features = [shape, (left + right) / 2]
    from scipy.special import gamma

    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _generalised_gaussian(block * np.roll(block, shift, axis=(0, 1)))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return np.array(features)


def _generalised_gaussian(values: np.ndarray) -> tuple[float, float, float]:
    """(shape, left scale, right scale) of the asymmetric generalised Gaussian with the moments of `values`."""
    from scipy.special import gamma

    shapes, curve = _moment_curve()
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (np.sqrt(np.mean(side**2)) if side.size else np.nan
                       for side in (values[values < 0], values[values > 0]))
        ratio = left / right
        moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
        target = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = float(shapes[int(np.argmin((curve - target) ** 2))])
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(left * width), float(right * width)


@functools.cache
def _moment_curve() -> tuple[np.ndarray, np.ndarray]:
    """Shapes of the generalised Gaussian and the ratio of moments that belongs to each."""
    from scipy.special import gamma

    shapes = np.arange(0.2, 10.001, 0.001)
    return shapes, gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))


class BRISQUE:
    """Blind quality by the PyPI package `brisque`, which carries its trained model; lower is better, 0 to about 100."""

    def __init__(self) -> None:
        base: Any = require("brisque", purpose="BRISQUE").BRISQUE

        class Numbers(base):
            """Its features come as arrays of one element, which newer numpy no longer takes for numbers."""

            def scale_features(self, features: Any) -> Any:
                return super().scale_features([np.asarray(feature, dtype=np.float64).item() for feature in features])

        self.metric: Any = Numbers()

    def __call__(self, clip: Tensor) -> float:
        """Mean over the frames (N, H, W, 3). Errors: InputError for frames without texture, or of a few pixels."""
        frames = (clip.clamp(0, 1) * 255).round().byte().cpu().numpy()
        if min(frames.shape[1:3]) < 14:  # its window is 7 pixels wide, at half size too
            raise InputError(f"BRISQUE needs frames of 14x14 or more, got {frames.shape[2]}x{frames.shape[1]}")
        with np.errstate(all="ignore"):
            score = float(np.mean([self.metric.score(frame) for frame in frames]))
        if not np.isfinite(score):
            raise InputError("BRISQUE cannot be measured on frames without any texture")
        return score
