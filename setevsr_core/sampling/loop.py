"""The denoising loop: one segment from its low-resolution latents to restored latents.

Once per segment: text keys/values, SeAM keys/values and each tile's share of them. Once per step and tile: the LR
encoder (it sees the timestep, and its maps hold self-attention, so it runs on the tile, as it was trained on crops,
and is not cut out of a run over the whole frame) and the U-Net. Noise predictions, not pictures, are blended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, SettingsError
from ..precision import overflow_message
from . import schedules
from .noise import START, frames_noise
from .samplers import make_sampler
from .tiles import GRID, Tile, blend_tiles, plan_tiles

OnStep = Callable[[int, int, torch.Tensor, torch.Tensor], None]
CheckCancel = Callable[[], None]


@dataclass(frozen=True)
class Conditions:
    """What does not depend on the timestep: projected text, and SeAM keys/values per tile (None without semantics)."""

    text: Any
    semantics: dict[Tile, Any]


def prepare_conditions(
    denoiser: Any,
    text: Any,
    semantics: Any,
    tiles: tuple[Tile, ...],
    grid: tuple[int, int],
    content: tuple[float, float],
    margin: int,
    device: torch.device,
) -> Conditions:
    """Project text and semantics once and hand every tile the keys of its own region plus `margin` latent pixels.

    `content` is the share of the grid's height and width that the frame fills; the rest is padding that SAM2 never
    saw. Tensors are projected here, already projected keys are taken as they are.
    """
    text = text_for(denoiser, text)
    if isinstance(text, torch.Tensor):
        text = denoiser.project_text(text.to(device, denoiser.dtype))
    if semantics is None:
        return Conditions(text, dict.fromkeys(tiles))
    if isinstance(semantics, torch.Tensor):
        semantics = denoiser.project_semantics(semantics.to(device, denoiser.dtype))
    if len(tiles) == 1 and content == (1.0, 1.0):
        return Conditions(text, {tiles[0]: semantics})
    return Conditions(text, {tile: semantics.crop(*tile_region(tile, grid, content, margin)) for tile in tiles})


def text_for(denoiser: Any, text: Any) -> Any:
    """The text, one (n,ctx) as (1,n,ctx), or without any the embedding of the empty prompt that the weights bring.

    Errors: InputError if they bring none.
    """
    if text is not None:
        return text[None] if isinstance(text, torch.Tensor) and text.ndim == 2 else text
    if denoiser.empty_text is None:
        raise InputError(
            "this denoiser's weights bring no embedding of the empty prompt: connect a CONDITIONING (the empty prompt "
            "encoded by the text encoder of its base model), or store it with 'setevsr convert --empty-text'"
        )
    return denoiser.empty_text


def tile_region(
    tile: Tile, grid: tuple[int, int], content: tuple[float, float], margin: int
) -> tuple[float, float, float, float]:
    """(top, bottom, left, right) of a tile plus margin as fractions of the frame, never empty.

    A tile that lies wholly in the padding gets the frame's last rows or columns, of which the padding is a mirror.
    """

    def span(start: int, stop: int, size: int, share: float) -> tuple[float, float]:
        filled = size * share  # latent pixels that show the frame
        low = min(max(start - margin, 0), filled - min(filled, 1.0))
        return low / filled, min((stop + margin) / filled, 1.0)

    top, bottom = span(tile.top, tile.bottom, grid[0], content[0])
    left, right = span(tile.left, tile.right, grid[1], content[1])
    return top, bottom, left, right


def predict_noise(
    denoiser: Any,
    noisy: torch.Tensor,
    lr: torch.Tensor,
    times: torch.Tensor,
    conditions: Conditions,
    *,
    num_frames: int,
    check_cancel: CheckCancel | None = None,
) -> torch.Tensor:
    """The noise in `noisy` latents (B*T,4,h,w), tile by tile: LR encoder and U-Net of every tile, blended.

    lr: the low-resolution latents, as many; both in the denoiser's dtype. times: (B*T,). conditions: of all tiles.
    check_cancel() is called before every tile and stops by raising.
    """

    def predict(part: Tile) -> torch.Tensor:
        if check_cancel is not None:
            check_cancel()
        return denoiser(
            part.cut(noisy).contiguous(),
            times,
            num_frames=num_frames,
            lr_maps=denoiser.encode_lr(part.cut(lr).contiguous(), times),
            text=conditions.text,
            semantics=conditions.semantics[part],
        )

    return blend_tiles(tuple(conditions.semantics), noisy.shape, predict)


def _check(lr_latents: torch.Tensor, frame_indices: Sequence[int], text: Any, semantics: Any) -> None:
    if lr_latents.ndim != 4 or lr_latents.shape[0] < 1:
        raise InputError(f"latents must have the shape (frames, channels, h, w), got {tuple(lr_latents.shape)}")
    frames, _, h, w = lr_latents.shape
    if h % GRID or w % GRID or not h or not w:
        raise InputError(f"latents must be a multiple of {GRID} on both sides, got {h} x {w}; pad the frames to 64")
    if len(frame_indices) != frames:
        raise InputError(f"{frames} latent frames came with {len(frame_indices)} frame indices; they must match")
    if isinstance(text, torch.Tensor) and text.ndim not in (2, 3):
        raise InputError(f"text must be an embedding of the shape (1, tokens, width), got {tuple(text.shape)}")
    if isinstance(text, torch.Tensor) and text.ndim == 3 and text.shape[0] not in (1, frames):
        raise InputError(f"{frames} latent frames came with {text.shape[0]} texts; give one for all, or one for each")
    if isinstance(semantics, torch.Tensor) and semantics.shape[0] != frames:
        raise InputError(f"{frames} latent frames came with semantics of {semantics.shape[0]}: are they one video's?")
    if not torch.isfinite(lr_latents).all():
        raise InputError("the latents contain NaN or infinite values; encode again in fp32 or bf16")


@torch.inference_mode()
def denoise(
    denoiser: Any,
    lr_latents: torch.Tensor,
    *,
    frame_indices: Sequence[int],
    seed: int,
    steps: int = 50,
    sampler: str = "ddpm",
    strength: float = 1.0,
    text: Any = None,
    semantics: Any = None,
    tile: int = 64,
    tile_overlap: int = 16,
    content: tuple[float, float] = (1.0, 1.0),
    on_step: OnStep | None = None,
    check_cancel: CheckCancel | None = None,
) -> torch.Tensor:
    """Restored latents (T,4,h,w) fp32, scaled like the input, on the input's device.

    lr_latents: (T,4,h,w) VAE latents of the upscaled frames times the scaling factor; h and w multiples of 8.
    frame_indices: each frame's place in the whole video; together with `seed` they decide all noise.
    steps: 0 returns the latents untouched. strength: 0..1], below 1 starts from a less noisy timestep.
    text: None (the checkpoint's empty prompt), (1|T,n,ctx) or projected. semantics: None, (T,256,gh,gw) or projected.
    tile, tile_overlap: latent pixels; 0 switches tiling off. content: see `prepare_conditions`.
    on_step(index, total, latents, clean_prediction) follows every step; check_cancel() is called before every tile
    and stops the loop by raising. The network runs in its own dtype, everything else in fp32.
    """
    _check(lr_latents, frame_indices, text, semantics)
    latents = lr_latents.float()
    if steps == 0:
        return latents.clone()
    frames, channels, h, w = latents.shape
    run = make_sampler(sampler, steps, strength)
    tiles = plan_tiles(h, w, tile, tile_overlap)
    conditions = prepare_conditions(denoiser, text, semantics, tiles, (h, w), content, tile_overlap, latents.device)
    condition = latents.to(denoiser.dtype)

    def noise(step: int) -> torch.Tensor:
        return frames_noise(seed, frame_indices, step, (channels, h, w)).to(latents.device)

    noisy = schedules.add_noise(latents, noise(START), run.timesteps[0])
    for index, timestep in enumerate(run.timesteps):
        times = torch.full((frames,), timestep, dtype=torch.long, device=latents.device)
        eps = predict_noise(denoiser, noisy.to(denoiser.dtype), condition, times, conditions, num_frames=frames,
                            check_cancel=check_cancel)
        finite = torch.isfinite(eps).all()
        clean = schedules.predict_clean(noisy, eps, timestep) if on_step is not None else None
        noisy = run.step(index, noisy, eps, lambda index=index: noise(index))
        if not finite:  # asked after noise was drawn on the processor: a GPU computes meanwhile
            raise SettingsError(overflow_message(f"at timestep {timestep} the denoiser", denoiser.dtype))
        if on_step is not None and clean is not None:
            on_step(index, len(run.timesteps), noisy, clean)
    return noisy
