"""Motion-compensated temporal averaging of the frames that come in, and of those that go out.

Noise, grain and the traces of compression change from frame to frame, what was filmed does not. What a network would
take for detail in one frame, and for other detail in the next, is quieter once each frame is averaged with its
neighbours along the motion, found by dense optical flow (`motion`). A neighbour counts where it still looks alike after
it was moved, so that nothing trails behind what moves or appears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingsError, require
from .motion import dense_flow
from .segments import Span, Window, shots

MAX_RADIUS = 4
LIKENESS, MOST_LIKENESS = 4.0, 0.06
"""A neighbour's weight is 1/e where it differs by `LIKENESS` times the usual difference of the two frames (the median
over the pixels, which follows their noise: clean frames stay as they are), and by `MOST_LIKENESS` at most. A difference
is that of smoothed frames, mean over the channels, of 0..1."""

_MOTION_SIGMA, _LIKENESS_SIGMA = 0.75, 1.0  # of the Gaussians before the search and the comparison, in pixels
_OTHER = 0.03  # usual difference above which a frame shows something else: a cut that nobody found, a flash, a fade
_NO_NOISE = 1e-6  # below every difference that pixels can have
_SEARCHED = 1280  # motion is searched in frames halved or doubled until their longer side is just within this
_PURPOSE = "averaging frames along their motion (steady)"


def steady(frames: Tensor, radius: int, wanted: range | None = None) -> Tensor:
    """Frames (T,H,W,3|4) in 0..1, consecutive and of one shot, averaged along the motion: (len(wanted),H,W,C) fp32.

    radius: frames before and after that each takes part in, 0 to `MAX_RADIUS`; at the ends fewer are there. wanted:
    the places in `frames` to compute, all of them by default; what a frame becomes depends on the frames within its
    radius alone. Alpha stays as it is. Errors: SettingsError, MissingPackageError without OpenCV.
    """
    wanted = range(len(frames)) if wanted is None else wanted
    result = frames[wanted.start : wanted.stop].float()
    if not radius:
        return result
    result = result.clone()
    for frame, pixels in zip(result, _averages(frames, radius, wanted), strict=True):
        frame[..., :3] = pixels
    return result


def steady_video(
    frames: Tensor, radius: int, cuts: Iterable[int] = (), on_frame: Callable[[int, int], None] | None = None
) -> Tensor:
    """A whole video (N,H,W,3|4), each shot by itself; `cuts` are the first frames of shots. `on_frame(done, total)`
    follows every frame and may stop the work by raising. Errors: as `steady`.
    """
    if not radius:
        return frames
    result = frames.to(torch.float32, copy=True)
    for shot in shots(len(frames), cuts):
        averages = _averages(frames[shot.start : shot.stop], radius, range(len(shot)))
        for index, pixels in zip(shot.indices, averages, strict=True):
            result[index, ..., :3] = pixels
            if on_frame is not None:
                on_frame(index + 1, len(frames))
    return result


def steady_spans(windows: Iterable[Window], radius: int) -> Iterator[tuple[Span, Tensor]]:
    """The averaged frames of every span of `segments.iter_windows(context=radius)`; those that two share, only once."""
    known: dict[int, Tensor] = {}
    for span, window, frames in windows:
        if not radius:
            yield span, frames
            continue
        known = {index: frame for index, frame in known.items() if index >= span.start}
        new = range(max([span.start, *(index + 1 for index in known)]), span.stop)
        wanted = range(new.start - window.start, new.stop - window.start)
        known.update(zip(new, steady(frames, radius, wanted), strict=True))
        yield span, torch.stack([known[index] for index in span.indices])


def _averages(frames: Tensor, radius: int, wanted: range) -> Iterator[Tensor]:
    """The averaged pixels (H,W,3) of the wanted places, one by one; holds the views of the frames around one place."""
    if not 0 <= radius <= MAX_RADIUS:
        raise SettingsError(f"steady must be a whole number from 0 to {MAX_RADIUS}, got {radius!r}")
    views: dict[int, _View] = {}
    for place in wanted:
        near = range(max(place - radius, 0), min(place + radius + 1, len(frames)))
        if len(near) == 1:  # nothing to average with: the very pixels, even outside 0..1
            yield frames[place, ..., :3].float()
            continue
        views = {other: views.get(other) or _View(frames[other]) for other in near}
        yield torch.from_numpy(_average(views[place], [views[other] for other in near if other != place]))


class _View:
    """A frame as the search for motion and the comparison see it."""

    def __init__(self, frame: Tensor) -> None:
        cv2 = _opencv()
        self.pixels = frame[..., :3].detach().float().clamp(0, 1).cpu().contiguous().numpy()
        height, width = self.pixels.shape[:2]
        self.factor = _search_factor(max(height, width))
        grey = _mean_of_channels(self.pixels)
        if self.factor != 1:
            size = (max(1, round(width * self.factor)), max(1, round(height * self.factor)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC if self.factor > 1 else cv2.INTER_AREA)
        grey = cv2.GaussianBlur(grey, (0, 0), _MOTION_SIGMA * max(self.factor, 1))
        self.grey = np.rint(grey.clip(0, 1) * 255).astype(np.uint8)
        self.smooth = cv2.GaussianBlur(self.pixels, (0, 0), _LIKENESS_SIGMA)

    def motion_to(self, other: _View) -> tuple[Any, Any]:
        """For every pixel of this frame the x and y at which `other` shows the same, as `cv2.remap` takes them."""
        cv2 = _opencv()
        height, width = self.pixels.shape[:2]
        flow = dense_flow(self.grey, other.grey, "FAST", _PURPOSE)
        if flow.shape[:2] != (height, width):
            shrinks = self.factor > 1
            flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            flow /= self.factor
        x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        return flow[..., 0] + x, flow[..., 1] + y[:, None]


def _average(view: _View, neighbours: list[_View]) -> Any:
    """One frame's pixels (H,W,3) averaged with its neighbours', each moved onto it and weighted by its likeness."""
    cv2 = _opencv()
    total, weights = view.pixels.copy(), 1.0
    for neighbour in neighbours:
        x, y = view.motion_to(neighbour)
        smooth = cv2.remap(neighbour.smooth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        difference = _mean_of_channels(cv2.absdiff(smooth, view.smooth))
        usual = float(np.median(difference[::2, ::2]))
        if usual > _OTHER:
            continue
        likeness = min(LIKENESS * usual, MOST_LIKENESS)
        weight = np.exp(-((difference / max(likeness, _NO_NOISE)) ** 2))[..., None]
        moved = cv2.remap(neighbour.pixels, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        total += weight * moved
        weights = weights + weight
    return (total / weights).clip(0, 1)


def _search_factor(side: int) -> float:
    """The power of two, 2 at most, by which frames of this longer side are enlarged for the search."""
    factor = 2.0
    while side * factor > _SEARCHED and factor > 1 / 16:
        factor /= 2
    return factor


def _mean_of_channels(pixels: Any) -> Any:
    """(H,W,3) -> (H,W)."""
    return _opencv().transform(pixels, np.full((1, 3), 1 / 3))


def _opencv() -> Any:
    return require("cv2", "opencv-python-headless", _PURPOSE)
