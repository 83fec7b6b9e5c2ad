"""What other ways to run the same networks would gain: kernels of attention, pieces of feed-forward layers,
channels-last weights, compiled blocks.

    python -m benchmarks.kernels [--latent 32] [--frames 5] [--dtype float32] [--without-compile]

Full size, random weights: one denoising step (LR encoder and U-Net), one frame of `8 * latent` pixels encoded and
decoded by the VAE. Each way is timed after a warm-up, in processor seconds divided by threads; the first row is how
the pack runs them. Compiling is regional: every residual block and transformer by itself, so equal blocks are
compiled once; the seconds until the first result are printed beside it.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from setevsr_core.estimate import matmul_rate
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.layers import FeedForward
from setevsr_core.networks.residual import ResidualBlock
from setevsr_core.networks.spatial_transformer import TransformerBlock
from setevsr_core.networks.temporal_spatial import TemporalSpatialAwareness
from setevsr_core.networks.temporal_transformer import TemporalTransformer
from setevsr_core.networks.temporal_vae import DenseBlock, ResnetBlock, TemporalVAE, VAEConfig
from setevsr_core.precision import automatic_dtype

from .denoiser_step import filled, inputs, our_step, seconds_of

BLOCKS = (ResidualBlock, TransformerBlock, TemporalTransformer, TemporalSpatialAwareness, ResnetBlock, DenseBlock)
ATTENTION = {"SeAM, finest level": (5, 4096, 4096, 64), "SeAM, coarsest level": (20, 64, 4096, 64),
             "TSAM, finest level": (5, 4096, 4096, 32)}  # heads, queries, keys, width of a head
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


def works(latent: int, frames: int, dtype: torch.dtype) -> dict[str, Callable[[Callable[[nn.Module], None]], Any]]:
    """Name of a piece of work -> function of a way: the step to time."""

    def denoise(way: Callable[[nn.Module], None]) -> Any:
        network = filled(Denoiser(DenoiserConfig.sd21(), device="meta", dtype=dtype), "cpu")
        way(network)
        return our_step(network, inputs(frames, latent, "cpu", dtype))

    def vae(way: Callable[[nn.Module], None]) -> tuple[Any, torch.Tensor]:
        network = filled(TemporalVAE(VAEConfig.sd21(), device="meta", dtype=dtype), "cpu")
        way(network)
        return network, torch.rand(1, 3, 8 * latent, 8 * latent).to(dtype) * 2 - 1

    def encode(way: Callable[[nn.Module], None]) -> Any:
        network, pixels = vae(way)
        return lambda: network.encode(pixels)

    def decode(way: Callable[[nn.Module], None]) -> Any:
        network, pixels = vae(way)
        latents, _, features = network.encode(pixels)
        return lambda: network.decode(latents, features, num_frames=1)

    return {f"denoising step, {frames} frames": denoise, "VAE encodes a frame": encode, "VAE decodes a frame": decode}


@torch.no_grad()
def main() -> None:
    native = str(automatic_dtype("cpu")).removeprefix("torch.")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=native,
                        help="default: bfloat16 where the processor computes in it")
    parser.add_argument("--without-compile", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    ways = {"as it is": as_it_is, "channels last": channels_last, "compiled blocks": compiled}
    if args.without_compile:
        del ways["compiled blocks"]
    print(f"{args.latent}x{args.latent} latents, {args.dtype}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads\n")
    attention_rates(getattr(torch, args.dtype))
    feed_forward_pieces(getattr(torch, args.dtype))
    print("\n| work | way | s | times less | s to the first result |\n|---|---|---|---|---|")
    for name, prepare in works(args.latent, args.frames, getattr(torch, args.dtype)).items():
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
