"""What other ways to run the same networks would gain: kernels of attention, pieces of feed-forward layers,
channels-last weights, compiled blocks.

    python -m benchmarks.kernels [--latent 32] [--frames 5] [--dtype float32] [--without-compile]
    python -m benchmarks.kernels --device cuda [--latent 64] [--without-compile]

Full size, random weights: one denoising step (LR encoder and U-Net), one frame of `8 * latent` pixels encoded and
decoded by the VAE. Each way is timed after a warm-up, in processor seconds divided by threads; the first row is how
the pack runs them. Compiling is regional: every residual block and transformer by itself, so equal blocks are
compiled once; the seconds until the first result are printed beside it.

On a GPU (in bfloat16) every kernel of attention is timed with the shapes of five frames, also over time, and the
networks as they are, with channels-last weights, and both as a CUDA graph. Only the blocks of the denoiser are
compiled there, after all other rows.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from setevsr_core.estimate import matmul_rate
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.layers import FeedForward, attend, attend_over_time
from setevsr_core.networks.residual import ResidualBlock
from setevsr_core.networks.spatial_transformer import TransformerBlock
from setevsr_core.networks.temporal_spatial import TemporalSpatialAwareness
from setevsr_core.networks.temporal_transformer import TemporalTransformer
from setevsr_core.networks.temporal_vae import DenseBlock, ResnetBlock, TemporalVAE, VAEConfig
from setevsr_core.precision import automatic_dtype

from . import device_timing
from .denoiser_step import filled, inputs, our_step, seconds_of
from .measuring import begin

BLOCKS = (ResidualBlock, TransformerBlock, TemporalTransformer, TemporalSpatialAwareness, ResnetBlock, DenseBlock)
ATTENTION = {"SeAM, finest level": (5, 4096, 4096, 64), "SeAM, coarsest level": (20, 64, 4096, 64),
             "TSAM, finest level": (5, 4096, 4096, 32)}  # heads, queries, keys, width of a head
GPU_ATTENTION = {
    "itself or SeAM, finest level": ((5, 4096, 5, 64), 4096), "itself or SeAM, second level": ((5, 1024, 10, 64), 1024),
    "SeAM, coarsest level": ((5, 64, 20, 64), 4096), "text, finest level": ((5, 4096, 5, 64), 77),
    "TSAM, finest level": ((5, 4096, 5, 32), 4096), "LR encoder, finest level": ((5, 4096, 4, 64), 4096),
    "over time, finest level": ((5, 4096, 5, 64), None), "over time, second level": ((5, 1024, 10, 64), None),
    "over time in TSAM, finest level": ((5, 4096, 5, 32), None), "VAE, one frame": ((1, 4096, 1, 512), 4096),
}  # fmt: skip
"""Name -> (frames, tokens, heads, width of a head) and tokens attended to; None: to itself in the other frames."""
BACKENDS = {"own choice": None, "flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
            "cuDNN": SDPBackend.CUDNN_ATTENTION, "plain formula": SDPBackend.MATH}  # fmt: skip
REPEAT = 4  # the quickest counts, where a row takes less than a second


def as_it_is(network: nn.Module) -> None:
    """How the pack runs it."""


def channels_last(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled(network: nn.Module) -> None:
    torch._dynamo.config.recompile_limit = 64  # the blocks of one class have many sizes
    for module in network.modules():
        if isinstance(module, BLOCKS):
            module.compile()


def attention_rates(dtype: torch.dtype) -> None:
    """Prints what the fused attention of one frame reaches, against the plain formula and matrix multiplications."""
    rate = matmul_rate("cpu", dtype)
    print("| attention of one frame | fused, GFLOP/s | plain formula, GFLOP/s | fused, share of the matrix rate |")
    print("|---|---|---|---|")
    for name, (heads, queries, keys, width) in ATTENTION.items():
        query, key, value = (torch.randn(1, heads, n, width).to(dtype) for n in (queries, keys, keys))
        reached = []
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
            with sdpa_kernel(backend):
                seconds, _ = seconds_of(lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v))
            reached.append(4 * heads * queries * keys * width / seconds)
        print(f"| {name} | {reached[0] / 1e9:.0f} | {reached[1] / 1e9:.0f} | {reached[0] / rate:.2f} |", flush=True)


def feed_forward_pieces(dtype: torch.dtype) -> None:
    """Prints the feed-forward layers of 5 frames of 64x64 latents, their tokens passing in pieces of other sizes."""
    sizes = {"none": sys.maxsize, **{f"2^{bits}": 2**bits for bits in (20, 21, 22, 23, 24)}}
    sizes["as it is"] = FeedForward.PIECE
    print("\n| feed-forward, seconds by size of a piece | " + " | ".join(sizes) + " |")
    print("|---" * (1 + len(sizes)) + "|")
    for tokens, channels in ((20480, 320), (20480, 160), (5120, 640), (5120, 320), (1280, 1280), (1280, 640)):
        layer = filled(FeedForward(channels, device="meta", dtype=dtype), "cpu")
        x = torch.randn(1, tokens, channels).to(dtype)
        seconds = dict.fromkeys(sizes, math.inf)
        for _ in range(REPEAT):
            for title, size in sizes.items():
                FeedForward.PIECE = size
                seconds[title] = min(seconds[title], seconds_of(lambda layer=layer, x=x: layer(x))[0])
        print(f"| {tokens} tokens, {channels} channels | " + " | ".join(f"{s:.3f}" for s in seconds.values()) + " |",
              flush=True)
    FeedForward.PIECE = sizes["as it is"]


def gpu_attention(device: torch.device, dtype: torch.dtype, shapes: dict[str, Any]) -> None:
    """Prints what each kernel of attention takes and reaches; "-" where it does not take the shapes."""
    print("| attention, ms (TFLOP/s) | " + " | ".join(BACKENDS) + " |\n" + "|---" * (1 + len(BACKENDS)) + "|")
    for name, ((frames, tokens, heads, width), context) in shapes.items():
        length = tokens if context is None else context
        query = torch.randn(frames, tokens, heads * width, device=device).to(dtype)
        key, value = (torch.randn(frames, length, heads * width, device=device).to(dtype) for _ in range(2))
        call = (partial(attend, query, key, value, heads) if context is not None
                else partial(attend_over_time, query, key, value, heads, frames))
        flops = 4 * heads * width * tokens * frames * (frames if context is None else context)
        cells = []
        for backend in BACKENDS.values():
            try:
                with nullcontext() if backend is None else sdpa_kernel(backend):
                    seconds = device_timing.median_seconds(torch.inference_mode()(call), device, calls=5, each=5)
            except RuntimeError:
                cells.append("-")
            else:
                cells.append(f"{1e3 * seconds:.3f} ({flops / seconds / 1e12:.0f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def on_gpu(device: torch.device, dtype: torch.dtype, latent: int, frames: int, compiling: bool) -> None:
    """Prints the tables for a GPU, every row as soon as it is known."""
    rate = device_timing.products_rate(device, dtype)
    print(f"matrix multiplications of this device: {rate / 1e12:.1f} TFLOP/s\n", flush=True)
    gpu_attention(device, dtype, GPU_ATTENTION)
    pieces = works(latent, frames, dtype, device)
    ways = [(name, way) for name in pieces for way in (as_it_is, channels_last)]
    gpu_ways(device, pieces, [*ways, *([(next(iter(pieces)), compiled)] if compiling else [])])


def gpu_ways(device: torch.device, pieces: dict[str, Any], ways: list[tuple[str, Callable[[nn.Module], None]]]) -> None:
    """Prints a row for each (piece of work, way)."""
    print("\n| work | way | eager, ms | CUDA graph, ms | times less | s to the first result |\n"
          "|---|---|---|---|---|---|", flush=True)
    first: dict[str, float] = {}
    for name, way in ways:
        device_timing.restart_peak(device)
        step = torch.inference_mode()(pieces[name](way))
        started = time.perf_counter()
        step()
        device_timing.restart_peak(device)  # waits for the device
        start = time.perf_counter() - started
        eager = device_timing.median_seconds(step, device)
        graph = device_timing.captured_seconds(step, device)
        first.setdefault(name, min(eager, graph))
        print(f"| {name} | {way.__name__.replace('_', ' ')} | {1e3 * eager:.2f} | {1e3 * graph:.2f} "
              f"| {first[name] / min(eager, graph):.2f} | {start:.1f} |", flush=True)


def works(latent: int, frames: int, dtype: torch.dtype, device: Any = "cpu"
          ) -> dict[str, Callable[[Callable[[nn.Module], None]], Any]]:
    """Name of a piece of work -> function of a way: the step to time."""

    def denoise(way: Callable[[nn.Module], None]) -> Any:
        network = filled(Denoiser(DenoiserConfig.sd21(), device="meta", dtype=dtype), device)
        way(network)
        return our_step(network, inputs(frames, latent, device, dtype))

    def vae(way: Callable[[nn.Module], None]) -> tuple[Any, torch.Tensor]:
        network = filled(TemporalVAE(VAEConfig.sd21(), device="meta", dtype=dtype), device)
        way(network)
        return network, torch.rand(1, 3, 8 * latent, 8 * latent, device=device).to(dtype) * 2 - 1

    def encode(way: Callable[[nn.Module], None]) -> Any:
        network, pixels = vae(way)
        return lambda: network.encode(pixels)

    def decode(way: Callable[[nn.Module], None]) -> Any:
        network, pixels = vae(way)
        latents, _, features = network.encode(pixels)
        return lambda: network.decode(latents, features, num_frames=1)

    return {f"denoising step, {frames} frames": denoise, "VAE encodes a frame": encode, "VAE decodes a frame": decode}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent", type=int, help="default: 32, on a GPU 64")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"),
                        help="default: bfloat16 where the device computes in it")
    parser.add_argument("--without-compile", action="store_true")
    parser.add_argument("--device", default="cpu", help="cuda: the tables of a GPU (default: cpu)")
    args = parser.parse_args(arguments)
    device = device_timing.chosen(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else automatic_dtype(device)
    latent = args.latent or (32 if device.type == "cpu" else 64)
    ways = {"as it is": as_it_is, "channels last": channels_last, "compiled blocks": compiled}
    if args.without_compile:
        del ways["compiled blocks"]
    begin(f"{latent}x{latent} latents, {args.frames} frames", dtype=dtype, device=device, threads=args.threads)
    if device.type != "cpu":
        on_gpu(device, dtype, latent, args.frames, not args.without_compile)
        return
    attention_rates(dtype)
    feed_forward_pieces(dtype)
    print("\n| work | way | s | times less | s to the first result |\n|---|---|---|---|---|")
    for name, prepare in works(latent, args.frames, dtype).items():
        first = 0.0
        for title, way in ways.items():
            step = prepare(way)
            started = time.perf_counter()
            step()
            start = time.perf_counter() - started
            seconds, _ = seconds_of(step)
            first = first or seconds
            print(f"| {name} | {title} | {seconds:.2f} | {first / seconds:.2f} | {start:.1f} |", flush=True)
            del step
            gc.collect()


if __name__ == "__main__":
    main()
