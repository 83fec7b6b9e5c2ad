"""Where the degradation's blurs, resizes and noise are computed: by OpenCV on the CPU, or by torch on a device.

Both do the same arithmetic in fp32, so that a seed gives the same clip but for rounding (a hundredth of an 8-bit level
in one step; tests allow five, and half a level on average after compression). Frames between `enter` and `leave` are
in the worker's own form, and of any size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from ..errors import require

INTERPOLATIONS = ("linear", "area", "cubic")


class PixelWork(Protocol):
    """Values are 0..255 and may overshoot until `clip`."""

    def enter(self, frame: np.ndarray) -> Any:
        """From a float32 array (H, W, 3)."""

    def leave(self, frame: Any) -> np.ndarray:
        """To a float32 array (H, W, 3)."""
        ...

    def size(self, frame: Any) -> tuple[int, int]:
        """Height and width."""
        ...

    def filter(self, frame: Any, kernel: np.ndarray) -> Any:
        """Correlation with an odd square kernel; borders are mirrored without repeating the edge."""

    def resize(self, frame: Any, size: tuple[int, int], interpolation: str) -> Any:
        """To (height, width), by one of `INTERPOLATIONS`."""

    def add(self, frame: Any, noise: np.ndarray) -> Any:
        """Plus float32 noise (H, W, 3) or, the same for all colours, (H, W, 1)."""

    def clip(self, frame: Any) -> Any:
        """To 0..255."""


def pixel_work(device: str | None) -> PixelWork:
    """OpenCV's for None, else torch's on `device` ("cuda", ...). Errors: SettingsError for one that is not there."""
    return OpenCVWork() if device is None else TorchWork(device)


class OpenCVWork:
    """Frames are float32 arrays (H, W, 3)."""

    def __init__(self) -> None:
        self._cv2 = require("cv2", "opencv-python-headless", "degrading frames")
        self._codes = {name: getattr(self._cv2, f"INTER_{name.upper()}") for name in INTERPOLATIONS}

    def enter(self, frame: np.ndarray) -> np.ndarray:
        return frame

    def leave(self, frame: np.ndarray) -> np.ndarray:
        return frame

    def size(self, frame: np.ndarray) -> tuple[int, int]:
        return frame.shape[0], frame.shape[1]

    def filter(self, frame: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return self._cv2.filter2D(frame, -1, kernel, borderType=self._cv2.BORDER_REFLECT_101)

    def resize(self, frame: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
        return self._cv2.resize(frame, (size[1], size[0]), interpolation=self._codes[interpolation])

    def add(self, frame: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return frame + noise

    def clip(self, frame: np.ndarray) -> np.ndarray:
        return np.clip(frame, 0, 255)


class TorchWork:
    """Frames are float32 tensors (3, 1, H, W): the colours are a batch of grey pictures."""

    def __init__(self, device: str) -> None:
        from ..devices import usable_device

        self.device = usable_device(device)

    def enter(self, frame: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(frame)).to(self.device).movedim(-1, 0)[:, None]

    def leave(self, frame: Any) -> np.ndarray:
        return np.ascontiguousarray(frame[:, 0].movedim(0, -1).cpu().numpy())

    def size(self, frame: Any) -> tuple[int, int]:
        return frame.shape[2], frame.shape[3]

    def filter(self, frame: Any, kernel: np.ndarray) -> Any:
        import torch

        rows, columns = (self._mirrored(side, len(kernel) // 2) for side in self.size(frame))
        weight = torch.from_numpy(kernel).to(self.device)[None, None]
        # TF32 would cost three digits for nothing: these convolutions are not what takes the time.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.nn.functional.conv2d(frame[:, :, rows][..., columns], weight)

    def _mirrored(self, side: int, margin: int) -> Any:
        """Indices of a side with its margins; NumPy mirrors again where the margin is wider than the side."""
        import torch

        return torch.from_numpy(np.pad(np.arange(side), margin, mode="reflect")).to(self.device)

    def resize(self, frame: Any, size: tuple[int, int], interpolation: str) -> Any:
        import torch

        if interpolation == "area":
            rows, columns = (torch.from_numpy(area_weights(*sides)).to(self.device)
                             for sides in zip(self.size(frame), size, strict=True))
            return rows @ frame @ columns.T
        mode = {"linear": "bilinear", "cubic": "bicubic"}[interpolation]
        return torch.nn.functional.interpolate(frame, size, mode=mode, align_corners=False)

    def add(self, frame: Any, noise: np.ndarray) -> Any:
        return frame + self.enter(noise)

    def clip(self, frame: Any) -> Any:
        return frame.clamp(0, 255)


@lru_cache(maxsize=8)  # those of a clip of one factor; one matrix takes up to 60 MB at 4K
def area_weights(source: int, target: int) -> np.ndarray:
    """(target, source) matrix of the mean over what each target pixel covers, as OpenCV's INTER_AREA takes it."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(covered, 0, None) * (target / source)).astype(np.float32)
