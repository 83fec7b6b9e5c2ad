"""Second-order degradation of clean clips, with parameters that wander from frame to frame.

The recipe and its numbers are RealBasicVSR's (arXiv 2111.12704, Sec. 3.2), as used to train MGLD-VSR: twice
{blur, resize, noise, JPEG, video codec}, and a last resize to the target size with a sinc filter. Each
parameter is drawn once per clip and then takes a bounded random step per frame, so that degraded video flickers
the way real video does. Three choices where sources differ or are silent:

- the second video codec and the last {resize, sinc} come in random order, as in RealBasicVSR
  (`shuffle_last=False` gives MGLD-VSR's fixed order codec, resize, sinc);
- the output is rounded to 8 bit, as in RealBasicVSR (a real low-quality video is 8 bit);
- bit rates are stated for a 512x512 clean frame and scale with its area, so that a 256 px crop and a whole 720p
  frame are compressed about equally hard.

All steps are streams: a whole clip is degraded in bounded memory, and the walk goes on over its full length. What
happens is drawn here and by NumPy; where blurs, resizes and noise are computed is the `PixelWork`'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError, SettingsError, require
from .codecs import jpeg, to_uint8, video
from .kernels import make_kernel, sinc_kernel
from .pixel_work import INTERPOLATIONS, PixelWork, pixel_work

Range = tuple[float, float]

KERNEL_PROBABILITIES = {
    "iso": 0.405,
    "aniso": 0.225,
    "generalised_iso": 0.108,
    "generalised_aniso": 0.027,
    "plateau_iso": 0.108,
    "plateau_aniso": 0.027,
    "sinc": 0.1,
}


@dataclass(frozen=True)
class OrderConfig:
    """What differs between the two orders. Sigmas of noise are in 0..255 units; `*_step` is the walk per frame."""

    blur_probability: float = 1.0
    blur_sigma: Range = (0.2, 3.0)
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)  # up, down, keep
    resize_scale: Range = (0.15, 1.5)
    resize_step: float = 0.015
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)


def _second_order() -> OrderConfig:
    return OrderConfig(
        blur_probability=0.8,
        blur_sigma=(0.2, 1.5),
        resize_probabilities=(0.3, 0.4, 0.3),
        resize_scale=(0.3, 1.2),
        resize_step=0.03,
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )


@dataclass(frozen=True)
class DegradationConfig:
    """All ranges of the degradation; the defaults are RealBasicVSR's. Angles and cutoffs in radians."""

    first: OrderConfig = field(default_factory=OrderConfig)
    second: OrderConfig = field(default_factory=_second_order)
    kernel_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    blur_sigma_step: float = 0.02
    angle_step: float = 0.31416
    generalised_beta: Range = (0.5, 4.0)
    generalised_beta_step: float = 0.05
    plateau_beta: Range = (1.0, 2.0)
    plateau_beta_step: float = 0.1
    cutoff_step: float = 0.0628
    gaussian_probability: float = 0.5  # otherwise Poisson noise
    gaussian_sigma_step: float = 0.1
    poisson_scale_step: float = 0.005
    grey_noise_probability: float = 0.4
    jpeg_quality: Range = (30.0, 95.0)
    jpeg_quality_step: float = 3.0
    codecs: tuple[str, ...] = ("libx264", "h264", "mpeg4")
    bits_per_frame: Range = (1e4, 1e5)
    bits_area: int = 512 * 512
    last_sinc_probability: float = 0.8
    shuffle_last: bool = True


def target_size(height: int, width: int, scale: int) -> tuple[int, int]:
    """Sides of the degraded frames: rounded to nearest, at least 1. Raises SettingsError for a scale below 1."""
    if scale < 1:
        raise SettingsError(f"scale is {scale}; the degradation needs 1 or more")
    return max(1, int(height / scale + 0.5)), max(1, int(width / scale + 0.5))


class Walk:
    """A value drawn from a range, then moved by at most `step` per frame and kept inside the range."""

    def __init__(self, rng: np.random.Generator, bounds: Range, step: float, start: float | None = None) -> None:
        self._rng, self._bounds, self._step = rng, bounds, step
        self._value = float(rng.uniform(*bounds)) if start is None else start

    def take(self) -> float:
        """The value for this frame; the next call gives the value for the following frame."""
        value = self._value
        moved = value + self._rng.uniform(-self._step, self._step)
        self._value = float(min(max(moved, self._bounds[0]), self._bounds[1]))
        return value


