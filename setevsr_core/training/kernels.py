"""Blur kernels of the second-order degradation model (Real-ESRGAN, arXiv 2107.10833, Sec. 3; values of RealBasicVSR).

Every function returns a float32 array (size, size) that sums to 1. `size` is odd. Angles are radians,
sigmas are pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_BESSEL_POINTS = 192
"""Trapezoid points for J1. The integrand is periodic, so the error is below 1e-12 for arguments up to about 100."""


def bessel_j1(x: np.ndarray) -> np.ndarray:
    """Bessel function J1 by its integral `1/pi * int_0^pi cos(s - x sin s) ds`; |x| up to about 100."""
    steps = (np.arange(_BESSEL_POINTS) + 0.5) * (np.pi / _BESSEL_POINTS)
    x = np.asarray(x, dtype=np.float64)
    return np.cos(steps - x[..., None] * np.sin(steps)).mean(axis=-1)


@lru_cache(maxsize=64)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (x, y), each (size, size), zero in the middle."""
    axis = np.arange(size, dtype=np.float64) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _squared_distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """Mahalanobis distance squared of every pixel to the centre of a rotated Gaussian."""
    x, y = _grid(size)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalise(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0) -> np.ndarray:
    """Generalised Gaussian `exp(-d^2beta / 2)`; beta 1 is the plain Gaussian, beta > 1 flatter on top."""
    return _normalise(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0) -> np.ndarray:
    """Plateau-shaped kernel `1 / (1 + d^2beta)`: a flat top with heavy tails."""
    return _normalise(1.0 / (1.0 + _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Ideal circular low-pass (2-D sinc, also called jinc) with `cutoff` in (0, pi]: it makes ringing."""
    x, y = _grid(size)
    squared, inverse = np.unique(x * x + y * y, return_inverse=True)
    radius = np.sqrt(squared)
    values = np.full_like(radius, cutoff**2 / (4 * np.pi))  # the limit at the centre
    outer = radius > 0
    values[outer] = cutoff * bessel_j1(cutoff * radius[outer]) / (2 * np.pi * radius[outer])
    return _normalise(values[inverse.reshape(x.shape)])


def make_kernel(
    kind: str, size: int, *, sigma_x: float, sigma_y: float, angle: float, beta: float, cutoff: float
) -> np.ndarray:
    """The kernel named `kind`: iso, aniso, generalised_iso, generalised_aniso, plateau_iso, plateau_aniso or sinc.

    The `iso` kinds use `sigma_x` alone. Raises KeyError for another name.
    """
    if kind == "sinc":
        return sinc_kernel(size, cutoff)
    shape = {
        "iso": gaussian_kernel,
        "aniso": gaussian_kernel,
        "generalised_iso": gaussian_kernel,
        "generalised_aniso": gaussian_kernel,
        "plateau_iso": plateau_kernel,
        "plateau_aniso": plateau_kernel,
    }[kind]
    exponent = 1.0 if kind in ("iso", "aniso") else beta
    if kind == "iso" or kind.endswith("_iso"):
        return shape(size, sigma_x, sigma_x, 0.0, exponent)
    return shape(size, sigma_x, sigma_y, angle, exponent)
