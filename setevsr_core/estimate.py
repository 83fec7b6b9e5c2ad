"""Memory and time of a run before it starts: operations and bytes counted from the networks, speed measured now.

Operations and activation bytes are exact (`workload.count`). How much of a machine's matrix-multiplication rate each
stage reaches is a measured law, kept in estimate_law.json and written by `python -m benchmarks.estimate_law --write`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SettingsError
from .networks.semantic_attention import SEMANTIC_CHANNELS
from .networks.semantic_encoder import STRIDE as SEMANTIC_STRIDE
from .sampling.samplers import make_sampler
from .sampling.tiles import latent_grid, plan_tiles
from .segment_run import FEATURE_BUDGET
from .settings import RestoreSettings
from .vae_tiles import SMALLEST, bytes_per_latent, uses_features
from .video.resize import target_size
from .workload import Work, count, law

STAGES = {"encode": "vae", "semantics": "encoder", "denoise": "denoiser", "decode": "vae"}
"""The stages in their order, and the network of each."""
MEASURED_SECONDS = 0.3
CLIP_TOKENS = 77  # of a prompt, where a denoiser does not store the empty one


@dataclass(frozen=True)
class StageEstimate:
    """One stage of the whole run. flops: of all its calls; peak_bytes: beside the weights, as the memory's law says;
    tiled_bytes: with the VAE in its smallest tiles; seconds: None without a measured speed; weight_bytes: of its
    network.
    """

    flops: float
    peak_bytes: float
    tiled_bytes: float
    weight_bytes: float
    seconds: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What a run will need. segments: how many; size: (H, W) of the result."""

    stages: dict[str, StageEstimate]
    segments: int
    size: tuple[int, int]
    frames: int

    @property
    def weight_bytes(self) -> float:
        """All networks at once."""
        return sum({STAGES[name]: stage.weight_bytes for name, stage in self.stages.items()}.values())

    @property
    def device_bytes(self) -> float:
        """With all networks on the device."""
        return self.weight_bytes + max(s.peak_bytes for s in self.stages.values())

    @property
    def least_bytes(self) -> float:
        """With one network on the device at a time, as ComfyUI does when memory is short, and the VAE in tiles."""
        return max(s.weight_bytes + s.tiled_bytes for s in self.stages.values())

    @property
    def result_bytes(self) -> float:
        """The result as one float32 tensor; a video that is streamed never holds it."""
        return 12.0 * self.frames * self.size[0] * self.size[1]

    @property
    def seconds(self) -> float | None:
        times = [s.seconds for s in self.stages.values()]
        return None if any(t is None for t in times) else sum(t for t in times if t is not None)


def segment_count(frames: int, length: int, overlap: int) -> int:
    """How many segments cover a video of one scene."""
    return 1 if frames <= length else 1 + math.ceil((frames - length) / (length - overlap))


