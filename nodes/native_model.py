"""The denoiser as a model of ComfyUI: what KSampler, SamplerCustomAdvanced and every stock scheduler can drive.

One `SeTeModel` per denoiser serves both ways of sampling: our own loop calls the `Denoiser` inside it, native samplers
call `SeTeModel` itself. So a denoiser is in memory once, and ComfyUI's memory management knows it as one model.

Only imported when a denoiser is hosted: importing ComfyUI's model classes asks for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ..setevsr_core.errors import InputError
from ..setevsr_core.sampling import schedules
from ..setevsr_core.sampling.loop import predict_noise, prepare_conditions
from ..setevsr_core.sampling.tiles import plan_tiles
from . import compat
from .progress import makes_sd_latents

PREFIX = "diffusion_model.denoiser."
"""Where the denoiser's weights stand in the model; patches (LoRA) are registered under it."""

LR, SEMANTICS, PLAN = "setevsr_lr", "setevsr_semantics", "setevsr_plan"
"""Keys of the CONDITIONING: scaled LR latents (T,4,h,w), embeddings (T,256,gh,gw), (tile, overlap, content)."""

LATENT_FACTOR = 0.18215
"""LATENTs of a native sampler are scaled latents divided by this, whatever VAE made them."""

MEMORY_REMEDY = "lower 'tile' of Sampling Conditioning, or 'length' of Split Segments."


class SeTeLatents(comfy.latent_formats.LatentFormat):
    """Four channels at an eighth of the size. The preview colours are fitted to a video by Sampling Conditioning."""

    scale_factor = LATENT_FACTOR
    latent_channels = 4
    latent_rgb_factors = comfy.latent_formats.SD15().latent_rgb_factors


class SeTeConfig(comfy.supported_models_base.BASE):
    unet_config = {"disable_unet_model_creation": True}
    unet_extra_config: dict[str, Any] = {}
    latent_format = SeTeLatents
    sampling_settings = {
        "beta_schedule": "linear",  # ComfyUI's name for SD's "scaled linear"
        "linear_start": schedules.BETA_START,
        "linear_end": schedules.BETA_END,
        "timesteps": schedules.NUM_TRAIN_TIMESTEPS,
    }
    memory_usage_factor = 2.0


class SeTeSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """SD 2.1's noise levels; even full noise holds its share of the input, as in training and in our own loop."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return super().noise_scaling(sigma, noise, latent_image, max_denoise=False)


class TilePlan(comfy.conds.CONDConstant):
    """(tile, overlap, content) of a segment whose latents are `grid` = (h, w); its size is that of the largest tile."""

    def __init__(self, plan: tuple[Any, ...], grid: tuple[int, int]) -> None:
        super().__init__(plan)
        self.grid = grid

    def _copy_with(self, cond: tuple[Any, ...]) -> TilePlan:
        return TilePlan(cond, self.grid)

    def size(self) -> list[int]:
        return [min(self.cond[0] or side, side) for side in self.grid]


class HostedDenoiser(nn.Module):
    """Gives a `Denoiser` the call that ComfyUI makes: LR encoder and U-Net, tile by tile.

    Keys and values of text and semantics do not depend on the step, so they are projected once a run, like in our own
    loop. ComfyUI hands over fresh tensors at every step, so they are known again by their values. What is kept is the
    last of each for every group of conditionings: with context windows the semantics change at every call, and are
    projected every time, as keeping the keys of all windows would take a gigabyte each at full size.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._kept: dict[tuple[Any, ...], tuple[Tensor, Any]] | None = None  # None: there is no run to keep keys for

    def keep_keys(self, keep: bool) -> None:
        """Forget all keys and values; keep: and keep those to come, until the next call."""
        self._kept = {} if keep else None

    def _projected(self, project: Callable[[Tensor], Any], context: Tensor, group: tuple[Any, ...]) -> Any:
        """`project(context)`, from an earlier step if it was the same there."""
        if self._kept is None:
            return project(context)
        kept = self._kept.pop(group, None)
        if kept is None or not same_values(kept[0], context):
            kept = None  # their memory is free while the next ones are made
            kept = context, project(context)
        self._kept[group] = kept
        return kept[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype  # type: ignore[return-value]

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, control: Any = None,
        transformer_options: Any = None, lr: Tensor | None = None, semantics: Tensor | None = None, plan: Any = None,
        **_: Any,
    ) -> Tensor:  # fmt: skip
        """x: (k*T,4,h,w), k conditionings of the same frames one after the other, of a whole segment or of one of
        ComfyUI's context windows; the rest as `SeTeModel.extra_conds`.
        """
        if lr is None or plan is None:
            raise InputError(
                "This model needs the low-resolution latents: connect the outputs of 'Sampling Conditioning' to the "
                "sampler's positive and negative inputs."
            )
        group = tuple((transformer_options or {}).get("cond_or_uncond", [0]))  # one, if nobody says
        text = self.denoiser.empty_text if context is None else context
        with compat.named_memory_error(MEMORY_REMEDY):
            return self._predict(x, timesteps, text, group, lr, semantics, *plan)

    def _predict(
        self, x: Tensor, timesteps: Tensor, text: Any, group: tuple[Any, ...], lr: Tensor, semantics: Tensor | None,
        tile: int, overlap: int, content: tuple[float, float],
    ) -> Tensor:  # fmt: skip
        denoiser: Any = self.denoiser
        grid = (x.shape[-2], x.shape[-1])
        words = self._projected(denoiser.project_text, text, ("text", *group))
        keys = None
        if semantics is not None:
            keys = self._projected(denoiser.project_semantics, semantics, ("semantics", *group))
        conditions = prepare_conditions(denoiser, words, keys, plan_tiles(*grid, tile, overlap), grid, content, overlap,
                                        x.device)
        return predict_noise(denoiser, x, lr, timesteps, conditions, num_frames=len(x) // len(group),
                             check_cancel=comfy.model_management.throw_exception_if_processing_interrupted)


