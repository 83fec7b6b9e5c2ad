"""Colour correction: the restored frame takes its large-scale colours from the enlarged input.

Diffusion and autoencoders shift brightness and hue a little; a viewer sees that as flicker between segments. All
statistics are those of the whole frame (per tile they would differ from tile to tile), and frames are handled one by
one to bound memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, SettingsError

METHODS = ("wavelet", "adain", "lab", "none")
WAVELET_LEVELS = 5
_VARIANCE_FLOOR = 1e-5  # keeps a constant frame finite, as in adaptive instance normalisation


def match_colour(result: Tensor, reference: Tensor, method: str = "wavelet") -> Tensor:
    """result (N,3,H,W) in 0..1, recoloured after reference (same shape), clamped to 0..1.

    wavelet: detail of the result, everything coarser than about 32 pixels from the reference (follows local colour;
    the default).
    adain:   mean and deviation of each RGB channel over the frame from the reference (one global change of colour).
    lab:     the same in CIELAB, where lightness and colour are apart (no hue shift from brightness).
    none:    clamped only.
    Arithmetic is float32, the result's type comes back. Errors: InputError for unequal shapes, SettingsError for an
    unknown method.
    """
    if method not in METHODS:
        raise SettingsError(f"colour is {method!r}; choose one of {', '.join(METHODS)}")
    if method == "none":
        return result.clamp(0, 1)
    if result.shape != reference.shape or result.ndim != 4 or result.shape[1] != 3:
        raise InputError(
            f"colour matching needs result and reference of one shape (N,3,H,W), "
            f"not {tuple(result.shape)} and {tuple(reference.shape)}"
        )
    correct = {"wavelet": _match_wavelet, "adain": _match_statistics, "lab": _match_lab}[method]
    matched = torch.empty_like(result)
    for index in range(len(result)):
        frame, target = result[index].float(), reference[index].to(result.device, torch.float32)
        matched[index] = correct(frame, target).clamp_(0, 1)
    return matched


def low_band(image: Tensor) -> Tensor:
    """(C,H,W) -> what remains after `WAVELET_LEVELS` of the a-trous wavelet: 3x3 binomial blurs of dilation 1, 2, 4,
    ..., edges replicated.
    """
    for level in range(WAVELET_LEVELS):
        image = _binomial_blur(image, 2**level)
    return image


def _binomial_blur(image: Tensor, dilation: int) -> Tensor:
    """The 3x3 kernel [1 2 1]' [1 2 1] / 16 with gaps, as two passes."""
    height, width = image.shape[-2:]
    padded = functional.pad(image[None], (dilation, dilation, dilation, dilation), mode="replicate")[0]
    rows = padded[..., :width] + 2 * padded[..., dilation : dilation + width] + padded[..., 2 * dilation :]
    blurred = rows[..., :height, :] + 2 * rows[..., dilation : dilation + height, :] + rows[..., 2 * dilation :, :]
    return blurred / 16


def _match_wavelet(frame: Tensor, target: Tensor) -> Tensor:
    # High bands of the frame + low band of the target = frame - low(frame) + low(target).
    # The blur is linear, so one blur of the difference is enough.
    return frame + low_band(target - frame)


def _match_statistics(frame: Tensor, target: Tensor) -> Tensor:
    mean, deviation = _statistics(frame)
    target_mean, target_deviation = _statistics(target)
    return (frame - mean) * (target_deviation / deviation) + target_mean


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C,1,1) over the frame; float64 sums where the device has them, so that a 4K frame loses
    nothing.
    """
    flat = image.flatten(1).to(torch.float32 if image.device.type == "mps" else torch.float64)
    mean = flat.mean(1)
    variance = (flat - mean[:, None]).square().mean(1)
    shape = (-1, 1, 1)
    return mean.float().view(shape), (variance + _VARIANCE_FLOOR).sqrt().float().view(shape)


def _match_lab(frame: Tensor, target: Tensor) -> Tensor:
    return lab_to_rgb(_match_statistics(rgb_to_lab(frame), rgb_to_lab(target)))


# CIELAB (CIE 15) over sRGB (IEC 61966-2-1), white point D65.
_RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = tuple(sum(row) for row in _RGB_TO_XYZ)
_EPSILON = 216 / 24389
_KAPPA = 24389 / 27


def rgb_to_lab(image: Tensor) -> Tensor:
    """sRGB (3,H,W) in 0..1 -> L 0..100, a, b about -128..127."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = torch.tensordot(image.new_tensor(_RGB_TO_XYZ), linear, dims=1) / image.new_tensor(_WHITE).view(3, 1, 1)
    f = torch.where(xyz > _EPSILON, xyz.clamp(min=_EPSILON) ** (1 / 3), (_KAPPA * xyz + 16) / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours outside sRGB leave 0..1."""
    fy = (lab[0] + 16) / 116
    f = torch.stack([lab[1] / 500 + fy, fy, fy - lab[2] / 200])
    xyz = torch.where(f**3 > _EPSILON, f**3, (116 * f - 16) / _KAPPA) * lab.new_tensor(_WHITE).view(3, 1, 1)
    linear = torch.tensordot(torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)).to(lab), xyz, dims=1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)
