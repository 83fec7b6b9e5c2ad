"""Pictures for looking at results: embeddings as colours, labelled side-by-side comparisons with a zoomed crop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..setevsr_core.errors import InputError, SettingsError
from ..setevsr_core.evaluation.pictures import BACKGROUND, GAP, join, label_bar

LABEL_SHARE = 0.055
"""Height of a label bar as a share of the picture's height."""


def principal_colours(embeddings: Tensor, size: tuple[int, int]) -> Tensor:
    """Embeddings (N,C,h,w) as colours (N,H,W,3) 0..1: their three strongest principal components over all frames.

    Regions of like meaning get like colours, the same in every frame. Scaled to `size` (H, W) without smoothing.
    """
    count, channels, height, width = embeddings.shape
    # Frame by frame: the tokens of a long video as one matrix would take the memory of its embeddings once more.
    mean = torch.stack([frame.float().mean((1, 2)).cpu() for frame in embeddings]).mean(0)

    def tokens(frame: Tensor) -> Tensor:
        return frame.float().cpu().flatten(1).T - mean

    gram = torch.zeros(channels, channels)
    for frame in embeddings:
        centred = tokens(frame)
        gram += centred.T @ centred
    _, vectors = torch.linalg.eigh(gram)
    axes = vectors.flip(1)[:, :3]
    # An eigenvector's sign is arbitrary; this choice keeps the colours from one run to the next.
    strongest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(strongest < 0, -1.0, 1.0)
    colours = torch.cat([tokens(frame) @ axes for frame in embeddings])
    low, high = torch.quantile(_thinned(colours), torch.tensor([0.02, 0.98]), dim=0)
    colours = ((colours - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    picture = colours.reshape(count, height, width, 3).movedim(-1, 1)
    return functional.interpolate(picture, size=size, mode="nearest").movedim(1, -1).contiguous()


def _thinned(rows: Tensor, limit: int = 100_000) -> Tensor:
    return rows[:: max(1, len(rows) // limit)]


def compare(
    pictures: Sequence[Tensor],
    labels: Sequence[str],
    *,
    direction: str = "row",
    zoom: float = 0.0,
    centre: tuple[float, float] = (0.5, 0.5),
    require_room: Callable[[tuple[int, ...]], None] = lambda shape: None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Batches (N,H,W,C) side by side -> (N,H',W',3), each with its label, and below it a crop enlarged `zoom` times.

    Smaller pictures are enlarged without smoothing to the largest one, so that real pixels stay visible. A batch of one
    is repeated; other differences in length are an `InputError`. `zoom` 0 leaves the crops out; `centre` is (x, y) of
    the crop as shares of the picture. `direction`: "row" or "column". require_room(shape of the result) may refuse it;
    on_frame(done, total) is called after every frame, and stops by raising.
    """
    if direction not in ("row", "column"):
        raise SettingsError(f"direction is {direction!r}; choose row or column")
    if not all(math.isfinite(value) for value in (zoom, *centre)):
        raise SettingsError(f"zoom is {zoom} and the centre {centre}; they must be finite numbers")
    count = max(len(picture) for picture in pictures)
    for picture, label in zip(pictures, labels, strict=True):
        if len(picture) not in (1, count):
            raise InputError(f"'{label}' has {len(picture)} frames, another has {count}; compare equal batches.")
    size = max((tuple(picture.shape[1:3]) for picture in pictures), key=lambda shape: shape[0] * shape[1])
    bars = [label_bar(label, size[1], max(16, round(size[0] * LABEL_SHARE))) for label in labels]

    def beside(index: int) -> Tensor:
        frames = (picture[index if len(picture) > 1 else 0] for picture in pictures)
        panels = [_panel(frame, bar, size, zoom, centre) for frame, bar in zip(frames, bars, strict=True)]
        return join(panels, axis=1 if direction == "row" else 0)

    shown = beside(0)
    require_room((count, *shown.shape))
    result = torch.empty((count, *shown.shape))
    for index in range(count):  # one at a time: the result of a long video is all that it can take of the memory
        result[index] = beside(index) if index else shown
        on_frame(index + 1, count)
    return result


def _panel(frame: Tensor, bar: Tensor, size: tuple[int, ...], zoom: float, centre: tuple[float, float]) -> Tensor:
    """A frame (H,W,C) at `size`, its label above and the crop below: (H',W,3)."""
    pixels = _flat(frame).movedim(-1, 0)[None]
    pixels = functional.interpolate(pixels, size=(size[0], size[1]), mode="nearest")[0].clamp(0, 1)
    parts = [bar.movedim(-1, 0), pixels]
    if zoom >= 1:
        parts += [torch.full((3, GAP, size[1]), BACKGROUND), _zoomed(pixels, zoom, centre)]
    return torch.cat(parts, dim=1).movedim(0, -1)


def _flat(picture: Tensor) -> Tensor:
    """(H,W,3 or 4) -> (H,W,3), float on the CPU; alpha is laid over the background."""
    picture = picture.float().cpu()
    if picture.shape[-1] == 4:
        alpha = picture[..., 3:]
        return picture[..., :3] * alpha + BACKGROUND * (1 - alpha)
    return picture


def _zoomed(pixels: Tensor, zoom: float, centre: tuple[float, float]) -> Tensor:
    """The crop (3,h,w) around `centre` that fills the picture's width and half its height when enlarged."""
    height, width = pixels.shape[-2:]
    crop_h, crop_w = max(1, round(height / 2 / zoom)), max(1, round(width / zoom))
    top = min(max(0, round(centre[1] * height - crop_h / 2)), height - crop_h)
    left = min(max(0, round(centre[0] * width - crop_w / 2)), width - crop_w)
    crop = pixels[..., top : top + crop_h, left : left + crop_w]
    return functional.interpolate(crop[None], size=(max(1, height // 2), width), mode="nearest")[0]
