"""Every difference between ComfyUI versions (0.16.3 and newer), in one place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io


def schema(**keywords: Any) -> io.Schema:
    """`io.Schema` without the keywords that this ComfyUI does not know yet (aliases and the like)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in keywords.items() if name in known})


def widget(kind: Any, name: str, **keywords: Any) -> Any:
    """`kind.Input(name, ...)` without the keywords that this ComfyUI does not know yet (`advanced` and the like)."""
    known = inspect.signature(kind.Input.__init__).parameters
    return kind.Input(name, **{key: value for key, value in keywords.items() if key in known})


@functools.cache
def operations() -> Any:
    """The layer namespace for our networks: ComfyUI's casting layers, with weights that exist after construction.

    Under dynamic VRAM `comfy.ops` layers start without a weight and create missing ones with swapped axes; a class
    with its own `_load_from_state_dict` opts out of that and keeps all other behaviour (streaming, casting).
    """
    import comfy.ops

    base = comfy.ops.manual_cast

    def with_weights(layer: type) -> type:
        def load(self, *arguments: Any, **keywords: Any) -> None:
            torch.nn.Module._load_from_state_dict(self, *arguments, **keywords)

        return type(layer.__name__, (layer,), {"_load_from_state_dict": load})

    lazy = {name: with_weights(getattr(base, name)) for name in ("Linear", "Embedding") if hasattr(base, name)}
    return type("Operations", (base,), lazy)


def make_patcher(
    module: torch.nn.Module, load_device: torch.device, offload_device: torch.device, *, whole: bool
) -> Any:
    """A ModelPatcher for `module`. `whole`: the module has plain torch layers and must never be loaded in part.

    The class is looked up at call time because ComfyUI exchanges it at start-up when dynamic VRAM is on.
    """
    import comfy.model_patcher

    plain = comfy.model_patcher.ModelPatcher
    chosen = plain if whole else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    return chosen(module, load_device=load_device, offload_device=offload_device)


def lora_patch(update: Any) -> Any:
    """A `lora.Update` as a weight patch of ComfyUI, which computes it when the weights are loaded or streamed."""
    from comfy.weight_adapter import LoRAAdapter

    rank = update.down.shape[0]
    return LoRAAdapter(set(), (update.up, update.down, update.scale * rank, update.mid, None, None))


def device_for_plain_modules() -> torch.device:
    """Where a module of plain torch layers can run: `--novram` never loads one fully, so it stays on the CPU."""
    import comfy.model_management as management

    if management.vram_state == management.VRAMState.NO_VRAM:
        return torch.device("cpu")
    return management.get_torch_device()


def precision_is_forced(kind: str) -> bool:
    """True if ComfyUI was started with an option that fixes the number type of `kind` ("vae" or a diffusion model)."""
    from comfy.cli_args import args

    part = "vae" if kind == "vae" else "unet"
    names = ("force_fp32", "force_fp16", *(f"{number}_{part}" for number in ("fp64", "fp32", "bf16", "fp16")))
    return any(getattr(args, name, False) for name in names)


def fp8_is_asked_for() -> bool:
    """True if ComfyUI was started with an option that stores diffusion models in fp8, such as `--fp8_e4m3fn-unet`."""
    from comfy.cli_args import args

    names = ("fp8_e4m3fn_unet", "fp8_e5m2_unet", "fp8_e8m0fnu_unet")
    return any(getattr(args, name, False) for name in names)


def compute_device() -> torch.device:
    """The device that ComfyUI computes on."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def check_interrupt() -> None:
    """Raise ComfyUI's interrupt exception if the user pressed Cancel."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """True for ComfyUI's Cancel; it is an `Exception` on older versions and must always be re-raised first."""
    import comfy.model_management

    return isinstance(error, comfy.model_management.InterruptProcessingException)


def is_out_of_memory(error: BaseException) -> bool:
    """True if `error` says that the accelerator's (or the CPU's) memory is full."""
    import comfy.model_management as management

    from ..setevsr_core import memory

    if hasattr(management, "is_oom"):
        return bool(management.is_oom(error)) or memory.is_out_of_memory(error)
    known = management.OOM_EXCEPTION
    return (known is not Exception and isinstance(error, known)) or memory.is_out_of_memory(error)


def intermediate_options() -> dict[str, Any]:
    """`device` and `dtype` that ComfyUI wants for IMAGE and LATENT tensors between nodes."""
    import comfy.model_management as management

    dtype = management.intermediate_dtype() if hasattr(management, "intermediate_dtype") else torch.float32
    return {"device": management.intermediate_device(), "dtype": dtype}


def trim_window(video: Any) -> tuple[float, float | None]:
    """(start, duration or None: to the end) in seconds of the part of a VIDEO file that 'Trim Video' has left."""
    if hasattr(video, "get_active_trim_window"):
        start, duration = video.get_active_trim_window()
    else:  # versions before 0.20 can trim too, but do not say how
        start = getattr(video, "_VideoFromFile__start_time", 0.0)
        duration = getattr(video, "_VideoFromFile__duration", 0.0)
        if start < 0:  # counted from the end
            start = max(video._get_raw_duration() + start, 0.0)
    return float(start), float(duration) or None


def bit_depth(video: Any) -> int:
    """Bits a channel with which a VIDEO made in the graph is written: Create Video of newer versions has the choice."""
    return int(video.get_bit_depth()) if hasattr(video, "get_bit_depth") else 8


def is_file_video(video: Any) -> bool:
    """True if the VIDEO is backed by an encoded file, so that it can be decoded frame by frame."""
    return isinstance(video, InputImpl.VideoFromFile)


def previews_enabled() -> bool:
    """True if the user has switched sampling previews on."""
    try:
        from comfy.cli_args import LatentPreviewMethod, args
    except ImportError:
        return False
    return args.preview_method != LatentPreviewMethod.NoPreviews


def tiny_decoder_file() -> Path | None:
    """The TAESD decoder of Stable Diffusion 1 and 2 in models/vae_approx; None without one, or if the user wants the
    plain preview (`--preview-method latent2rgb`).
    """
    import folder_paths
    from comfy.cli_args import LatentPreviewMethod, args

    if args.preview_method == LatentPreviewMethod.Latent2RGB:
        return None
    for name in folder_paths.get_filename_list("vae_approx"):
        if Path(name).stem in ("taesd_decoder", "taesd"):
            return Path(folder_paths.get_full_path("vae_approx", name) or name)
    return None


def preview_size() -> int:
    """Longest side in pixels of a preview picture."""
    from comfy.cli_args import args

    return int(getattr(args, "preview_size", 512))


@contextmanager
def readable_memory_error(remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error into one sentence that names the widget to change."""
    from ..setevsr_core.errors import SettingsError

    try:
        yield
    except BaseException as error:
        if is_interrupt(error) or not is_out_of_memory(error):
            raise
        raise SettingsError(f"The memory is full: {remedy}") from error


@contextmanager
def named_memory_error(remedy: str) -> Iterator[None]:
    """Put one sentence that names the widget to change before the words of an out-of-memory error.

    The error stays the very one that it was: by its type ComfyUI knows to unload all models.
    """
    try:
        yield
    except Exception as error:
        if not is_interrupt(error) and is_out_of_memory(error):
            error.args = (f"The memory is full: {remedy} ({error})", *error.args[1:])
        raise
