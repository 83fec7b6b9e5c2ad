"""Noise that depends on nothing but (seed, frame, step), so that any split of the work gives the same bits.

A counter-based generator (Philox) is used as a table that is looked up, not as a stream that is consumed: the seed is
the key, frame and step are the upper words of the counter, and the lower words count the numbers inside one frame.
Different (seed, frame, step) therefore can never share a number sequence. Seeding `torch.Generator` instead would not
do: its CPU engine keeps only 32 bits of a seed, and a long video would meet equal streams by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..errors import SettingsError

START = -1
"""Pseudo step index of the noise that the start latents are made of."""

_DOMAIN = 0x5E7E_5E7E  # second word of the key: keeps this table apart from other users of Philox with the same seed


def frame_noise(seed: int, frame_index: int, step: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise of one frame at one step: fp32 tensor of `shape` (C, h, w) on the CPU.

    `seed` 0..2^64-1; `frame_index` >= 0 counts in the whole video; `step` >= 0 counts sampler steps from the noisiest,
    `START` (-1) is the noise of the start latents. `shape` is the whole frame's latent grid, never a tile's.
    """
    if not 0 <= seed < 2**64:
        raise SettingsError(f"seed must be between 0 and 2^64 - 1, got {seed}")
    if frame_index < 0 or step < START:
        raise SettingsError(f"noise needs frame_index >= 0 and step >= -1, got {frame_index} and {step}")
    counter = np.array([0, 0, step - START, frame_index], dtype=np.uint64)
    key = np.array([seed, _DOMAIN], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def frames_noise(seed: int, frame_indices: Sequence[int], step: int, shape: Sequence[int]) -> torch.Tensor:
    """`frame_noise` of several frames, stacked: (T, C, h, w) fp32 on the CPU."""
    return torch.stack([frame_noise(seed, index, step, shape) for index in frame_indices])
