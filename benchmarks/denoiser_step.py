"""One denoising step at full size against a plain Stable Diffusion 2.1 U-Net: operations, share of every module, time.

    python -m benchmarks.denoiser_step [--latent 64] [--frames 5] [--threads N] [--dtype float32] [--repeat 3]
    python -m benchmarks.denoiser_step --count-only
    python -m benchmarks.denoiser_step --device cuda [--segments 1 2 4]
    python -m benchmarks.denoiser_step --device cuda --profile

Operations are counted on tensors without data. Times are of random weights (they take about 4 GB in bfloat16), one
step after a warm-up, in processor seconds divided by threads, so that a busy machine disturbs them little. Each row
comes from a process of its own, whose peak of memory is printed beside it; with --repeat the rows take turns and the
quickest step of each counts, so that a machine that slows down for a while does not decide between them. The plain
U-Net is diffusers' UNet2DConditionModel with SD 2.1's sizes, on the same latents as a batch. The LR encoder, which runs
at every step, and the keys and values of text and semantics, which are projected once a segment, are timed by
themselves too.

On a GPU (in bfloat16) all rows come from this process: the median of ten steps, launched one operation after the other
and as one CUDA graph, each with latents of its own, and the peak of the allocator, weights included. --segments puts
so many segments of `--frames` frames into one batch. --profile prints where the GPU's time of a whole step goes.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from setevsr_core.estimate import matmul_rate
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.precision import automatic_dtype
from setevsr_core.workload import count

from . import device_timing, process_memory
from .measuring import begin

TOKENS, GRID = 77, 64
MODULES = {
    "semantic_attention": "SeAM", "temporal_transformer": "temporal transformers", "temporal_spatial": "TSAM",
    "spade": "SPADE", "temporal_convs": "baseline temporal convolutions",
    "temporal_attentions": "baseline temporal attention",
}  # fmt: skip
PLAIN, FULL = "plain SD 2.1, diffusers", "SeTe-VSR"
LR_ENCODER, KEYS = "LR encoder, in every step", "keys and values of text and semantics, once a segment"
NEW = {"semantic_levels": (), "temporal_sites": "none", "temporal_spatial_sites": "none"}


def denoiser_settings() -> dict[str, DenoiserConfig]:
    return {FULL: DenoiserConfig.sd21(), "lighter": DenoiserConfig.sd21().lighter(),
            "without the new modules": DenoiserConfig.sd21(**NEW)}


def plain_unet(device: str, dtype: torch.dtype) -> Any:
    """SD 2.1's U-Net as diffusers builds it."""
    import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), attention_head_dim=(5, 10, 20, 20), use_linear_projection=True,
            cross_attention_dim=1024,
        )  # fmt: skip
    return filled(unet.to(dtype), device)


def filled(network: Any, device: str) -> Any:
    """The network with small random weights; without any on the meta device."""
    network = network.requires_grad_(False).eval()
    if device == "meta":
        return network
    network = network.to_empty(device=device)
    for value in network.parameters():
        value.normal_(0.0, 0.02)
    return network


