"""Widgets that several nodes share, so that one setting has one name, one range and one explanation everywhere."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..setevsr_core.sampling import samplers
from ..setevsr_core.video.colour import METHODS
from . import folders
from .compat import widget

CATEGORY = "SeTe-VSR"
STAGES = "SeTe-VSR/stages"
LOADERS = "SeTe-VSR/loaders"
TOOLS = "SeTe-VSR/tools"

ALIASES = ["super resolution", "video upscale", "upscale", "vsr", "restore", "enhance"]

PRESETS_OWN = "preset's own"
"""Combo entry that leaves a choice to the preset."""

DECODER_ONLY = "none (decoder only)"
"""Combo entry of `sampler` that skips diffusion."""

SAMPLERS = [PRESETS_OWN, *samplers.SAMPLERS, DECODER_ONLY]
PRECISIONS = ["auto", "fp32", "bf16", "fp16", "fp8"]
SCENE_CUTS = ["auto", "off"]
DEFAULT_PRESET = "nano"


def preset() -> Any:
    """Combo of the bundled presets and the user's own in models/setevsr/<name>/."""
    return widget(
        io.Combo, "preset", options=folders.preset_names(DEFAULT_PRESET), default=DEFAULT_PRESET,
        tooltip="Weights of all three networks and their best settings. 'nano' is bundled: small and fast. "
        "Own presets: a folder with config.json in models/setevsr/<name>.",
    )


def scale() -> Any:
    return widget(
        io.Float, "scale", default=4.0, min=1.0, max=8.0, step=0.25,
        tooltip="How many times larger each side becomes (1 to 8, fractions allowed). The networks are trained for 4; "
        "time and memory grow with its square. 1 cleans a video without enlarging it.",
    )


def steps() -> Any:
    return widget(
        io.Int, "steps", default=0, min=0, max=1000,
        tooltip="Diffusion steps; 0 uses the preset's own number. Time grows in proportion. Nano answers "
        "little: at strength 1 on unseen clips 1, 2, 4 and 8 steps gave LPIPS 0.377, 0.377, 0.365 and 0.363; up to 50 "
        "no more.",
    )


def seed(
    tooltip: str = "Same seed, video and settings: same result, bit for bit. Keep it 'fixed': after another seed "
    "nothing is continued. Another one invents other fine texture; nano's, which invents little, hardly differs.",
) -> Any:
    """It stays as it is after a run, unlike most nodes': what was interrupted is continued by the same seed only."""
    return widget(
        io.Int, "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed, tooltip=tooltip,
    )  # fmt: skip


def sampler() -> Any:
    return widget(
        io.Combo, "sampler", options=SAMPLERS, default=PRESETS_OWN,
        tooltip="How the noise is removed. ddpm: the paper's choice, many steps. dpmpp_2m, unipc: good from 10 steps "
        "on. 'none (decoder only)' skips diffusion: fastest and most faithful, with the least new detail. Nano's "
        "result is nearly the same with and without diffusion.",
    )


def strength() -> Any:
    return widget(
        io.Float, "strength", default=0.0, min=0.0, max=1.0, step=0.01,
        tooltip="Fidelity against detail: 1 starts from full noise (most new detail), small values start nearer to the "
        "input (fewer steps, closer to it). 0 uses the preset's own value. Nano answers little to it: at 4 steps "
        "on unseen clips 0.1 gave LPIPS 0.364 and flicker (E_warp) 2.5, 1 gave 0.365 and 2.7.",
    )


def length() -> Any:
    return widget(
        io.Int, "length", default=5, min=1, max=64, advanced=True,
        tooltip="Frames restored together (the networks are trained for 5). Longer: steadier in motion and less work, "
        "as fewer frames are shared: with overlap 2, 10 compute 1.25 frames for each one, 5 compute 1.67. Memory grows "
        "in proportion.",
    )


def overlap() -> Any:
    return widget(
        io.Int, "overlap", default=2, min=0, max=63, advanced=True,
        tooltip="Frames that neighbouring segments share and blend, less than length. More: smoother joints, more work "
        "(5 frames with overlap 2 cost 5/3 of overlap 0).",
    )


def scene_cuts() -> Any:
    return widget(
        io.Combo, "scene_cuts", options=SCENE_CUTS, default="auto", advanced=True,
        tooltip="auto: find scene cuts, no segment crosses one (no ghosts of the other scene). "
        "off: the video is one scene; saves the search.",
    )


def steady() -> Any:
    return widget(
        io.Int, "steady", default=4, min=0, max=4, optional=True, advanced=True,
        tooltip="Frames before and after that every frame is averaged with, along the motion, before it is restored. "
        "Takes away noise and flicker, which would come back as invented detail; frames without noise stay nearly as "
        "they are. More is steadier and takes a little more time. 0: off. Nano's own value is 4.",
    )


def steady_result() -> Any:
    return widget(
        io.Int, "steady_result", default=2, min=0, max=4, optional=True, advanced=True,
        tooltip="Frames before and after, within the segment, that every restored frame is averaged with along the "
        "motion. Takes out the flicker of invented detail for a little of its sharpness. 0: off. Nano's own value is "
        "2.",
    )


def fusion() -> Any:
    return widget(
        io.Float, "fusion", default=1.0, min=0.0, max=1.0, step=0.05, advanced=True,
        tooltip="How much the decoder takes from the input's own features: 1 keeps shapes and text as they are, 0 does "
        "without (freer, less faithful). A VAE that corrects its input's pixels, as nano's, keeps these at any value.",
    )


def colour() -> Any:
    return widget(
        io.Combo, "colour", options=list(METHODS), default="wavelet", advanced=True,
        tooltip="Takes the colours from the input. wavelet: local, the safest. adain: mean and contrast per channel. "
        "lab: like adain in a perceptual space. none: colours as decoded.",
    )


def tile(*, halved: bool = True) -> Any:
    """halved: the node goes on in smaller tiles when the memory is full."""
    full = "Halved on its own when memory runs out." if halved else "When memory runs out the sampler stops: lower it."
    return widget(
        io.Int, "tile", default=64, min=0, max=512, step=8, advanced=True,
        tooltip="Side of the latent tiles inside each diffusion step, in latent pixels (1 = 8 output pixels); 0 = no "
        f"tiles. Smaller: less memory, more time. {full}",
    )


def tile_overlap() -> Any:
    return widget(
        io.Int, "tile_overlap", default=16, min=0, max=256, step=8, advanced=True,
        tooltip="Overlap of neighbouring tiles in latent pixels, less than tile. More: safer against seams, more time.",
    )


def precision() -> Any:
    return widget(
        io.Combo, "precision", options=PRECISIONS, default="auto", advanced=True,
        tooltip="Number format of the weights. auto: what your device does best (on a CPU bf16 if it computes in it, "
        "else fp32). bf16 and fp16 halve the memory; fp32 is the most exact; fp8 stores the denoiser in a quarter and "
        "computes in bf16.",
    )


def weight_file(kind: str, folder_hint: str) -> Any:
    names = folders.weight_files(kind)
    return widget(
        io.Combo, "file", options=names, default=names[0],
        tooltip=f"A .safetensors, .ckpt or .pt file from {folder_hint}. The format is recognised by its content.",
    )
