"""Means over clips and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over `count` clips with the ends of its confidence interval."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Sequence[float], *, seed: int = 0, confidence: float = 0.95) -> Interval:
    """The mean of one figure per clip and its percentile bootstrap interval: clips are drawn anew, with replacement.

    The same seed and number of clips draw the same clips for every figure and method. One clip has no interval: both
    ends are NaN. Errors: InputError without values.
    """
    if not len(values):
        raise InputError("there is no clip to take a mean over; measure at least one")
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 1:
        return Interval(float(data[0]), float("nan"), float("nan"), 1)
    drawn = np.random.default_rng(seed).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(data[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(data.mean()), float(low), float(high), len(data))
