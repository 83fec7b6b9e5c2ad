"""Are result and truth the same pixels? Figures of clips that are shifted against each other mean nothing.

The shift is the peak of the cross-correlation, taken from the phases of the cross spectrum where both clips have
structure: frequencies count by their strength (plain phase correlation counts them alike and follows the noise of a
degraded clip) and only below the low-resolution grid's own limit, above which a method invents. How far the estimate
can be trusted is seen from the four quarters of the picture, estimated one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import InputError

MAX_SHIFT = 0.25
"""Pixels by which result and truth may be off: half of the smallest mistake (half a pixel) that resizing makes."""

MAX_OWN = 0.5
"""Largest shift of the low-resolution frames themselves (strong noise and blur) that is forgiven to a method."""

CONFIDENCE = 2.0
"""Standard errors by which a shift must exceed the limit before a result is refused."""

_LUMA = np.array([0.299, 0.587, 0.114])
_FINE = 50  # steps a pixel


@dataclass(frozen=True)
class Shift:
    """By how many pixels the result lies right of and below the truth, and the standard error of that distance."""

    x: float
    y: float
    error: float

    @property
    def distance(self) -> float:
        return float(np.hypot(self.x, self.y))


def estimate_shift(result: Tensor, truth: Tensor, *, scale: float = 4.0, frames: int = 8) -> Shift:
    """The shift between two clips (N, H, W, 3) of equal shape, from at most `frames` frames spread over the clip.

    scale: the enlargement; frequencies above 0.5 / scale cycles a pixel hardly count. Pictures without structure have
    an infinite error.
    """
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(frames, len(truth))).round().astype(int))
    a, b = (np.stack([clip[int(i)].detach().cpu().double().numpy() @ _LUMA for i in chosen]) for clip in
            (result, truth))
    whole = _peak(a, b, scale)
    if whole is None:
        return Shift(0.0, 0.0, float("inf"))
    middle = a.shape[1] // 2, a.shape[2] // 2
    quarters = [(slice(None), rows, columns) for rows in (slice(None, middle[0]), slice(middle[0], None))
                for columns in (slice(None, middle[1]), slice(middle[1], None))]
    peaks = np.array([peak for part in quarters if (peak := _peak(a[part], b[part], scale)) is not None])
    # Half of the spread of four estimates is the standard error of their mean. The median resists one flat quarter.
    spread = 1.4826 * np.median(np.abs(peaks - np.median(peaks, axis=0)), axis=0) if len(peaks) > 1 else [np.inf]
    return Shift(*whole, float(1.2533 * np.hypot.reduce(spread) / max(1, len(peaks)) ** 0.5))


def _peak(a: np.ndarray, b: np.ndarray, scale: float) -> tuple[float, float] | None:
    """(x, y) of the highest point of the low-passed cross-correlation of luma clips (n, h, w); None for flat ones."""
    height, width = a.shape[1:]
    if min(height, width) < 4:
        return None
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    fy, fx = np.fft.fftfreq(height), np.fft.fftfreq(width)
    half_limit = 0.25 / max(scale, 1.0)
    cross = np.zeros((height, width), dtype=np.complex128)
    for pair in zip(a, b, strict=True):
        centred = [(frame - (frame * window).sum() / window.sum()) * window for frame in pair]
        cross += np.fft.fft2(centred[0]) * np.fft.fft2(centred[1]).conj()
    cross *= np.exp(-(fy[:, None] ** 2 + fx[None] ** 2) / (2 * half_limit**2))
    cross[0, 0] = 0
    if np.abs(cross).sum() / cross.size**2 < 1e-9:
        return None
    coarse = np.fft.ifft2(cross).real
    peak = np.unravel_index(int(coarse.argmax()), coarse.shape)
    y, x = (int(p) if p <= side // 2 else int(p) - side for p, side in zip(peak, coarse.shape, strict=True))
    # Around it every 1 / _FINE pixel, by the inverse transform as two matrix products.
    steps = np.arange(-_FINE, _FINE + 1) / _FINE
    fine = np.exp(2j * np.pi * np.outer(y + steps, fy)) @ cross @ np.exp(2j * np.pi * np.outer(fx, x + steps))
    row, column = np.unravel_index(int(fine.real.argmax()), fine.shape)
    return float(x + steps[column]), float(y + steps[row])


def check_alignment(
    result: Tensor,
    truth: Tensor,
    name: str,
    *,
    scale: float = 4.0,
    max_shift: float = MAX_SHIFT,
    own: Shift | None = None,
) -> Shift:
    """Raise InputError naming `name` unless both clips have the same frames, size and place; returns the shift found.

    A shift that is not certain (too little structure, or a result too far from the truth) passes. own: the shift that
    the enlarged low-resolution frames have already; up to half a pixel of it no method has to answer for.
    """
    if len(result) != len(truth):
        raise InputError(f"{name}: the result has {len(result)} frames and the truth {len(truth)}; they must be the "
                         "same frames, from the first one on")
    if result.shape != truth.shape:
        raise InputError(f"{name}: the result is {result.shape[2]}x{result.shape[1]} and the truth {truth.shape[2]}x"
                         f"{truth.shape[1]}; give results at the truth's size")
    shift = estimate_shift(result, truth, scale=scale)
    x, y = (own.x, own.y) if own is not None and own.distance <= MAX_OWN else (0.0, 0.0)
    if np.hypot(shift.x - x, shift.y - y) - CONFIDENCE * shift.error > max_shift:
        raise InputError(
            f"{name}: the result is shifted by {shift.x:+.2f} px to the right and {shift.y:+.2f} px down against the "
            f"truth (up to {max_shift:g} px are accepted); figures of shifted pictures would be wrong, align them first"
        )
    return shift
