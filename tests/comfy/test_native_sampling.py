"""Native sampling in a running ComfyUI: lists of segments through SamplerCustomAdvanced and KSampler, over HTTP."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tools.client import Client, Prompt, nodes_of, set_input
from tools.comfyui import ComfyUIServer

from .conftest import Finished, Material
from .graphs import REPOSITORY

pytestmark = pytest.mark.comfy

COMPOSED = REPOSITORY / "workflows" / "composed.json"
SEED, STEPS = 3, 4  # four steps of the scheduler "normal" have whole timesteps, as our own loop's


def own_graph(prompt: Prompt) -> Prompt:
    """The composed graph with Denoise at settings that a native sampler can be compared with."""
    prompt = copy.deepcopy(prompt)
    set_input(prompt, "SeTeVSRDenoise", seed=SEED, steps=STEPS, sampler="ddim", strength=1.0, tile=0, tile_overlap=0)
    set_input(prompt, "SeTeVSRSplitSegments", scene_cuts="off")
    return prompt


def native_graph(prompt: Prompt, sampler: str) -> Prompt:
    """The same graph with Denoise exchanged for a native sampler and what belongs to it."""
    prompt = own_graph(prompt)
    (place,) = nodes_of(prompt, "SeTeVSRDenoise")
    old = prompt.pop(place)["inputs"]
    more: dict[str, tuple[str, dict[str, Any]]] = {
        "model": ("SeTeVSRDenoiserModel", {"denoiser": old["denoiser"]}),
        "cond": ("SeTeVSRSamplingConditioning", {
            "model": ["model", 0], "latents": old["latents"], "semantics": old["semantics"], "tile": 0,
            "tile_overlap": 0,
        }),
        place: ("SeTeVSRJoinLatents", {"latents": ["sample", 0]}),
    }  # fmt: skip
    if sampler == "KSampler":
        more["sample"] = ("KSampler", {
            "model": ["model", 0], "positive": ["cond", 0], "negative": ["cond", 1], "latent_image": ["cond", 2],
            "seed": SEED, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        })  # fmt: skip
    else:
        schedule = {"model": ["model", 0], "scheduler": "normal", "steps": STEPS, "denoise": 1.0}
        more |= {
            "noise": ("SeTeVSRFrameNoise", {"seed": SEED}),
            "select": ("KSamplerSelect", {"sampler_name": "euler"}),
            "sigmas": ("BasicScheduler", schedule),
            "guider": ("BasicGuider", {"model": ["model", 0], "conditioning": ["cond", 0]}),
            "sample": ("SamplerCustomAdvanced", {
                "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["select", 0], "sigmas": ["sigmas", 0],
                "latent_image": ["cond", 2],
            }),
        }  # fmt: skip
    return {**prompt, **{key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in more.items()}}


def saved_latents(server: ComfyUIServer, name: str) -> Tensor:
    """What SaveLatent wrote under a name."""
    (path,) = server.output_folder.glob(f"{name}*.latent")
    return load_file(path)["latent_tensor"]


def test_sampler_custom_advanced_makes_the_same_latents(
    server: ComfyUIServer, client: Client, prepared: Callable[[Path], Prompt]
) -> None:
    """With Frame Noise, euler and the scheduler normal, in four overlapping segments: latents, not encoded video."""
    prompt = own_graph(prepared(COMPOSED))
    native = native_graph(prepared(COMPOSED), "SamplerCustomAdvanced")
    (place,) = nodes_of(prompt, "SeTeVSRDenoise")
    both = {**{key: node for key, node in native.items() if key not in prompt}, **prompt, "join": native[place]}
    for key in nodes_of(both, "SaveVideo") + nodes_of(both, "PreviewImage"):
        del both[key]
    set_input(both, "SeTeVSRLoadPreset", precision="fp32")
    for name, source in (("own", place), ("native", "join")):
        inputs = {"samples": [source, 0], "filename_prefix": name}
        both[f"save_{name}"] = {"class_type": "SaveLatent", "inputs": inputs}
    run = client.run(both)
    assert run.status == "success", run.error
    own, theirs = saved_latents(server, "own"), saved_latents(server, "native")
    assert own.shape == theirs.shape and len(own) > 12  # overlapping segments: more latents than frames
    assert (own - theirs).abs().max() < 1e-3 * own.std()


def test_ksampler_restores_the_clip(
    prepared: Callable[[Path], Prompt], run_graph: Callable[[Prompt], Finished], material: Material
) -> None:
    """The whole way to a video, with KSampler's own noise."""
    done = run_graph(native_graph(prepared(COMPOSED), "KSampler"))
    assert done.run.status == "success", done.run.error
    (video,) = done.videos
    assert video.frames.shape == material.reference.frames.shape
    assert abs(video.frames.mean() - material.reference.frames.mean()) < 10
    assert video.frames.std(axis=(1, 2)).min() > 5