def estimate(
    networks: Mapping[str, nn.Module | None], height: int, width: int, frames: int, settings: RestoreSettings, *,
    rate: float | Mapping[str, float] | None = None, stored: Mapping[str, float] | None = None,
) -> Estimate:  # fmt: skip
    """What restoring `frames` frames of height x width takes.

    networks: "denoiser", "vae" and "encoder" (or None) on the meta device, in the type they would compute in.
    rate: matrix-multiplication rate of the device in that type, operations a second (`matmul_rate`), one for all or by
    network; None leaves the time open. stored: bytes of the weights, by network, where they are kept in another type
    than they compute in. Scene cuts add segments that are not counted.
    """
    if frames < 1 or height < 1 or width < 1:
        raise SettingsError(f"an estimate needs at least one frame and pixel, got {frames} frames of {width}x{height}")
    denoiser: Any = networks.get("denoiser")
    encoder: Any = networks.get("encoder") if denoiser is not None and denoiser.config.semantic_levels else None
    vae: Any = networks["vae"]
    if vae is None:
        raise SettingsError("an estimate needs the VAE")
    size = target_size(height, width, settings.scale)
    length = min(settings.length, frames)
    segments = segment_count(frames, settings.length, settings.overlap)
    decode, feature_bytes = decode_work(vae, size, length)
    again = length * segments if uses_features(vae.config, settings.fusion) and feature_bytes > FEATURE_BUDGET else 0
    works = {"encode": encode_work(vae, size).times(frames + again), "decode": decode.times(segments)}
    if settings.steps and denoiser is not None:
        steps = len(make_sampler(settings.sampler, settings.steps, settings.strength).timesteps)
        step, tiles = step_work(denoiser, encoder, latent_grid(size, vae.config.downscale), length, settings)
        works["denoise"] = step.times(tiles * steps * segments)
        if encoder is not None:
            works["semantics"] = semantics_work(encoder, height, width).times(frames)
    weights = {name: weight_bytes(network) for name, network in networks.items() if network is not None}
    held = {**weights, **(stored or {})}
    rates = rate if isinstance(rate, Mapping) else dict.fromkeys(networks, rate)
    efficiency, memory_factor = law()["efficiency"], law()["memory_factor"]
    tiled = {"encode": tiled_bytes(vae, size, 1), "decode": tiled_bytes(vae, size, length)}
    stages = {
        name: StageEstimate(
            works[name].flops, peak := memory_factor * works[name].peak_bytes, min(peak, tiled.get(name, math.inf)),
            held[network],
            None if (speed := rates[network]) is None else works[name].flops / (speed * efficiency[name]),
        )
        for name, network in STAGES.items() if name in works
    }  # fmt: skip
    return Estimate(stages, segments, size, frames)


def meta(module: Any, *shape: int) -> Tensor:
    """A tensor without data in the type of a network."""
    return torch.empty(shape, device="meta", dtype=module.dtype)


def encode_work(vae: Any, size: tuple[int, int]) -> Work:
    """Encoding one frame of the enlarged size."""
    grid = latent_grid(size, vae.config.downscale)
    return count(partial(vae.encode, meta(vae, 1, 3, *(side * vae.config.downscale for side in grid))))


def decode_work(vae: Any, size: tuple[int, int], length: int) -> tuple[Work, int]:
    """Decoding one segment with the features of its frames, and the bytes of these; beyond `FEATURE_BUDGET` they are
    computed once more instead of being kept.
    """
    grid = latent_grid(size, vae.config.downscale)
    with torch.no_grad():
        features = vae.encode(meta(vae, length, 3, *(side * vae.config.downscale for side in grid)))[2]
    latents = meta(vae, length, vae.config.latent_channels, *grid)
    work = count(lambda: vae.decode(latents, features, num_frames=length, fusion=1.0))
    feature_bytes = sum(feature.nbytes for feature in features)
    return Work(work.flops, work.peak_bytes + feature_bytes + _pixel_bytes(size, length)), feature_bytes


def tiled_bytes(vae: Any, size: tuple[int, int], length: int) -> float:
    """Most bytes of encoding or decoding `length` frames in the smallest tiles, as the memory's law says, with the
    pixels of whole frames.
    """
    return bytes_per_latent(vae.config, vae.dtype, length) * SMALLEST**2 + _pixel_bytes(size, length)


def _pixel_bytes(size: tuple[int, int], length: int) -> int:
    """What is decoded, and the fp32 pictures made of it."""
    return 2 * 4 * 3 * length * size[0] * size[1]


def step_work(
    denoiser: Any, encoder: Any, grid: tuple[int, int], length: int, settings: RestoreSettings
) -> tuple[Work, int]:
    """One step on one tile of a segment, and the number of tiles. encoder: None for a step without semantics."""
    tiles = plan_tiles(*grid, settings.tile, settings.tile_overlap)
    shape = (length, denoiser.config.latent_channels, tiles[0].height, tiles[0].width)
    times = torch.zeros(length, device="meta", dtype=torch.long)
    tokens = CLIP_TOKENS if denoiser.empty_text is None else denoiser.empty_text.shape[1]
    text = denoiser.project_text(meta(denoiser, 1, tokens, denoiser.config.context_dim))
    side = None if encoder is None else encoder.config.image_size // SEMANTIC_STRIDE
    semantics = denoiser.project_semantics(
        None if side is None else meta(denoiser, length, SEMANTIC_CHANNELS, side, side)
    )

    def step() -> Tensor:
        maps = denoiser.encode_lr(meta(denoiser, *shape), times)
        return denoiser(meta(denoiser, *shape), times, num_frames=length, lr_maps=maps, text=text, semantics=semantics)

    return count(step), len(tiles)