class Degradation:
    """Callable: clean clip -> small, blurred, noisy, compressed clip. The same seed gives the same bytes.

    device: None computes by OpenCV, else torch does there; the parameters are the same, and the pixels nearly.
    """

    def __init__(self, config: DegradationConfig | None = None, device: str | None = None) -> None:
        self.config = config or DegradationConfig()
        self.work = pixel_work(device)

    def __call__(self, frames: np.ndarray, seed: int, scale: int = 4) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB -> (T, H/scale, W/scale, 3) uint8 RGB; sides are rounded, and at least 1."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise InputError(f"degradation needs uint8 frames (T, H, W, 3), got {frames.dtype} {frames.shape}.")
        return np.stack(list(self.stream(frames, seed, scale)))

    def stream(self, frames: Iterable[np.ndarray], seed: int, scale: int = 4) -> Iterator[np.ndarray]:
        """The same for an iterator of (H, W, 3) uint8 frames of one size, in bounded memory."""
        source = iter(frames)
        first = next(source, None)
        if first is None:
            return
        height, width = first.shape[:2]
        target = target_size(height, width, scale)
        yield from self._run(_as_float(first, source), seed, (height, width), target)

    def _run(
        self, frames: Iterator[np.ndarray], seed: int, size: tuple[int, int], target: tuple[int, int]
    ) -> Iterator[np.ndarray]:
        config, work = self.config, self.work
        # Every step owns a generator: what one step draws never depends on how far another has run ahead.
        rngs = iter([np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(16)])
        area = size[0] * size[1] / config.bits_area
        stream = frames
        for index, order in enumerate((config.first, config.second)):
            stream = blurred(map(work.enter, stream), next(rngs), order, config, work)
            stream = resized(stream, next(rngs), order, work)
            stream = noisy(stream, next(rngs), order, config, work)
            stream = jpeg_compressed(map(work.leave, stream), next(rngs), config)
            if index == 0:
                stream = video_compressed(stream, next(rngs), config, area)
        codec_rng, resize_rng, order_rng = next(rngs), next(rngs), next(rngs)
        if config.shuffle_last and order_rng.random() < 0.5:
            stream = video_compressed(at_target(stream, resize_rng, config, target, work), codec_rng, config, area)
        else:
            stream = video_compressed(stream, codec_rng, config, area)
            stream = at_target(stream, resize_rng, config, target, work)
        for frame in stream:
            yield to_uint8(frame)