class SeTeModel(comfy.model_base.BaseModel):
    """ComfyUI's base model around a denoiser; predicts noise at SD 2.1's noise levels."""

    def __init__(self, denoiser: nn.Module, device: torch.device) -> None:
        config = SeTeConfig({"disable_unet_model_creation": True})
        config.set_inference_dtype(denoiser.dtype, None)
        super().__init__(config, comfy.model_base.ModelType.EPS, device=device)
        self.model_sampling = SeTeSampling(config)
        self.diffusion_model = HostedDenoiser(denoiser)
        if makes_sd_latents(denoiser):
            self.latent_format.taesd_decoder_name = "taesd_decoder"
        comfy.model_management.archive_model_dtypes(self.diffusion_model)

    def extra_conds(self, **values: Any) -> dict[str, Any]:
        """LR latents and semantics of the segment (per frame), text, and (tile, overlap, content)."""
        lr, semantics, plan, noise = values.get(LR), values.get(SEMANTICS), values.get(PLAN), values["noise"]
        if lr is None or plan is None:
            raise InputError(
                "This conditioning holds no low-resolution latents: send it through 'Sampling Conditioning', and use "
                "its outputs for both positive and negative."
            )
        if noise.shape != lr.shape:
            raise InputError(
                f"The sampler's latents have the shape {tuple(noise.shape)}, but their conditioning is for "
                f"{tuple(lr.shape)}; use the latents that 'Sampling Conditioning' gives, as they are."
            )
        conds = {"lr": comfy.conds.CONDRegular(lr), "plan": TilePlan(plan, lr.shape[-2:])}
        if semantics is not None:
            conds["semantics"] = comfy.conds.CONDRegular(semantics)
        if values.get("cross_attn") is not None:
            conds["c_crossattn"] = comfy.conds.CONDCrossAttn(values["cross_attn"])
        return {
            name: type(cond)(cond.cond.to(values["device"])) if isinstance(cond.cond, Tensor) else cond
            for name, cond in conds.items()
        }

    def extra_conds_shapes(self, **values: Any) -> dict[str, Any]:
        """What `memory_required` wants to know before sampling: the size of the largest tile."""
        lr, plan = values.get(LR), values.get(PLAN)
        return {} if lr is None or plan is None else {"plan": TilePlan(plan, lr.shape[-2:]).size()}

    def memory_required(
        self, input_shape: Sequence[int], cond_shapes: Mapping[str, list[Sequence[int]]] = MappingProxyType({})
    ) -> float:
        """Bytes of a step on latents of `input_shape`: of one tile of all frames, since tiles are computed in turn."""
        areas = [math.prod(input_shape[2:]), *(math.prod(tile) for tile in cond_shapes.get("plan", ()))]
        return super().memory_required([*input_shape[:2], 1, min(areas)], cond_shapes=dict(cond_shapes))


def same_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same in every number, in type and in place."""
    return (first.device, first.dtype) == (second.device, second.dtype) and torch.equal(first, second)


def keep_keys_in_runs(patcher: Any) -> None:
    """Let the denoiser of a MODEL, and of all its clones, keep keys and values while a sampler runs.

    Not with weight hooks (scheduled LoRAs), which change weights between steps. What is kept is dropped when the run
    ends, in whatever way, so neither other weights nor another video ever meet it.
    """
    patcher.add_callback(CallbacksMP.ON_PRE_RUN, lambda run: run.model.diffusion_model.keep_keys(not run.hook_patches))
    patcher.add_callback(CallbacksMP.ON_CLEANUP, lambda run: run.model.diffusion_model.keep_keys(False))


def denoiser_in(patcher: Any) -> Any:
    """The `Denoiser` inside a MODEL; `InputError` for another model."""
    model = getattr(patcher, "model", None)
    if not isinstance(model, SeTeModel):
        raise InputError(
            f"This model is a {type(model).__name__}, not a SeTe-VSR denoiser; connect 'Denoiser as Model'."
        )
    return model.diffusion_model.denoiser
