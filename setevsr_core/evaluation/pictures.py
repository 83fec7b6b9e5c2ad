"""Pictures for judging by eye: temporal profiles and enlarged crops of several methods, labelled. (H, W, 3) in 0..1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, SettingsError

BACKGROUND = 0.09
GAP = 4
LABEL = 20
"""Height of a label in pixels."""


def profile(clip: Tensor, direction: str = "row", position: float = 0.5) -> Tensor:
    """One line of pixels over time: (N, H, W, 3) -> (N, W, 3) for a row, time going down, or (H, N, 3) for a column.

    position: 0 (upper or left edge) to 1. Steady motion gives clean slanted lines; flicker gives ragged ones.
    """
    if direction not in ("row", "column"):
        raise SettingsError(f"direction is {direction!r}; choose row or column")
    if not 0 <= position <= 1:
        raise SettingsError(f"position is {position}; it must be 0 to 1")
    side = clip.shape[1] if direction == "row" else clip.shape[2]
    place = min(int(position * side), side - 1)
    line = clip[:, place] if direction == "row" else clip[:, :, place].transpose(0, 1)
    return line[..., :3].float().cpu().clamp(0, 1)


def temporal_profile(profiles: Mapping[str, Tensor], direction: str = "row", thickness: int = 0) -> Tensor:
    """Labelled profiles of several methods: rows under one another, columns beside one another.

    thickness: pixels a frame takes; 0 chooses it so that time takes about a quarter of the line's length.
    Errors: InputError for profiles of different sizes, SettingsError for a negative thickness.
    """
    if thickness < 0:
        raise SettingsError(f"thickness is {thickness}; it must be 0 or more")
    shapes = {tuple(line.shape) for line in profiles.values()}
    if len(shapes) != 1:
        raise InputError("temporal profiles need clips of the same number of frames and the same size, got "
                         + ", ".join(f"{name} {tuple(line.shape[:2])}" for name, line in profiles.items()))
    time_axis = 0 if direction == "row" else 1
    shape = shapes.pop()
    thickness = thickness or max(1, round(shape[1 - time_axis] / 4 / shape[time_axis]))
    panels = [_labelled(name, line.repeat_interleave(thickness, time_axis)) for name, line in profiles.items()]
    return join(panels, axis=time_axis)


def crop_comparison(crops: Mapping[str, Tensor], zoom: int = 4, columns: int = 4) -> Tensor:
    """The same crop (h, w, 3) of all methods, enlarged without smoothing and labelled, `columns` in a row."""
    panels = [_labelled(name, crop.float().cpu().repeat_interleave(zoom, 0).repeat_interleave(zoom, 1))
              for name, crop in crops.items()]
    return join([join(panels[i : i + columns], axis=1) for i in range(0, len(panels), columns)], axis=0)


def lively_window(frame: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the window of at most `size` with the most detail in a frame (H, W, 3)."""
    height, width = (min(wanted, side) for wanted, side in zip(size, frame.shape[:2], strict=True))
    grey = frame.float().mean(-1)
    energy = F.pad(grey.diff(dim=0).abs(), (0, 0, 0, 1)) + F.pad(grey.diff(dim=1).abs(), (0, 1))
    sums = F.pad(energy.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = divmod(int(windows.argmax()), windows.shape[1])
    return top, left, height, width


def join(panels: Sequence[Tensor], axis: int) -> Tensor:
    """Pictures along an axis with a gap; the smaller ones are filled up with the background."""
    across = 1 - axis
    longest = max(panel.shape[across] for panel in panels)
    parts: list[Tensor] = []
    for panel in panels:
        missing = longest - panel.shape[across]
        padded = F.pad(panel, (0, 0, 0, missing) if across == 1 else (0, 0, 0, 0, 0, missing), value=BACKGROUND)
        if parts:
            shape = [GAP, longest, 3] if axis == 0 else [longest, GAP, 3]
            parts.append(torch.full(shape, BACKGROUND))
        parts.append(padded)
    return torch.cat(parts, dim=axis)


def label_bar(text: str, width: int, height: int = LABEL) -> Tensor:
    """(height, width, 3): light text on the background, made smaller where it would not fit."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    shade = round(BACKGROUND * 255)
    image = Image.new("RGB", (width, height), (shade, shade, shade))
    draw = ImageDraw.Draw(image)
    margin, size = round(height * 0.35), max(9, round(height * 0.62))
    while size > 6 and draw.textlength(text, font=ImageFont.load_default(size=size)) > width - margin:
        size -= 1
    font = ImageFont.load_default(size=size)
    draw.text((margin, height // 2), text, fill=(235, 235, 235), font=font, anchor="lm")
    return torch.from_numpy(np.asarray(image).copy()).float() / 255


def _labelled(text: str, picture: Tensor) -> Tensor:
    return torch.cat([label_bar(text, picture.shape[1]), picture.clamp(0, 1)], dim=0)


def save_png(path: Path, picture: Tensor) -> None:
    """(H, W, 3) in 0..1 as an 8-bit PNG; the folder is made if need be."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clamp(0, 1) * 255).round().byte().cpu().contiguous().numpy()).save(path)


def load_png(path: Path) -> Tensor:
    """The inverse of `save_png`."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float() / 255
