"""Networks inside ComfyUI: one ModelPatcher each, weights brought to the device before every stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import compat

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

FP8 = "fp8"
DENOISER, VAE, ENCODER = "denoiser", "vae", "semantic_encoder"
ENCODER_MEMORY = 1.5 * 1024**3
"""Bytes that reading a frame needs beside the encoder's weights, for the largest one."""
VAE_SHARE = 0.6
PLAIN_LAYERS = frozenset({ENCODER})
"""Kinds built from layers that ComfyUI cannot stream (SAM 2's own modules): these are loaded whole or not at all."""


@dataclass(frozen=True)
class ComponentHandle:
    """What travels over a network socket. ComfyUI finds the weights to evict or keep through `.patcher`.

    `name` is the preset's or the file's; `defaults` are the preset's settings, empty for a single file. `identity` says
    which weights these are, with what Load LoRA adds to them; it stays the same while patches come and go.
    """

    kind: str
    module: Any
    patcher: Any
    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.patcher.load_device

    def load(self, memory: float = 0.0) -> Any:
        """Bring the weights to the device, with about `memory` bytes left for the computation; cheap if they are there.

        Called before every stage, because loading another network may have moved this one away.
        """
        import comfy.model_management as management

        whole = self.kind in PLAIN_LAYERS
        management.load_models_gpu([self.patcher], memory_required=int(memory), force_full_load=whole)
        return self.module


def host_component(
    kind: str, module: nn.Module, name: str, dtype: torch.dtype, defaults: Mapping[str, Any] | None = None,
    *, fp8: bool = False,
) -> ComponentHandle:  # fmt: skip
    """Hand a network that was loaded on the CPU to ComfyUI's memory management, stored and computing in `dtype`.

    fp8: store the denoiser's large weights in fp8 instead; other networks are small or need the precision.
    """
    from ..setevsr_core.restorer import network_identity

    module.to(dtype)
    module.dtype = dtype  # type: ignore[assignment]  # the networks keep the type they compute in beside their weights
    module.eval().requires_grad_(False)
    if fp8 and kind == DENOISER:
        store_in_fp8(module)
    identity = network_identity(module)  # now, before anything can patch the weights in place
    load_device, offload_device = devices(kind)
    if kind == DENOISER:
        from . import native_model

        hosted = native_model.SeTeModel(module, offload_device)
        patcher = compat.make_patcher(hosted, load_device, offload_device, whole=False)
        native_model.keep_keys_in_runs(patcher)
    else:
        patcher = compat.make_patcher(module, load_device, offload_device, whole=kind in PLAIN_LAYERS)
    return ComponentHandle(kind, module, patcher, name, dict(defaults or {}), identity)


def devices(kind: str) -> tuple[torch.device, torch.device]:
    """(device to compute on, device to rest on) for a network of `kind`."""
    import comfy.model_management as management

    if kind in PLAIN_LAYERS:
        return compat.device_for_plain_modules(), management.unet_offload_device()
    if kind == VAE:
        return management.vae_device(), management.vae_offload_device()
    return management.get_torch_device(), management.unet_offload_device()


def stores_fp8(precision: str) -> bool:
    """Whether a denoiser's weights are stored in fp8: the widget says so, or ComfyUI's option where it says "auto"."""
    return precision == FP8 or (precision == "auto" and compat.fp8_is_asked_for())


def choose_dtype(kind: str, precision: str) -> torch.dtype:
    """Computing type: what the user asked for, or the best of the device; fp8 computes in bf16.

    bf16 comes before fp16 because SD 2.1's attention can overflow fp16. On a CPU the answer is bf16 if the processor
    computes in it, else fp32; ComfyUI's own options (such as --force-fp32) come first.
    """
    import comfy.model_management as management

    from ..setevsr_core.precision import automatic_dtype, warn_of_emulation

    device, _ = devices(kind)
    chosen = torch.bfloat16 if precision == FP8 else DTYPES.get(precision)
    if chosen is not None:
        warn_of_emulation(device, chosen)
        return chosen
    if device.type == "cpu" and not compat.precision_is_forced(kind):
        return automatic_dtype(device)
    if kind == VAE:
        return management.vae_dtype(device, [torch.bfloat16, torch.float32])
    best = management.unet_dtype(device=device, supported_dtypes=[torch.bfloat16, torch.float16, torch.float32])
    return best if best.itemsize > 1 else torch.bfloat16  # ComfyUI's fp8 options say how weights are stored


