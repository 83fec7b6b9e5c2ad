"""The rooms a frame walks through, as plain functions: check, encode, read semantics, denoise, decode.

`Restorer` and the single-stage nodes call these same functions, so both ways give the same bits. Every function
computes on `device` (default: where the module's weights are) in the module's own type, and returns fp32 where its
input was. Encoding and semantics run frame by frame: a batch of another size could round differently, and then a
frame's bits would depend on the segment it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import vae_tiles
from .errors import InputError, SettingsError
from .precision import overflow_message
from .sampling import loop
from .sampling.tiles import GRID, latent_grid
from .video.colour import match_colour
from .video.resize import crop, pad_to_multiple, target_size, upscale_bicubic
from .video.steadying import steady

CheckCancel = Callable[[], None]
OnFrame = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodedFrames:
    """VAE latents of enlarged frames.

    latents: (N,4,h,w) fp32, posterior mean times the scaling factor (no random sample: the same frame always gives the
    same latent); h, w multiples of 8. size: (H, W) of the result before padding. content: share of the latent grid's
    height and width that shows the frame, the rest is mirrored padding. features: the two skip features of all frames,
    or None when they were not asked for. preview_matrix: see `preview`.
    """

    latents: Tensor
    size: tuple[int, int]
    content: tuple[float, float]
    features: list[Tensor] | None
    preview_matrix: Tensor

    def __len__(self) -> int:
        return len(self.latents)


def join_frames(parts: Sequence[EncodedFrames]) -> EncodedFrames:
    """Encoded frames of one video, in order, as one; features are kept only if every part has them."""
    if not parts or any(part.size != parts[0].size for part in parts):
        raise InputError("encoded frames can be joined only if there are some and all have one size")
    tapped = [part.features for part in parts if part.features is not None]
    return replace(
        parts[0],
        latents=torch.cat([part.latents for part in parts]),
        features=[torch.cat(level) for level in zip(*tapped, strict=True)] if len(tapped) == len(parts) else None,
    )


def check_frames(frames: Any, channels: tuple[int, ...] = (3,), first_index: int = 0) -> None:
    """`InputError` in one sentence unless frames are a finite floating (N,H,W,C) tensor in about 0..1, N >= 1.

    `first_index` is the place of frames[0] in its video, for the message.
    """
    if not isinstance(frames, Tensor):
        raise InputError(f"frames must be a torch tensor (N,H,W,C), got {type(frames).__name__}")
    if frames.ndim != 4 or frames.shape[-1] not in channels:
        wanted = " or ".join(str(c) for c in channels)
        raise InputError(f"frames must have the shape (N,H,W,{wanted}), got {tuple(frames.shape)}")
    if 0 in frames.shape:
        raise InputError(f"there are no frames to restore: the batch has the shape {tuple(frames.shape)}")
    if not frames.is_floating_point():
        raise InputError(f"frames must be floating point in 0..1, got {frames.dtype}; divide 8-bit values by 255")
    if frames.is_meta or frames.layout != torch.strided:
        kind = "on the meta device, without values" if frames.is_meta else f"of the layout {frames.layout}"
        raise InputError(f"frames must be a dense tensor with values, got one {kind}")
    for index, frame in enumerate(frames, first_index):  # one at a time: no copy of the whole video
        check_frame(frame, index)


def check_frame(frame: Tensor, index: int) -> None:
    """`InputError` naming the frame unless its values are finite and roughly 0..1 (a little overshoot is clamped)."""
    low, high = (float(value) for value in torch.aminmax(frame.float()))
    if not (low > -float("inf") and high < float("inf")):  # also false for NaN
        raise InputError(f"frame {index} contains NaN or infinite values; find the step before that produces them")
    if low < -1.0 or high > 2.0:
        raise InputError(f"frame {index} has values from {low:g} to {high:g}; frames must be in 0..1")


def encode_latents(
    vae: Any,
    frames: Tensor,
    scale: float,
    *,
    keep_features: bool = False,
    tile: int = vae_tiles.WHOLE,
    device: Any = None,
    check_cancel: CheckCancel | None = None,
) -> EncodedFrames:
    """Frames (N,H,W,3) in 0..1 -> latents of the frames enlarged by `scale` (bicubic) and padded by reflection.

    tile: latents along one side of the VAE's tiles, 0 for whole frames; features are kept of whole frames only.
    `check_cancel()` is called before every frame and stops by raising.
    Errors: InputError for frames that cannot be used, SettingsError when the VAE overflows.
    """
    check_frames(frames)
    device = device if device is not None else module_device(vae)
    size = target_size(frames.shape[1], frames.shape[2], scale)
    latents: list[Tensor] = []
    features: list[list[Tensor]] = []
    matrix: Tensor | None = None
    for index in range(len(frames)):
        if check_cancel is not None:
            check_cancel()
        latent, tapped, pixels = _encode_frame(vae, frames[index], size, device, tile, check_cancel)
        if matrix is None:
            matrix = fit_preview(latent, pixels)
        latents.append(latent.to(frames.device))
        if keep_features and tapped is not None:
            features.append([feature.to(frames.device) for feature in tapped])
    assert matrix is not None, "check_frames lets no empty batch through"
    downscale = vae.config.downscale
    grid = latents[0].shape[-2:]
    return EncodedFrames(
        latents=torch.cat(latents),
        size=size,
        content=(size[0] / (grid[0] * downscale), size[1] / (grid[1] * downscale)),
        features=[torch.cat(level) for level in zip(*features, strict=True)] if features else None,
        preview_matrix=matrix.to(frames.device),
    )


@torch.inference_mode()
def _encode_frame(
    vae: Any, frame: Tensor, size: tuple[int, int], device: Any, tile: int, check_cancel: CheckCancel | None
) -> tuple[Tensor, list[Tensor] | None, Tensor]:
    """(H,W,3) -> latent (1,4,h,w) fp32 scaled, skip features (None with tiles), and the padded pixels (1,3,Hp,Wp) in
    0..1 that were encoded.
    """
    pixels = _enlarge(vae, frame, size, device)
    if tile:
        mean, features = vae_tiles.encode(vae, _vae_input(vae, pixels), tile, check_cancel), None
    else:
        mean, _, features = vae.encode(_vae_input(vae, pixels))
    latent = mean.float() * vae.config.scaling_factor
    if not torch.isfinite(latent).all():
        raise SettingsError(overflow_message("the VAE encoder", module_dtype(vae)))
    return latent, features, pixels


def _enlarge(vae: Any, frame: Tensor, size: tuple[int, int], device: Any) -> Tensor:
    """(H,W,3) anywhere -> (1,3,Hp,Wp) in 0..1 on `device`: bicubic to `size`, padded to what the networks need."""
    pixels = upscale_bicubic(_to_planes(frame[None], device), size=size)
    return pad_to_multiple(pixels, vae.config.downscale * GRID)[0]


def _vae_input(vae: Any, pixels: Tensor) -> Tensor:
    return (pixels * 2 - 1).to(module_dtype(vae))


def encode_semantics(
    encoder: Any,
    frames: Tensor,
    *,
    device: Any = None,
    on_frame: OnFrame | None = None,
    check_cancel: CheckCancel | None = None,
) -> Tensor:
    """SAM 2 embeddings (N,256,gh,gw) of low-resolution frames (N,H,W,3) in 0..1, in the encoder's type."""
    check_frames(frames)
    device = device if device is not None else module_device(encoder)
    results: list[Tensor] = []
    for index in range(len(frames)):
        if check_cancel is not None:
            check_cancel()
        with torch.inference_mode():
            embedding = encoder(frames[index : index + 1].to(device, torch.float32).clamp(0, 1))
        results.append(embedding.to(frames.device))
        if on_frame is not None:
            on_frame(index + 1, len(frames))
    return torch.cat(results)