def inputs(frames: int, side: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    times = torch.full((frames,), 500, device=device)
    return {"latents": random(frames, 4, side, side), "lr": random(frames, 4, side, side), "times": times,
            "text": random(1, TOKENS, 1024), "semantics": random(frames, 256, GRID, GRID)}


def plain_step(unet: Any, data: dict[str, torch.Tensor]) -> Callable[[], Any]:
    text = data["text"].expand(len(data["latents"]), -1, -1)
    return lambda: unet(data["latents"], data["times"], encoder_hidden_states=text)


def our_step(network: Any, data: dict[str, torch.Tensor], *, cached: bool = True, segments: int = 1
             ) -> Callable[[], Any]:
    """LR encoder and U-Net as the sampling loop calls them. cached: keys and values are projected once, outside."""
    frames, config = len(data["latents"]) // segments, network.config
    keys: dict[str, Any] = {"text": data["text"], "semantics": data["semantics"] if config.semantic_levels else None}
    if cached:
        keys = {"text": network.project_text(keys["text"]), "semantics": network.project_semantics(keys["semantics"])}

    def step() -> Any:
        maps = network.encode_lr(data["lr"], data["times"])
        return network(data["latents"], data["times"], num_frames=frames, lr_maps=maps, **keys)

    return step


def parts(network: Any, data: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """What is timed by itself, of a step and beside it."""
    return {LR_ENCODER: lambda: network.encode_lr(data["lr"], data["times"]),
            KEYS: lambda: (network.project_text(data["text"]), network.project_semantics(data["semantics"]))}


def keys_saved(step: float, keys: float, unit: str) -> str:
    """A sentence on what projecting keys and values once a segment saves; seconds of a step and of projecting them."""
    factor = 1e3 if unit == "ms" else 1.0
    return (f"keys and values projected at every step would make a step {factor * (step + keys):.2f} {unit} instead of "
            f"{factor * step:.2f} {unit}: {100 * keys / (step + keys):.1f} % are saved")


def module_shares(network: Any, data: dict[str, torch.Tensor]) -> dict[str, float]:
    """Operations of every added module in one step, by hooks around each."""
    spent = dict.fromkeys([*MODULES.values(), "LR encoder"], 0.0)
    hooked: dict[str, list[tuple[nn.Module, Any]]] = {}

    def remember(title: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, result: Any) -> None:
            hooked.setdefault(title, []).append((module, (arguments, keywords)))

        return hook

    handles = []
    for name, module in network.named_modules():
        title = MODULES.get(name.split(".")[-1]) or MODULES.get(name.split(".")[-2] if "." in name else "")
        if title and not isinstance(module, nn.ModuleList):
            handles.append(module.register_forward_hook(remember(title), with_kwargs=True))
    our_step(network, data)()
    for handle in handles:
        handle.remove()
    for title, calls in hooked.items():
        outer = [(m, a) for m, a in calls if not any(m is not o and m in set(o.modules()) for o, _ in calls)]
        spent[title] += sum(count(lambda m=m, a=a: m(*a[0], **a[1])).flops for m, a in outer)
    spent["LR encoder"] = count(lambda: network.encode_lr(data["lr"], data["times"])).flops
    return {title: flops for title, flops in spent.items() if flops}


def seconds_of(step: Callable[[], Any]) -> tuple[float, float]:
    """(processor seconds by thread, wall seconds) of a call after a warm-up."""
    step()
    wall, work = time.perf_counter(), time.process_time()
    step()
    return (time.process_time() - work) / torch.get_num_threads(), time.perf_counter() - wall


@torch.no_grad()
def time_step(config: DenoiserConfig | None, frames: int, latent: int, dtype: torch.dtype
              ) -> tuple[float, float, float, dict[str, float]]:
    """Processor seconds by thread, wall seconds and the peak of memory in bytes, and processor seconds by thread of the
    parts; config None: the plain U-Net, without parts.
    """
    data = inputs(frames, latent, "cpu", dtype)
    if config is None:
        return *seconds_of(plain_step(plain_unet("cpu", dtype), data)), process_memory.peak(), {}
    network = filled(Denoiser(config, device="meta", dtype=dtype), "cpu")
    work, wall = seconds_of(our_step(network, data))
    peak = process_memory.peak()
    return work, wall, peak, {title: seconds_of(call)[0] for title, call in parts(network, data).items()}


@torch.no_grad()
def on_gpu(device: torch.device, dtype: torch.dtype, settings: dict[str, DenoiserConfig], frames: int, latent: int,
           segments: Sequence[int] = (1,), calls: int = 10) -> None:
    """Prints the rows for a GPU, each as soon as it is known: all with the first number of segments, the last of
    `settings` with the others too.
    """
    rate = device_timing.products_rate(device, dtype)
    print(f"matrix multiplications of this device: {rate / 1e12:.1f} TFLOP/s\n\n"
          "| step | segments | TFLOP | eager, ms | CUDA graph, ms | times plain | share of the matrix rate, eager "
          "| CUDA graph | peak memory, GB |\n" + "|---" * 9 + "|", flush=True)
    empty = inputs(frames, latent, "meta", dtype)
    plain = 0.0  # seconds of a segment
    network: Any = None
    spent, alone = dict.fromkeys((LR_ENCODER, KEYS), math.nan), math.nan  # seconds of the parts, and of their step
    for title, config in {PLAIN: None, **settings}.items():
        network = plain_unet("meta", dtype) if config is None else Denoiser(config, device="meta", dtype=dtype)
        network.requires_grad_(False)
        flops = count(plain_step(network, empty) if config is None else our_step(network, empty)).flops
        network = filled(network, str(device))
        for number in segments if title == [*settings][-1] else segments[:1]:
            device_timing.restart_peak(device)
            data = inputs(number * frames, latent, str(device), dtype)
            step = torch.inference_mode()(
                plain_step(network, data) if config is None else our_step(network, data, segments=number))
            anew = partial(draw_anew, data)
            eager = device_timing.median_seconds(step, device, calls=calls, between=anew)
            peak = device_timing.peak(device)
            graph = device_timing.captured_seconds(step, device, calls=calls, between=anew)
            quicker = min(eager, graph) / number
            plain = plain or quicker
            shares = [number * flops / seconds / rate for seconds in (eager, graph)]
            print(f"| {title} | {number} | {number * flops / 1e12:.3f} | {1e3 * eager:.2f} | {1e3 * graph:.2f} "
                  f"| {quicker / plain:.2f} | {shares[0]:.2f} | {shares[1]:.2f} | {peak / 2**30:.2f} |", flush=True)
            result = step()
            values = getattr(result, "sample", result)
            if not values.isfinite().all() or not values.std() > 0:
                print(f"{title}: the step gives values that are not finite, or all the same", flush=True)
            if title == FULL and number == segments[0]:
                spent = {part: device_timing.median_seconds(torch.inference_mode()(call), device, calls=calls)
                         for part, call in parts(network, data).items()}
                alone = eager
            del step, result, values
    print(f"\n| of {FULL} | eager, ms | times plain |\n|---|---|---|")
    for part, seconds in spent.items():
        print(f"| {part} | {1e3 * seconds:.2f} | {seconds / plain:.2f} |")
    print(f"\n{keys_saved(alone, spent[KEYS], 'ms')}", flush=True)


def draw_anew(data: dict[str, torch.Tensor]) -> None:
    """Other noise and other low-resolution latents in the same memory."""
    for name in ("latents", "lr"):
        data[name].normal_()


@torch.no_grad()
def print_profile(device: torch.device, dtype: torch.dtype, config: DenoiserConfig, frames: int, latent: int) -> None:
    """Prints what one step spends on the device: by kernel, and by the operation that launched it."""
    network = filled(Denoiser(config, device="meta", dtype=dtype), str(device))
    step = torch.inference_mode()(our_step(network, inputs(frames, latent, str(device), dtype)))
    kernels, operations = device_timing.profiled(step, device)
    for title, rows, shown in (("kernel", kernels, 25), ("operation", operations, 20)):
        total = sum(seconds for _, _, seconds in rows)
        launches = sum(number for _, number, _ in rows)
        print(f"\n{title}s of one step: {1e3 * total:.2f} ms, {launches} calls\n\n| ms | share | calls | {title} |\n"
              "|---|---|---|---|")
        for name, number, seconds in rows[:shown]:
            print(f"| {1e3 * seconds:.3f} | {100 * seconds / total:.1f} % | {number} | {name[:110]} |")
    sys.stdout.flush()


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"),
                        help="default: bfloat16 where the device computes in it")
    parser.add_argument("--repeat", type=int, default=1,
                        help="steps of each row, by turns; the quickest counts (GPU: the median of ten times as many)")
    parser.add_argument("--count-only", action="store_true", help="operations only, no times")
    parser.add_argument("--device", default="cpu", help="cuda: the table of a GPU (default: cpu)")
    parser.add_argument("--segments", type=int, nargs="+", default=[1], help="GPU: segments in one batch, one row each")
    parser.add_argument("--profile", action="store_true", help="GPU: where the time of a whole step goes")
    args = parser.parse_args(arguments)
    device = device_timing.chosen(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else automatic_dtype(device)
    if device.type != "cpu":
        settings = dict(reversed(denoiser_settings().items()))
        begin(f"{args.frames} frames of {args.latent}x{args.latent} latents a segment", dtype=dtype, device=device)
        if args.profile:
            print_profile(device, dtype, settings["SeTe-VSR"], args.frames, args.latent)
        else:
            on_gpu(device, dtype, settings, args.frames, args.latent, args.segments, 10 * args.repeat)
        return
    size = (args.frames, args.latent)
    begin(f"{args.frames} frames of {args.latent}x{args.latent} latents", dtype=dtype, threads=args.threads)
    empty = inputs(*size, "meta", dtype)
    full = Denoiser(DenoiserConfig.sd21(), device="meta", dtype=dtype).requires_grad_(False)
    unet = plain_unet("meta", dtype)
    plain_flops = count(plain_step(unet, empty)).flops
    cached, uncached = (count(our_step(full, empty, cached=c)).flops for c in (True, False))
    print("| part of one step | TFLOP | share |\n|---|---|---|")
    shares = module_shares(full, empty)
    rest = cached - sum(shares.values())
    for title, flops in {"SD 2.1's own layers": rest, **shares}.items():
        print(f"| {title} | {flops / 1e12:.3f} | {100 * flops / cached:.1f} % |")
    print(f"| all | {cached / 1e12:.3f} | 100 % |")
    print(f"| plain SD 2.1 U-Net of diffusers | {plain_flops / 1e12:.3f} | {100 * plain_flops / cached:.1f} % |")
    print(f"\nkeys and values of text and semantics, projected once instead of every step: "
          f"{(uncached - cached) / 1e12:.3f} TFLOP, {100 * (uncached - cached) / uncached:.1f} % of a step", flush=True)
    print("\n| setting | TFLOP | times plain |\n|---|---|---|")
    settings = denoiser_settings()
    flops = {}
    for title, config in settings.items():
        network = Denoiser(config, device="meta", dtype=dtype).requires_grad_(False)
        flops[title] = count(our_step(network, empty)).flops
        print(f"| {title} | {flops[title] / 1e12:.3f} | {flops[title] / plain_flops:.2f} |", flush=True)
    if args.count_only:
        return
    rate = matmul_rate("cpu", dtype)
    print(f"\nmatrix multiplications of this machine: {rate / 1e9:.0f} GFLOP/s\n")
    print("| step | TFLOP | processor s by thread | wall s | times plain | share of the matrix rate "
          "| peak memory, GB |")
    print("|---|---|---|---|---|---|---|")
    flops[PLAIN] = plain_flops
    rows: dict[str, list[tuple[float, float, float, dict[str, float]]]]
    rows = {PLAIN: [], **{title: [] for title in reversed(settings)}}
    for _ in range(args.repeat):
        for title, seen in rows.items():
            seen.append(process_memory.in_own_process(args.threads, time_step, settings.get(title), *size, dtype))
            print(f"{title}: {seen[-1][0]:.2f} s", file=sys.stderr, flush=True)
    best = {title: min(seen, key=lambda row: row[0]) for title, seen in rows.items()}
    first = best[PLAIN][0]
    for title, (work, wall, peak, _) in best.items():
        print(f"| {title} | {flops[title] / 1e12:.3f} | {work:.2f} | {wall:.2f} | {work / first:.2f} | "
              f"{flops[title] / work / rate:.2f} | {peak / 2**30:.1f} |")
    step, _, _, spent = best[FULL]
    print(f"\n| of {FULL} | processor s by thread | times plain |\n|---|---|---|")
    for part, seconds in spent.items():
        print(f"| {part} | {seconds:.2f} | {seconds / first:.2f} |")
    print(f"\n{keys_saved(step, spent[KEYS], 's')}", flush=True)


if __name__ == "__main__":
    main()
