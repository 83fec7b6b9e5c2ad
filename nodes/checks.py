"""Input checks that give one clear sentence before any work starts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..setevsr_core.errors import InputError
from ..setevsr_core.stages import check_frames

GIGABYTE = 1024**3
HEADROOM = 0.9
"""Share of the free memory that a result may take."""
REMEDY = "use 'Upscale Video', which writes to disk as it goes, or fewer frames or a smaller scale."


def require_frames(frames: Tensor, name: str = "images") -> None:
    """`InputError` naming the input, unless `frames` is a batch (N >= 1, H, W, 3 or 4) of finite numbers in 0..1."""
    try:
        check_frames(frames, channels=(3, 4))
    except InputError as error:
        raise InputError(f"Input '{name}': {error}.") from None


def result_bytes(num_frames: int, size: tuple[int, int], channels: int) -> int:
    """Bytes of a float32 result of `num_frames` frames of `size` (height, width)."""
    return num_frames * size[0] * size[1] * channels * 4


def require_memory(
    num_frames: int, size: tuple[int, int], channels: int, available: int | None = None, *, decoded: int = 0,
    remedy: str = REMEDY,
) -> None:  # fmt: skip
    """`InputError` with an estimate if the result does not fit into `available` bytes (None: what the system has).

    decoded: frames of decoded segments (RGB) that lie in memory beside it, those of overlaps twice.
    remedy: what the error advises.
    """
    if available is None:
        import psutil

        available = psutil.virtual_memory().available
    needed = result_bytes(num_frames, size, channels) + result_bytes(decoded, size, 3)
    if needed > available * HEADROOM:
        result = f"The result ({num_frames} frames of {size[1]}x{size[0]})"
        what = f"{result} and its {decoded} decoded frames need" if decoded else f"{result} needs"
        raise InputError(
            f"{what} {needed / GIGABYTE:.1f} GB of memory and {available / GIGABYTE:.1f} GB are free; {remedy}"
        )


def require_pair(denoiser: Any, vae: Any) -> None:
    """`InputError` for a denoiser and a VAE that were not made for each other, as far as their sizes tell.

    A U-Net of Stable Diffusion's sizes works in the latents of that model's VAE, which does not fold pixels.
    """
    from .progress import makes_sd_latents

    if makes_sd_latents(denoiser) == (vae.config.patch == 1):
        return
    if makes_sd_latents(denoiser):
        raise InputError(
            "This denoiser works in Stable Diffusion's latents and the VAE makes others; connect the VAE that belongs "
            "to the denoiser to 'vae' (Load Temporal VAE, a file of MGLD-VSR or Stable Diffusion 2.1)."
        )
    raise InputError(
        "This VAE makes Stable Diffusion's latents and the denoiser works in others; connect the denoiser that belongs "
        "to the VAE to 'denoiser', or leave 'vae' open."
    )