def denoise_span(
    denoiser: Any,
    latents: Tensor,
    semantics: Tensor | None,
    frame_indices: Sequence[int],
    *,
    seed: int = 0,
    steps: int = 50,
    sampler: str = "ddpm",
    strength: float = 1.0,
    text: Tensor | None = None,
    tile: int = 64,
    tile_overlap: int = 16,
    content: tuple[float, float] = (1.0, 1.0),
    device: Any = None,
    on_step: loop.OnStep | None = None,
    check_cancel: CheckCancel | None = None,
) -> Tensor:
    """Restored latents (T,4,h,w) of one segment's latents, fp32, scaled; arguments as `sampling.loop.denoise`."""
    device = torch.device(device if device is not None else module_device(denoiser))
    result = loop.denoise(
        denoiser,
        latents.to(device),
        frame_indices=frame_indices,
        seed=seed,
        steps=steps,
        sampler=sampler,
        strength=strength,
        text=text,
        semantics=semantics,
        tile=tile,
        tile_overlap=tile_overlap,
        content=content,
        on_step=on_step,
        check_cancel=check_cancel,
    )
    return result.to(latents.device)


@torch.inference_mode()
def decode_span(
    vae: Any,
    latents: Tensor,
    frames: Tensor,
    scale: float,
    *,
    features: list[Tensor] | None = None,
    fusion: float = 1.0,
    colour: str = "wavelet",
    steady_result: int = 0,
    tile: int = vae_tiles.WHOLE,
    device: Any = None,
    check_cancel: CheckCancel | None = None,
) -> Tensor:
    """One segment's scaled latents (T,4,h,w) -> pictures (T,sH,sW,3) fp32 in 0..1, cropped, colour-matched, steadied.

    frames: the segment's own low-resolution frames (T,H,W,3), for skip features, colour and size. features: what
    `encode_latents(keep_features=True)` kept for these frames; None computes them again (same bits, less memory).
    tile: latents along one side of the VAE's tiles, each of which computes its own features; 0 for whole frames.
    steady_result: radius by which the pictures are averaged with each other along their motion (`steadying.steady`).
    Errors: InputError when latents and frames do not belong together, SettingsError for a fusion outside 0..1.
    """
    check_frames(frames)
    if not 0 <= fusion <= 1:
        raise SettingsError(f"fusion is {fusion}; it must be a number from 0 to 1")
    device = device if device is not None else module_device(vae)
    size = target_size(frames.shape[1], frames.shape[2], scale)
    _check_latents(vae, latents, frames, size)
    if check_cancel is not None:
        check_cancel()
    dtype = module_dtype(vae)
    unscaled = (latents.to(device, torch.float32) / vae.config.scaling_factor).to(dtype)
    if features is not None and not tile:
        skips = [feature.to(device, dtype) for feature in features]
        pixels = vae.decode(unscaled, skips, num_frames=len(frames), fusion=fusion)
    else:
        enlarged = torch.cat([_vae_input(vae, _enlarge(vae, frame, size, device)) for frame in frames])
        pixels = vae_tiles.decode(vae, unscaled, enlarged, fusion=fusion, tile=tile, check_cancel=check_cancel)
    pixels = crop(pixels, size).float()
    if not torch.isfinite(pixels).all():
        raise SettingsError(overflow_message("the VAE decoder", dtype))
    pictures = pixels.add(1).div(2).clamp(0, 1)
    return steady(recolour(pictures.movedim(1, -1), frames, colour, device=device), steady_result)


