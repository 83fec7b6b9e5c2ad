"""Side-by-side pictures of clips, as numpy arrays (H, W, 3) uint8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 8
LABEL_HEIGHT = 28


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames (N, h, w, 3) uint8 enlarged to ``size`` (H, W) by bicubic interpolation."""
    height, width = size
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC)) for f in frames])


def labelled(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a dark strip above it that carries the text."""
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + LABEL_HEIGHT), (24, 24, 24))
    canvas.paste(Image.fromarray(picture), (0, LABEL_HEIGHT))
    ImageDraw.Draw(canvas).text((8, 5), text, fill=(240, 240, 240), font=ImageFont.load_default(16))
    return np.asarray(canvas)


def row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one height beside each other, a dark gap between them."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 24, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=1)


def column(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one width below each other, a dark gap between them."""
    return row([picture.swapaxes(0, 1) for picture in pictures]).swapaxes(0, 1)


def enlarged_crop(picture: np.ndarray, top: float, left: float, part: float = 0.4) -> np.ndarray:
    """A part of the picture (position and size as fractions of the whole), enlarged to the picture's own size.

    Nearest-neighbour, so that the enlargement adds nothing of its own.
    """
    height, width = picture.shape[:2]
    y, x, h, w = (round(f) for f in (top * height, left * width, part * height, part * width))
    crop = Image.fromarray(np.ascontiguousarray(picture[y : y + h, x : x + w]))
    return np.asarray(crop.resize((width, height), Image.Resampling.NEAREST))
