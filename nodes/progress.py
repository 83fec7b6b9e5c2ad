"""Progress bars, latent previews and Cancel, as plain callables for the core."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import compat

RESOLUTION = 1000
"""Steps of a whole progress bar; the core reports fractions."""

ENLARGE = 4
"""Preview pixels per latent pixel at most, so that a small video does not give a postage stamp."""

log = logging.getLogger(__name__)


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
    larger = max(1, min(ENLARGE, compat.preview_size() // max(image.size)))
    image = image.resize((image.width * larger, image.height * larger), Image.Resampling.BICUBIC)
    return ("JPEG", image, compat.preview_size())


def latent_pictures(denoiser: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """preview(latents (N,C,h,w) scaled, matrix) -> pictures (N,h',w',3) in 0..1, for latents that a denoiser makes.

    A TAESD decoder from models/vae_approx where there is one and the latents are Stable Diffusion's; otherwise the
    linear map that was fitted to the video.
    """
    from ..setevsr_core.stages import preview

    path = compat.tiny_decoder_file() if compat.previews_enabled() and makes_sd_latents(denoiser.module) else None
    decoder = tiny_decoder(path) if path is not None else None
    if decoder is None:
        return preview
    decoder.to(denoiser.device)
    return lambda latents, matrix: decoder(latents)


def makes_sd_latents(denoiser: Any) -> bool:
    """Whether a denoiser works in the latent space of Stable Diffusion's VAE: it is that model's U-Net, then."""
    from ..setevsr_core.networks.denoiser import DenoiserConfig

    full = DenoiserConfig.sd21()
    config = denoiser.config
    return (config.channels, config.context_dim, config.latent_channels) == (
        full.channels, full.context_dim, full.latent_channels
    )  # fmt: skip


@lru_cache(maxsize=1)
def tiny_decoder(path: Path) -> Any:
    """The TAESD decoder in a file; None, with a warning, for a file that is none: a preview must not stop a run."""
    from ..setevsr_core.checkpoints.tiny_decoder import load_tiny_decoder
    from ..setevsr_core.errors import SeTeVSRError

    try:
        return load_tiny_decoder(path)
    except SeTeVSRError as error:
        log.warning("SeTe-VSR: previews without TAESD: %s", error)
        return None