def _as_float(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first.astype(np.float32)
    for frame in rest:
        yield frame.astype(np.float32)


def _interpolation(rng: np.random.Generator) -> str:
    return INTERPOLATIONS[rng.integers(3)]


def blurred(
    frames: Iterator[Any], rng: np.random.Generator, order: OrderConfig, config: DegradationConfig, work: PixelWork
) -> Iterator[Any]:
    """Filter every frame with one kind of kernel whose width, angle and shape wander."""
    if rng.random() >= order.blur_probability:
        yield from frames
        return
    kind = str(rng.choice(list(KERNEL_PROBABILITIES), p=list(KERNEL_PROBABILITIES.values())))
    size = int(rng.choice(config.kernel_sizes))
    sigma_x = Walk(rng, order.blur_sigma, config.blur_sigma_step)
    sigma_y = Walk(rng, order.blur_sigma, config.blur_sigma_step)
    angle = Walk(rng, (-math.pi, math.pi), config.angle_step)
    if kind.startswith("plateau"):
        beta = Walk(rng, config.plateau_beta, config.plateau_beta_step)
    else:
        beta = Walk(rng, config.generalised_beta, config.generalised_beta_step)
    cutoff = Walk(rng, (math.pi / 3 if size < 13 else math.pi / 5, math.pi), config.cutoff_step)
    for frame in frames:
        kernel = make_kernel(
            kind,
            size,
            sigma_x=sigma_x.take(),
            sigma_y=sigma_y.take(),
            angle=angle.take(),
            beta=beta.take(),
            cutoff=cutoff.take(),
        )
        yield work.filter(frame, kernel)


def resized(frames: Iterator[Any], rng: np.random.Generator, order: OrderConfig, work: PixelWork) -> Iterator[Any]:
    """Resize up, down or not at all to even sides; the factor wanders, so frames may differ in size afterwards."""
    low, high = order.resize_scale
    mode = rng.choice(3, p=order.resize_probabilities)
    if mode == 2:
        yield from frames
        return
    start = rng.uniform(1.0, high) if mode == 0 else rng.uniform(low, 1.0)
    factor = Walk(rng, order.resize_scale, order.resize_step, float(start))
    interpolation = _interpolation(rng)
    for frame in frames:
        value = factor.take()
        height, width = (max(2, 2 * int(side * value / 2)) for side in work.size(frame))
        yield work.resize(frame, (height, width), interpolation)


def noisy(
    frames: Iterator[Any], rng: np.random.Generator, order: OrderConfig, config: DegradationConfig, work: PixelWork
) -> Iterator[Any]:
    """Gaussian or Poisson noise, in colour or grey; clipped to 0..255. The fields are NumPy's, whoever adds them."""
    gaussian = rng.random() < config.gaussian_probability
    grey = rng.random() < config.grey_noise_probability
    if gaussian:
        strength = Walk(rng, order.gaussian_sigma, config.gaussian_sigma_step)
    else:
        strength = Walk(rng, order.poisson_scale, config.poisson_scale_step)
    for frame in frames:
        amount = strength.take()
        noise = gaussian_noise(work.size(frame), rng, grey) if gaussian else poisson_noise(work.leave(frame), rng, grey)
        yield work.clip(work.add(frame, amount * noise))


def gaussian_noise(size: tuple[int, int], rng: np.random.Generator, grey: bool) -> np.ndarray:
    """Unit-variance noise (H, W, 3) of `size`, or (H, W, 1) where `grey`."""
    return rng.standard_normal((*size, 1 if grey else 3), dtype=np.float32)


def poisson_noise(frame: np.ndarray, rng: np.random.Generator, grey: bool) -> np.ndarray:
    """Shot noise in 0..255 units: the photon count per full scale is the number of levels in use, as a power of 2."""
    levels = to_uint8(frame)
    if grey:
        cv2 = require("cv2", "opencv-python-headless", "degrading frames")
        levels = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)[..., None]
    used = int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256)))
    photons = 2.0 ** math.ceil(math.log2(max(used, 2)))
    clean = levels.astype(np.float32) / 255
    return ((rng.poisson(clean * photons) / photons - clean) * 255).astype(np.float32)


def jpeg_compressed(
    frames: Iterator[np.ndarray], rng: np.random.Generator, config: DegradationConfig
) -> Iterator[np.ndarray]:
    """JPEG per frame with a wandering quality."""
    quality = Walk(rng, config.jpeg_quality, config.jpeg_quality_step)
    for frame in frames:
        yield jpeg(frame, round(quality.take()))


def video_compressed(
    frames: Iterator[np.ndarray], rng: np.random.Generator, config: DegradationConfig, area: float
) -> Iterator[np.ndarray]:
    """A random codec at a random rate; `area` is the clean frame's area in units of `bits_area`."""
    codec = str(rng.choice(config.codecs))
    bits = rng.uniform(*config.bits_per_frame) * area
    yield from video(frames, codec, int(bits))


def at_target(
    frames: Iterator[np.ndarray], rng: np.random.Generator, config: DegradationConfig, target: tuple[int, int],
    work: PixelWork,
) -> Iterator[np.ndarray]:
    """The last step: resize to exactly `target` (height, width), then mostly a sinc filter that rings."""
    interpolation = _interpolation(rng)
    filtered = rng.random() < config.last_sinc_probability
    size = int(rng.choice(config.kernel_sizes))
    cutoff = Walk(rng, (math.pi / 3, math.pi), config.cutoff_step)
    for frame in frames:
        small = work.resize(work.enter(frame), target, interpolation)
        yield work.leave(work.clip(work.filter(small, sinc_kernel(size, cutoff.take()))) if filtered else small)
