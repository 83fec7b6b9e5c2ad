"""Progress bars, latent previews and Cancel, as plain callables for the core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import compat

RESOLUTION = 1000
"""Steps of a whole progress bar; the core reports fractions."""

ENLARGE = 4
"""Preview pixels per latent pixel, so that a small video does not give a postage stamp."""


class NodeProgress:
    """One bar for one node: `report(done 0..1, message, preview (h,w,3) or None)`, as the core calls it.

    Every report also stops the run if the user pressed Cancel.
    """

    def __init__(self) -> None:
        import comfy.utils

        self._bar = comfy.utils.ProgressBar(RESOLUTION)
        self._shown = 0

    def report(self, done: float, message: str = "", preview: Tensor | None = None) -> None:
        compat.check_interrupt()
        # A bar that runs backwards (a new try after the memory was full) confuses; it waits instead.
        self._shown = max(self._shown, min(RESOLUTION, round(done * RESOLUTION)))
        self._bar.update_absolute(self._shown, RESOLUTION, preview_picture(preview))

    def count(self, done: int, total: int) -> None:
        """`done` of `total` equal pieces of work are finished."""
        self.report(done / max(total, 1))


def preview_picture(preview: Tensor | None) -> Any:
    """What ComfyUI's progress bar takes as a picture: (format, PIL image, longest side), or None without previews."""
    if preview is None or not compat.previews_enabled():
        return None
    from PIL import Image

    array = preview.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    image = Image.fromarray(array)
    image = image.resize((image.width * ENLARGE, image.height * ENLARGE), Image.Resampling.BICUBIC)
    return ("JPEG", image, compat.preview_size())