def store_in_fp8(module: nn.Module) -> None:
    """Keep the weights of all layers that ComfyUI casts at use as fp8 (e4m3): half of bf16, a little less exact.

    Norms, biases and single parameters stay as they are: they are small, and fp8 would be too coarse for them.
    """
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "comfy_cast_weights") and isinstance(weight, nn.Parameter) and weight.ndim >= 2:
            layer.weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)


class InputMover(nn.Module):
    """A network that rests on another device than the rest: moves its input there and its result back."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module, self.device = module, device

    def forward(self, frames: Tensor) -> Tensor:
        return self.module(frames.to(self.device)).to(frames.device)


def make_restorer(
    denoiser: ComponentHandle,
    vae: ComponentHandle,
    encoder: ComponentHandle | None,
    memory: Mapping[str, float],
) -> Any:
    """A `Restorer` over hosted networks, which loads each one when its turn comes, with the bytes of `memory` left for
    its computation ("denoiser", "vae", "encoder").
    """
    from ..setevsr_core.restorer import Restorer
    from .progress import latent_pictures

    handles = {"denoiser": denoiser, "vae": vae} | ({"encoder": encoder} if encoder is not None else {})
    reader = None
    if encoder is not None:
        same = encoder.device == denoiser.device
        reader = encoder.module if same else InputMover(encoder.module, encoder.device)

    def prepare(name: str) -> None:
        handles[name].load(memory.get(name, 0.0))

    identities = [handle.identity if handle is not None else "" for handle in (denoiser, vae, encoder)]
    return Restorer(
        denoiser.module, vae.module, reader,
        device=denoiser.device, vae_device=vae.device, free_memory=free_memory,
        defaults=dict(denoiser.defaults), place=False, prepare=prepare,
        preview=latent_pictures(denoiser), identity=" ".join(identities),
    )  # fmt: skip


def denoiser_memory(size: tuple[int, int], length: int, tile: int, dtype: torch.dtype) -> float:
    """Rough bytes that a step on `length` frames of `size` (H, W, enlarged) needs beside the weights.

    The constant is ComfyUI's own for Stable Diffusion's U-Net; small networks need less.
    """
    pixels = size[0] * size[1]
    tile_area = min(pixels / 64, tile * tile) if tile else pixels / 64
    return length * tile_area * (torch.finfo(dtype).bits // 8) * 0.02 * 1024**2


def vae_memory(vae: ComponentHandle, size: tuple[int, int], length: int) -> float:
    """Bytes that decoding `length` frames of `size` (H, W, enlarged) needs beside the weights, and `VAE_SHARE` of the
    device's memory at most: what does not fit is decoded in tiles, which needs no other network sent away.
    """
    import comfy.model_management as management

    from ..setevsr_core.sampling.tiles import latent_grid
    from ..setevsr_core.vae_tiles import bytes_per_latent

    height, width = latent_grid(size, vae.module.config.downscale)
    needed = height * width * bytes_per_latent(vae.module.config, vae.module.dtype, length)
    return min(needed, VAE_SHARE * cast(float, management.get_total_memory(vae.device)))


def fitting_tiles(vae: ComponentHandle, size: tuple[int, int], length: int, remedy: str) -> Any:
    """`FittingTiles` of a hosted VAE for `length` frames of `size` (H, W, enlarged), to be used with loaded weights.

    remedy: what to lower when the memory is full nevertheless.
    """
    from ..setevsr_core.vae_tiles import FittingTiles

    return FittingTiles(vae.module, size, length, vae.device, free_memory, remedy)


def free_memory(device: torch.device) -> int:
    """Bytes that ComfyUI says a computation on `device` can take."""
    import comfy.model_management as management

    return int(cast(float, management.get_free_memory(device)))