def semantics_work(encoder: Any, height: int, width: int) -> Work:
    """Reading one low-resolution frame."""
    return count(lambda: encoder(torch.empty(1, height, width, 3, device="meta")))


def weight_bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.state_dict().values())


def matmul_rate(device: Any, dtype: torch.dtype) -> float:
    """Operations a second of large matrix multiplications on a device, measured for about `MEASURED_SECONDS`.

    On a CPU the processor's own time counts, so a machine that is busy with something else shows what it could do.
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    side, threads = (1024, torch.get_num_threads()) if on_cpu else (8192, 1)
    clock = time.process_time if on_cpu else time.perf_counter
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, total = 0.0, 0.0
    for run in range(1000):
        started = clock()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = max(clock() - started, 1e-9) / threads
        total += took
        if run:  # the first one also sets up the library
            best = max(best, 2 * side**3 / took)
            if total > MEASURED_SECONDS:
                break
    return best


def networks_on_meta(
    preset: str | Path, dtype: torch.dtype | Mapping[str, torch.dtype]
) -> tuple[dict[str, nn.Module | None], dict[str, Any]]:
    """The networks of a preset without their weights, and the preset's own settings. dtype: of all, or by network."""
    from .checkpoints import load_preset

    loaded = load_preset(preset, device="meta")
    networks: dict[str, Any] = {"denoiser": loaded.denoiser, "vae": loaded.vae, "encoder": loaded.encoder}
    for name, network in networks.items():
        if network is not None:
            network.dtype = dtype if isinstance(dtype, torch.dtype) else dtype[name]
            network.to(network.dtype)
    return networks, loaded.defaults


def full_size_on_meta(dtype: torch.dtype, sam2: str = "large") -> dict[str, nn.Module | None]:
    """The full-size networks: SD 2.1's U-Net with every module of SeTe-VSR, MGLD-VSR's VAE, a SAM 2 encoder."""
    from .networks.denoiser import Denoiser, DenoiserConfig
    from .networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig
    from .networks.temporal_vae import TemporalVAE, VAEConfig

    # Hiera computes numbers while it is built, so it is built first and emptied then.
    encoder = SemanticEncoder(SemanticEncoderConfig.sam2(sam2), dtype=dtype).to("meta")
    return {
        "denoiser": Denoiser(DenoiserConfig.sd21(), dtype=dtype, device="meta").requires_grad_(False),
        "vae": TemporalVAE(VAEConfig.sd21(), dtype=dtype, device="meta").requires_grad_(False),
        "encoder": encoder.requires_grad_(False),
    }


def describe(found: Estimate) -> str:
    """The estimate as a few lines for a person."""
    gib = 2**30
    lines = [
        f"{found.frames} frames become {found.size[1]}x{found.size[0]}, in {found.segments} segments",
        f"memory of the device: {found.device_bytes / gib:.1f} GB, at least {found.least_bytes / gib:.1f} GB "
        f"with one network at a time and the VAE in tiles (weights {found.weight_bytes / gib:.1f} GB)",
        f"main memory for the result as IMAGE: {found.result_bytes / gib:.1f} GB (a streamed video: none of it)",
    ]
    for name, stage in found.stages.items():
        took = "" if stage.seconds is None else f", {stage.seconds / 60:.1f} min"
        lines.append(f"  {name}: {stage.flops / 1e12:.1f} TFLOP, {stage.peak_bytes / gib:.2f} GB{took}")
    if found.seconds is not None:
        lines.append(f"time: about {found.seconds / 60:.1f} minutes")
    return "\n".join(lines)