@torch.inference_mode()
def recolour(pictures: Tensor, frames: Tensor, colour: str = "wavelet", *, device: Any = None) -> Tensor:
    """Pictures (T,H,W,3) in 0..1 with the large-scale colours of their low-resolution frames (T,h,w,3), fp32.

    Apart from `decode_span` for a caller that decodes with colour "none" and chooses later, before overlapping segments
    are blended. The result is where the frames are.
    """
    device = device if device is not None else pictures.device
    planes = pictures.to(device, torch.float32).movedim(-1, 1).contiguous()
    if colour != "none":
        size = (planes.shape[-2], planes.shape[-1])
        planes = match_colour(planes, upscale_bicubic(_to_planes(frames, device), size=size), colour)
    return planes.movedim(1, -1).to(frames.device).contiguous()


@torch.inference_mode()
def upscale_alpha(alpha: Tensor, scale: float) -> Tensor:
    """Alpha (N,H,W,1) in 0..1 enlarged by bicubic, (N,sH,sW,1) fp32: transparency is not invented, only scaled."""
    return upscale_bicubic(alpha.float().movedim(-1, 1), scale).movedim(1, -1).contiguous()


def _check_latents(vae: Any, latents: Tensor, frames: Tensor, size: tuple[int, int]) -> None:
    grid = latent_grid(size, vae.config.downscale)
    if len(latents) != len(frames) or tuple(latents.shape[-2:]) != grid:
        raise InputError(
            f"latents {tuple(latents.shape)} do not belong to these frames: {len(frames)} frames enlarged to "
            f"{size[1]}x{size[0]} have {grid[0]} x {grid[1]} latents each; use the same video and scale"
        )


@torch.inference_mode()
def fit_preview(latents: Tensor, pixels: Tensor) -> Tensor:
    """The linear map (C+1, 3) from latents (N,C,h,w) to the colours (N,3,H,W, 0..1) they stand for, by least squares.

    Fitted on the input's own latents, so it serves any VAE without a table of constants.
    """
    grid = (latents.shape[-2], latents.shape[-1])
    # On the CPU: the grid is small, and not every GPU computes in float64.
    small = functional.adaptive_avg_pool2d(pixels.float(), grid).movedim(1, -1).reshape(-1, 3).cpu().double()
    design = _with_ones(latents.cpu().double()).reshape(-1, latents.shape[1] + 1)
    gram = design.T @ design / len(design)
    ridge = 1e-4 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # a constant frame has no unique map
    return torch.linalg.solve(gram + ridge, design.T @ small / len(design)).float()


@torch.inference_mode()
def preview(latents: Tensor, matrix: Tensor) -> Tensor:
    """Rough pictures (N,h,w,3) in 0..1 of scaled latents (N,C,h,w), one pixel each; `matrix` from `fit_preview`."""
    return (_with_ones(latents.float()) @ matrix.to(latents.device)).clamp(0, 1)


def _with_ones(latents: Tensor) -> Tensor:
    last = latents.movedim(1, -1)
    return torch.cat([last, torch.ones_like(last[..., :1])], dim=-1)


def module_dtype(module: Any) -> torch.dtype:
    """The type a network computes in."""
    return getattr(module, "dtype", torch.float32)


def module_device(module: Any) -> torch.device:
    """Where a network's first weight is; the CPU for a network without weights."""
    weight = next(iter(module.parameters()), None) if isinstance(module, torch.nn.Module) else None
    return weight.device if weight is not None else torch.device("cpu")


def _to_planes(frames: Tensor, device: Any) -> Tensor:
    """(N,H,W,3) anywhere -> (N,3,H,W) fp32 on `device`, clamped to 0..1."""
    return frames.movedim(-1, 1).to(device, torch.float32).clamp(0, 1).contiguous()
