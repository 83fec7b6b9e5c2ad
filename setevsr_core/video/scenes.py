"""Scene cuts, found while frames stream by, with PySceneDetect's adaptive detector."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import require

_ANALYSIS_SIDE = 256  # longer side that the detector sees; PySceneDetect itself shrinks to about this


class SceneCutDetector:
    """Finds hard cuts; a `CutDetector` for `segments.iter_windows`.

    A frame begins a new shot when it differs from the frame before it by `threshold` times the average difference
    around it, and by `min_content` (0..255) at all. Frames closer than `min_shot` to the previous cut are not cuts,
    which keeps a camera flash from making shots of one frame. The detector looks `window` frames ahead; the borders
    of the video are extended by still frames, so that a cut beside them is found too. Errors: MissingPackageError
    without PySceneDetect.
    """

    def __init__(self, threshold: float = 3.0, min_content: float = 15.0, min_shot: int = 5, window: int = 2) -> None:
        detectors = require("scenedetect.detectors", "scenedetect-headless", "finding scene cuts")
        self._detector = detectors.AdaptiveDetector(
            adaptive_threshold=threshold, min_scene_len=0, window_width=window, min_content_val=min_content
        )
        self._clock = _clock_of(self._detector)
        self._window = window
        self._min_shot = min_shot
        self._fed = 0  # frames given to the detector, still ones at the borders included
        self._received = 0
        self._previous_cut: int | None = None
        self._last_image: Any = None
        self.decided = 0

    def push(self, frame: Tensor) -> Sequence[int]:
        """Takes the next frame (H,W,C >= 3) in 0..1; returns the cuts that became certain."""
        image = _to_analysis_image(frame)
        if self._received == 0:
            self._feed(image, self._window)
        self._last_image = image
        self._received += 1
        self.decided = max(0, self._received - self._window)
        return self._feed(image, 1)

    def finish(self) -> Sequence[int]:
        """The video ends here; returns the cuts among its last frames."""
        self.decided = self._received
        return self._feed(self._last_image, self._window) if self._received else ()

    def _feed(self, image: Any, times: int) -> list[int]:
        cuts: list[int] = []
        for _ in range(times):
            found = self._detector.process_frame(self._clock(self._fed), image)
            self._fed += 1
            cuts.extend(self._accept(int(getattr(cut, "frame_num", cut)) - self._window for cut in found))
        return cuts

    def _accept(self, candidates: Iterable[int]) -> Iterable[int]:
        for cut in candidates:
            too_close = self._previous_cut is not None and cut - self._previous_cut < self._min_shot
            if 0 < cut < self._received and not too_close:
                self._previous_cut = cut
                yield cut


def detect_cuts(frames: Iterable[Tensor], **settings: Any) -> tuple[int, ...]:
    """Indices of the frames (H,W,C, 0..1) with which a new shot begins; `settings` as for `SceneCutDetector`."""
    detector = SceneCutDetector(**settings)
    cuts: list[int] = []
    for frame in frames:
        cuts.extend(detector.push(frame))
    return (*cuts, *detector.finish())


def _clock_of(detector: Any) -> Any:
    """frame number -> what this version of PySceneDetect counts with: FrameTimecode since 0.7, a plain int before."""
    if "timecode" not in inspect.signature(detector.process_frame).parameters:
        return int
    timecode = require("scenedetect").FrameTimecode
    # Only differences in frames matter here, so any frame rate does.
    return lambda number: timecode(number, fps=25.0)


def _to_analysis_image(frame: Tensor) -> Any:
    """(H,W,C) in 0..1 -> BGR uint8 array with at most `_ANALYSIS_SIDE` pixels a side (averaged, so noise does not
    look like change).
    """
    pixels = frame[..., :3].detach().float().permute(2, 0, 1)[None]
    longest = max(pixels.shape[-2:])
    if longest > _ANALYSIS_SIDE:
        size = [max(1, round(side * _ANALYSIS_SIDE / longest)) for side in pixels.shape[-2:]]
        pixels = functional.interpolate(pixels, size=size, mode="area")
    image = pixels[0].clamp(0, 1).mul(255).round().to(torch.uint8)
    return image.flip(0).permute(1, 2, 0).contiguous().cpu().numpy()
