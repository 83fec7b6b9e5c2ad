"""What only a GPU shows: the CPU's pictures come out of it, its memory may be full, training runs and resumes on it.

SETEVSR_TEST_DEVICE=cpu runs what does not need a GPU's memory or kernels on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import copy
import csv
import gc
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from setevsr_core import Restorer, checkpoints, memory, stages
from setevsr_core.checkpoints import load_preset
from setevsr_core.cli import main
from setevsr_core.devices import automatic_device, usable_device
from setevsr_core.errors import SettingsError
from setevsr_core.estimate import estimate, networks_on_meta
from setevsr_core.evaluation.metrics import LPIPS, psnr
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.layers import MOST_SEQUENCES, attend_over_time
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig
from setevsr_core.precision import automatic_dtype
from setevsr_core.sampling.loop import denoise
from setevsr_core.sampling.samplers import SAMPLERS
from setevsr_core.settings import RestoreSettings
from setevsr_core.training.batches import Batch
from setevsr_core.training.building import build_stage
from setevsr_core.training.estimate import estimate_memory
from setevsr_core.training.losses import flow_consistency
from setevsr_core.training.options import merged_options, train_settings
from setevsr_core.vae_tiles import WHOLE, fitting_tile
from setevsr_core.video.colour import METHODS, match_colour
from setevsr_core.video.steadying import steady

from .conftest import REPOSITORY
from .tiny_networks import randomise, tiny_denoiser
from .training_helpers import compact_upscaler

DEVICE = torch.device(os.environ.get("SETEVSR_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
CLIP = REPOSITORY / "assets" / "city_lq.mp4"
GIB = 2**30
PRECISION = "bf16" if ON_GPU else "fp32"  # of autocast in training; a CPU may have to emulate bf16, in minutes

pytestmark = [
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="CUDA finds no GPU here"),
    # Of the test alone: what stops a fixture stops every test that shares it.
    pytest.mark.timeout(30 if ON_GPU else 600, func_only=True),
]
of_a_gpu = pytest.mark.skipif(not ON_GPU, reason="is about the memory or the kernels of a GPU")

COMPARED: dict[str, Any] = {"scale": 2, "steady": 0, "steady_result": 0}
"""Settings whose pictures are held to the CPU's: small ones, and without averaging along the motion, which would follow
rounding in its jumps."""

Say = Callable[[str], None]


@pytest.fixture(scope="module", autouse=True)
def _few_threads() -> Iterator[None]:
    """The CPU has little to compute here; one thread per core would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 4))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Writes a figure into the report of the run, whatever is captured."""
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    reporter: Any = request.config.pluginmanager.getplugin("terminalreporter")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\n    {request.node.name}: {text}")

    return write


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Six low-resolution frames (6,48,64,3)."""
    from setevsr_core.video.reading import VideoReader

    return torch.stack(list(islice(VideoReader(CLIP), 6)))[:, 24:72, 48:112].contiguous()


@pytest.fixture(scope="module")
def on_cpu() -> Restorer:
    return Restorer.from_preset("nano", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def on_device() -> Restorer:
    return Restorer.from_preset("nano", device=DEVICE, dtype=torch.float32)


@pytest.fixture(scope="module")
def reference(on_cpu: Restorer, frames: Tensor) -> Tensor:
    """The CPU's pictures (6,96,128,3) in fp32."""
    return on_cpu.restore(frames, **COMPARED)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in full fp32: by default cuDNN rounds their inputs to TF32's 10 bits (matrix products it does not).
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextmanager
def memory_left(size: int) -> Iterator[None]:
    """The GPU is full but for about `size` bytes beside what lies there now."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(DEVICE)[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + size) / total, DEVICE.index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE.index)
        torch.cuda.empty_cache()


def peak_of(work: Callable[[], Any]) -> int:
    """Most bytes of tensors that `work` has on the GPU beside those that lie there before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    before = torch.cuda.memory_allocated(DEVICE)
    work()
    return torch.cuda.max_memory_allocated(DEVICE) - before


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over the spread of what is expected."""
    difference = found.double().cpu() - expected.double().cpu()
    return float(difference.square().mean().sqrt() / expected.double().std())


def places(*modules: nn.Module) -> set[str]:
    return {tensor.device.type for module in modules for tensor in module.state_dict().values()}


def moved(module: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy of a network on the device, computing in `dtype`."""
    twin = copy.deepcopy(module).to(device=DEVICE, dtype=dtype).eval().requires_grad_(False)
    twin.dtype = dtype or module.dtype
    return twin


# ---- restoring ------------------------------------------------------------------------------------------------------
def test_fp32_gives_the_cpus_pictures(on_device: Restorer, frames: Tensor, reference: Tensor, say: Say) -> None:
    """Within 0.002 of 1 everywhere with TF32 off; with TF32, PyTorch's default for convolutions, 50 dB near."""
    with without_tf32():
        exact = on_device.restore(frames, **COMPARED)
    default = on_device.restore(frames, **COMPARED)
    error = (exact - reference).abs()
    say(f"fp32 differs by {error.max():.1e} at most, {error.mean():.1e} on average; with TF32 "
        f"{(default - reference).abs().max():.1e} at most, {psnr(default, reference):.1f} dB")
    assert exact.device.type == "cpu" and error.max() < 2e-3 and error.mean() < 1e-4
    assert psnr(default, reference) > 50


@of_a_gpu  # elsewhere it is emulated, in minutes
@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 32.0), (torch.float16, 42.0)])
def test_half_precision_is_near_fp32(
    dtype: torch.dtype, least: float, frames: Tensor, reference: Tensor, say: Say
) -> None:
    found = Restorer.from_preset("nano", device=DEVICE, dtype=dtype).restore(frames, **COMPARED)
    say(f"{dtype} is {psnr(found, reference):.1f} dB near fp32 of the CPU")
    assert psnr(found, reference) > least


def test_a_stream_gives_the_bits_of_restore_and_all_settings_of_the_preset_hold(
    on_device: Restorer, frames: Tensor
) -> None:
    options: dict[str, Any] = {"scale": 2, "length": 4}  # two segments
    whole = on_device.restore(frames, **options)
    blocks = list(on_device.stream(iter(frames), **options))
    assert len(blocks) > 1 and torch.equal(torch.cat(blocks), whole)
    assert torch.equal(on_device.restore(frames, **options), whole)  # the same call gives the same bits


def test_frames_that_lie_on_the_device_come_back_there(on_device: Restorer, frames: Tensor) -> None:
    with_alpha = torch.cat([frames, frames[..., :1]], dim=-1)
    expected = on_device.restore(with_alpha, scale=2)
    found = on_device.restore(with_alpha.to(DEVICE), scale=2)
    assert found.device.type == DEVICE.type
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)  # alpha and blending are computed there too


def test_the_vae_may_lie_elsewhere(on_cpu: Restorer, on_device: Restorer, frames: Tensor, reference: Tensor) -> None:
    apart = Restorer(on_device.denoiser, on_cpu.vae, on_device.encoder, device=DEVICE, vae_device="cpu", place=False,
                     defaults=on_device.defaults)
    with without_tf32():
        found = apart.restore(frames[:3], length=3, overlap=0, **COMPARED)
    assert found.shape == (3, 96, 128, 3) and psnr(found, reference[:3]) > 30  # segments of other lengths


def test_the_command_restores_on_the_device(on_device: Restorer, tmp_path: Path, say: Say) -> None:
    from setevsr_core.video.reading import VideoReader

    path = tmp_path / "out.mkv"
    assert main(["restore", str(CLIP), str(path), "--device", str(DEVICE), "--dtype", "float32", "--no-cuts",
                 "--duration", "0.24", "--scale", "2", "--codec", "ffv1"]) == 0
    found = torch.stack(list(VideoReader(path)))
    lq = torch.stack(list(islice(VideoReader(CLIP), len(found))))
    expected = on_device.restore(lq, scale=2)
    say(f"{len(found)} frames, {psnr(found, expected):.1f} dB near the pictures that were written")
    assert len(found) >= 3 and found.shape[1:] == (192, 320, 3) and psnr(found, expected) > 35


def test_native_files_load_straight_to_the_device() -> None:
    preset = load_preset("nano", device=DEVICE)
    assert preset.encoder is not None and places(preset.denoiser, preset.vae, preset.encoder) == {DEVICE.type}
    assert preset.denoiser.dtype == (torch.float16 if ON_GPU else torch.float32)  # as stored


@of_a_gpu
def test_devices_are_chosen_and_refused() -> None:
    assert automatic_device().type == "cuda" and usable_device("cuda") == torch.device("cuda")
    with pytest.raises(SettingsError, match="cuda:99.*cannot compute here"):
        usable_device("cuda:99")
    assert torch.zeros(1, device=DEVICE).item() == 0  # nothing is broken by having asked
    assert automatic_dtype("cuda") in (torch.bfloat16, torch.float16)


# ---- networks -------------------------------------------------------------------------------------------------------
FULL_DENOISER = DenoiserConfig(channels=(32, 64), lr_channels=(32, 32), map_channels=32, spade_hidden=16, head_dim=32,
                               context_dim=8, layers=1, lr_layers=1, semantic_levels=(0, 1))
FULL_VAE = VAEConfig(channels=(32, 32, 64), layers=1, growth=4)
"""All that full-size networks have and nano has not: the baseline's temporal layers, attention in the VAE."""


@pytest.fixture(scope="module")
def full_denoiser() -> Denoiser:
    denoiser = Denoiser(FULL_DENOISER, empty_text=torch.zeros(1, 3, 8))
    randomise(denoiser, 1)
    return denoiser.eval().requires_grad_(False)


def denoised(denoiser: Any, size: int = 32, **options: Any) -> Tensor:
    where = stages.module_device(denoiser)
    options = {"steps": 2, "sampler": "ddim", "tile": 16, "tile_overlap": 8} | options
    return denoise(denoiser, noise(3, 4, size, size).to(where), frame_indices=range(3), seed=1,
                   semantics=noise(3, 256, 8, 8, seed=1).to(where), **options).cpu()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_arrive_where_they_do_on_the_cpu(sampler: str) -> None:
    denoiser = tiny_denoiser().eval().requires_grad_(False)
    with without_tf32():
        found = denoised(moved(denoiser), 16, sampler=sampler, steps=3)
    assert relative_error(found, denoised(denoiser, 16, sampler=sampler, steps=3)) < 0.01


def test_full_size_kinds_of_layers_compute_what_they_do_on_the_cpu(full_denoiser: Denoiser) -> None:
    vae = TemporalVAE(FULL_VAE).eval().requires_grad_(False)
    randomise(vae, 2)
    frames = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    with without_tf32():
        assert relative_error(denoised(moved(full_denoiser)), denoised(full_denoiser)) < 0.01
        twin = moved(vae)
        for tile in (WHOLE, 16):
            found = stages.encode_latents(twin, frames, 4, keep_features=True, tile=tile)
            expected = stages.encode_latents(vae, frames, 4, keep_features=True, tile=tile)
            assert relative_error(found.latents, expected.latents) < 0.01
            for features in (expected.features, None):  # made on the CPU, or computed again
                pictures = stages.decode_span(twin, expected.latents, frames, 4, features=features, tile=tile)
                alike = stages.decode_span(vae, expected.latents, frames, 4, features=features, tile=tile)
                assert (pictures - alike).abs().max() < 0.01


@pytest.mark.parametrize("size", ["nano", "full"])
def test_every_attention_has_a_fused_kernel(size: str, full_denoiser: Denoiser, on_cpu: Restorer) -> None:
    """Without one the matrix of all weights would lie in the memory."""
    denoiser = moved(on_cpu.denoiser if size == "nano" else full_denoiser, torch.bfloat16)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        assert torch.isfinite(denoised(denoiser, tile=0)).all()
        if size == "full":
            vae = moved(TemporalVAE(FULL_VAE), torch.bfloat16)
            with torch.inference_mode():
                vae.encode(noise(1, 3, 64, 64).to(DEVICE, torch.bfloat16))


@of_a_gpu
def test_attention_over_time_takes_more_sequences_than_a_kernel() -> None:
    pixels = MOST_SEQUENCES + 1000
    query, key, value = (noise(3, pixels, 32, seed=seed).to(DEVICE, torch.bfloat16) for seed in range(3))
    found = attend_over_time(query, key, value, 2, 3)
    for part in (slice(0, 500), slice(pixels - 1500, pixels)):  # the latter across the border of the calls
        q, k, v = (x[:, part].float().cpu() for x in (query, key, value))
        expected = attend_over_time(q, k, v, 2, 3)
        torch.testing.assert_close(found[:, part].float().cpu(), expected, atol=0.03, rtol=0.03)


def _cast_at_use(layer: type, call: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]) -> type:
    """A layer that computes in the type of its input whatever its weights are stored in, as a host's layers do."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return call(self, x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    return type(f"Cast{layer.__name__}", (layer,), {"forward": forward})


def test_weights_stored_in_fp8_compute_in_bf16(on_cpu: Restorer, tmp_path: Path, say: Say) -> None:
    def convolve(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    ops = SimpleNamespace(
        Linear=_cast_at_use(nn.Linear, lambda _, x, w, b: F.linear(x, w, b)),
        GroupNorm=nn.GroupNorm, LayerNorm=nn.LayerNorm, **{name: _cast_at_use(getattr(nn, name), convolve) for name in
                                   ("Conv1d", "Conv2d", "Conv3d")},
    )  # fmt: skip
    exact: Any = on_cpu.denoiser
    stored = Denoiser(exact.config, ops=ops, dtype=torch.bfloat16, empty_text=exact.empty_text.bfloat16())
    stored.load_state_dict(exact.state_dict())
    stored = stored.to(DEVICE).eval().requires_grad_(False)
    large: list[Any] = [layer for layer in stored.modules() if type(layer).__name__.startswith("Cast")]
    for layer in large:
        layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    path = checkpoints.save_native(exact, tmp_path / "fp8.safetensors", dtype=torch.float8_e4m3fn)
    loaded = checkpoints.load_denoiser(path, device=DEVICE)
    assert loaded.dtype == (torch.bfloat16 if ON_GPU else torch.float32) and places(loaded) == {DEVICE.type}
    expected = denoised(exact)
    errors = {name: relative_error(denoised(network), expected) for name, network in
              (("bf16", moved(exact, torch.bfloat16)), ("fp8", stored), ("file in fp8", loaded))}
    say(", ".join(f"{name} {error:.4f}" for name, error in errors.items()) + " of the spread off fp32")
    assert large and 0 < errors["bf16"] < errors["fp8"] < 0.2 and errors["file in fp8"] < 0.3


# ---- memory ---------------------------------------------------------------------------------------------------------
@of_a_gpu
def test_free_memory_counts_what_pytorch_keeps() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = memory.free_bytes(DEVICE)
    block = torch.empty(GIB, dtype=torch.uint8, device=DEVICE)
    taken = before - memory.free_bytes(DEVICE)
    del block  # PyTorch keeps it, and the next tensor can have it
    assert taken == pytest.approx(GIB, rel=0.05) and memory.free_bytes(DEVICE) == pytest.approx(before, rel=0.01)
    memory.release_cached(DEVICE)
    assert memory.free_bytes("cuda") == pytest.approx(before, rel=0.01)
    assert before <= torch.cuda.mem_get_info(DEVICE)[1]


@of_a_gpu
def test_tiles_follow_the_free_memory(say: Say) -> None:
    free, config = memory.free_bytes(DEVICE), VAEConfig.sd21()
    tiles = {share: fitting_tile(config, torch.bfloat16, (136, 240), 5, free * share) for share in (1.0, 0.1, 0.02)}
    say(f"full-size VAE, 5 frames of 1080p, bf16, {free / GIB:.0f} GiB free: tiles {tiles} by share of it")
    assert all(tile == WHOLE or 32 <= tile <= 240 for tile in tiles.values())
    assert tiles[0.02] != WHOLE and (free < 60 * GIB or tiles[1.0] == WHOLE)


@of_a_gpu
@pytest.mark.parametrize(("name", "side"), [("the denoiser", 96), ("the VAE", 256)])
def test_a_full_gpu_makes_the_tiles_smaller_and_the_pictures_stay(
    name: str, side: int, on_cpu: Restorer, on_device: Restorer, say: Say, caplog: pytest.LogCaptureFixture
) -> None:
    """One stage at a time on the GPU: what the other takes at the least may be more than what is left for this one."""
    coarse = torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    frames = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1).movedim(1, -1).contiguous()
    options: dict[str, Any] = {"steps": 0, "steady": 0, "steady_result": 0, "colour": "none"}
    restorer = on_device
    latents = stages.encode_latents(on_device.vae, frames, 4).latents
    if name == "the denoiser":
        options |= {"steps": 1, "tile": 0, "tile_overlap": 0}
        restorer = Restorer(on_device.denoiser, on_cpu.vae, on_device.encoder, device=DEVICE, vae_device="cpu",
                            place=False, defaults=on_device.defaults)
        peak = peak_of(lambda: stages.denoise_span(on_device.denoiser, latents, None, range(5), steps=1, tile=0,
                                                   tile_overlap=0))
    else:
        peak = peak_of(lambda: stages.decode_span(on_device.vae, latents, frames, 4, colour="none"))
    whole = restorer.restore(frames, **options)
    with memory_left(round(0.6 * peak)), caplog.at_level(logging.WARNING):
        tiled = restorer.restore(frames, **options)
    said = [record.getMessage() for record in caplog.records if "the memory is full" in record.getMessage()]
    say(f"peak {peak / GIB:.2f} GiB, 60 % of it left: {said}; {psnr(tiled, whole):.1f} dB near the whole frames")
    assert any(name in message for message in said)
    assert psnr(tiled, whole) > 25
    assert torch.equal(restorer.restore(frames, **options), whole)  # nothing stays behind


@of_a_gpu
def test_a_gpu_that_is_too_full_is_said_in_one_sentence(on_device: Restorer, frames: Tensor) -> None:
    large = frames[:2].repeat(1, 10, 8, 1)  # 480 x 512: enlarged, a frame takes 47 MB in fp32
    with memory_left(4 * 2**20), pytest.raises(SettingsError, match="The memory is full: lower 'length'") as caught:
        on_device.restore(large, steady=0, steady_result=0)
    assert "\n" not in str(caught.value)
    assert on_device.restore(frames[:1], steps=0).shape == (1, 192, 256, 3)


@of_a_gpu
def test_the_estimate_of_memory_is_near_what_a_run_takes(say: Say) -> None:
    dtype = automatic_dtype(DEVICE)
    chosen: dict[str, Any] = {"steps": 1, "tile": 0, "tile_overlap": 0, "steady": 0, "steady_result": 0}
    networks, defaults = networks_on_meta("nano", dtype)
    found = estimate(networks, 270, 480, 5, RestoreSettings(scale=4.0, **chosen))
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    restorer = Restorer.from_preset("nano", device=DEVICE, dtype=dtype)
    restorer.restore(torch.rand(5, 270, 480, 3, generator=torch.Generator().manual_seed(0)), scale=4.0, **chosen)
    peak = torch.cuda.max_memory_allocated(DEVICE) - before
    say(f"nano, 5 frames to 1920x1080: {peak / GIB:.2f} GiB measured, {found.device_bytes / GIB:.2f} GiB estimated, "
        f"ratio {peak / found.device_bytes:.2f}; kept by PyTorch at most {torch.cuda.max_memory_reserved() / GIB:.2f}")
    assert defaults and 0.4 < peak / found.device_bytes < 2.0


def test_the_command_estimates_for_the_device(capsys: pytest.CaptureFixture[str], say: Say) -> None:
    assert main(["estimate", "--size", "480x270", "--frames", "30", "--device", str(DEVICE), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = [found[name] for name in ("device_bytes", "least_bytes", "result_bytes", "seconds")]
    assert all(math.isfinite(value) and value > 0 for value in figures)
    assert main(["estimate", "--size", "480x270", "--frames", "30", "--device", str(DEVICE)]) == 0
    printed = capsys.readouterr().out
    say(printed.strip().replace("\n", " | "))
    assert "minutes" in printed and DEVICE.type in printed


# ---- training -------------------------------------------------------------------------------------------------------
def train(stage: str, packed: Path, networks: Path, out: Path, *more: str, steps: int = 2) -> dict[str, Tensor]:
    files = {"vae": "vae", "denoiser": "denoiser", "semantic": "semantic_encoder"}
    named = [part for kind, name in files.items() for part in (f"--{kind}", str(networks / f"{name}.safetensors"))]
    assert main(["train", stage, "--data", str(packed), "--out", str(out), *named, "--steps", str(steps), "--batch",
                 "2", "--crop", "64", "--frames", "3", "--lpips-weight", "0", "--precision", PRECISION, "--device",
                 str(DEVICE), "--save-every", "2", "--log-every", "1", *more]) == 0
    written = {"vae": "vae", "decoder": "vae", "semantic": "semantic_encoder"}.get(stage, "denoiser")
    return load_file(out / f"{written}.safetensors")


LPIPS_AND_GAN = ("--lpips-weight", "0.1", "--lpips-patch", "32", "--gan-weight", "0.1", "--gan-start", "0")


@pytest.mark.parametrize(("stage", "more"), [
    ("vae", LPIPS_AND_GAN), ("semantic", ()), ("stage1", ("--checkpointing",)), ("stage2", ("--draws", "2")),
    ("decoder", ("--gan-weight", "0.1", "--gan-start", "0")),
    ("turbo", (*LPIPS_AND_GAN, "--with-decoder", "--teacher-steps", "2", "--rollout-steps", "2", "--lr-share", "0")),
])  # fmt: skip
def test_a_stage_trains_on_the_device(
    stage: str, more: tuple[str, ...], packed: Path, networks: Path, vgg: Path, tmp_path: Path, say: Say
) -> None:
    name = {"vae": "vae", "decoder": "vae", "semantic": "semantic_encoder"}.get(stage, "denoiser")
    before = load_file(networks / f"{name}.safetensors")
    after = train(stage, packed, networks, tmp_path, "--vgg", str(vgg), *more)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    say(str({key: float(value) for key, value in rows[-1].items()}))
    assert len(rows) == 2 and all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(before[key], after[key]) for key in after)


def test_a_decoder_around_a_compact_upscaler_trains_on_the_device(
    packed: Path, networks: Path, tmp_path: Path
) -> None:
    save_file(compact_upscaler(width=8, inner=3), tmp_path / "compact.safetensors")
    after = train("decoder", packed, networks, tmp_path / "run", "--compact", str(tmp_path / "compact.safetensors"))
    assert "decoder.trunk.convs.2.weight" in after and all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize("stage", ["vae", "stage1"])
def test_a_resumed_training_ends_with_the_same_weights(
    stage: str, packed: Path, networks: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit with PyTorch's deterministic algorithms, where it has them for all that a stage does."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        whole = train(stage, packed, networks, tmp_path / "whole", steps=4)
        train(stage, packed, networks, tmp_path / "halves", steps=2)
        resumed = train(stage, packed, networks, tmp_path / "halves", steps=4)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
    differing = [key for key in whole if not torch.equal(whole[key], resumed[key])]
    most = max(float((whole[key].float() - resumed[key].float()).abs().max()) for key in whole)
    say(f"{len(differing)} of {len(whole)} tensors differ, by {most:.1e} at most")
    assert not differing if stage == "vae" else most < 1e-3


@of_a_gpu
def test_the_estimate_of_a_trainings_memory_is_near_what_a_step_keeps(say: Say) -> None:
    folder = checkpoints.presets.PRESETS / "nano"
    files = {"vae": folder / "vae.safetensors", "denoiser": folder / "denoiser.safetensors",
             "semantic": folder / "semantic_encoder.safetensors"}
    options = merged_options("stage2", "nano", {**files, "batch": 1, "frames": 5, "crop": 256, "precision": "bf16"})
    stage: Any = build_stage(options, DEVICE)
    stage.semantic_dropout = 0.0
    expected = estimate_memory(stage, train_settings(options), DEVICE)
    lr, hr = noise(5, 3, 64, 64).to(DEVICE), noise(5, 3, 256, 256).to(DEVICE)
    kept = []

    def step() -> None:
        before = torch.cuda.memory_allocated(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = stage.losses(Batch(lr, hr, 5, torch.Generator().manual_seed(0)))["eps_mse"]
        kept.append(torch.cuda.memory_allocated(DEVICE) - before)
        loss.backward()

    peak = peak_of(step)
    say(f"activations of stage2: {kept[0] / GIB:.2f} GiB kept, {peak / GIB:.2f} GiB at most, "
        f"{expected.activations / GIB:.2f} GiB estimated, ratio {kept[0] / expected.activations:.2f}")
    assert 0.5 < kept[0] / expected.activations < 1.6


# ---- pixels ---------------------------------------------------------------------------------------------------------
def test_degradation_is_opencvs(say: Say) -> None:
    """One blur or resize within 0.05 levels; a whole clip, rounded before every codec, within half a level on average.
    """
    pytest.importorskip("cv2")
    from setevsr_core.training.degradation import Degradation, DegradationConfig
    from setevsr_core.training.kernels import make_kernel
    from setevsr_core.training.pixel_work import INTERPOLATIONS, pixel_work

    opencv, torchs = pixel_work(None), pixel_work(str(DEVICE))
    y, x = np.mgrid[0:96, 0:99].astype(float)
    wide = np.stack([128 + 80 * np.sin(x / 5 + y / 9), 128 + 90 * np.cos(y / 7), 60 + 100 * (x > 48)], axis=-1)
    clip = np.stack([wide[:, i : i + 96] for i in range(3)]).astype(np.uint8)
    frame = clip[0].astype(np.float32)
    kernel = make_kernel("aniso", 21, sigma_x=0.7, sigma_y=3.0, angle=0.4, beta=1.0, cutoff=1.0)
    errors = {"filter": np.abs(torchs.leave(torchs.filter(torchs.enter(frame), kernel)) - opencv.filter(frame, kernel))}
    for kind in INTERPOLATIONS:
        for size in ((40, 50), (100, 90)):
            found = torchs.leave(torchs.resize(torchs.enter(frame), size, kind))
            errors[f"{kind} {size}"] = np.abs(found - opencv.resize(frame, size, kind))
    grain = np.random.default_rng(0).standard_normal((96, 96, 1), dtype=np.float32)
    found = torchs.leave(torchs.clip(torchs.add(torchs.enter(frame), 30 * grain)))
    errors["noise"] = np.abs(found - opencv.clip(opencv.add(frame, 30 * grain)))
    config = DegradationConfig(gaussian_probability=1.0)  # photon counts follow the rounding, and then run apart
    apart = [float(np.abs(np.subtract(*(Degradation(config, device)(clip, seed).astype(int)
                                        for device in (None, str(DEVICE))))).mean()) for seed in range(3)]
    say(f"one step differs by {max(error.max() for error in errors.values()):.3f} levels at most, clips by "
        f"{max(apart):.3f} on average")
    assert max(error.max() for error in errors.values()) < 0.05 and max(apart) < 0.5


def test_steadying_colours_and_the_sequence_loss_are_the_cpus(frames: Tensor) -> None:
    pytest.importorskip("cv2")
    assert torch.equal(steady(frames.to(DEVICE), 2).cpu(), steady(frames, 2))  # flow and averages are OpenCV's
    planes = frames.movedim(-1, 1).contiguous()
    for method in METHODS:
        found = match_colour(planes.to(DEVICE) ** 1.2, planes.to(DEVICE), method)
        torch.testing.assert_close(found.cpu(), match_colour(planes**1.2, planes, method), atol=1e-4, rtol=0)
    clip, other = planes * 2 - 1, (planes + 0.05 * noise(*planes.shape)) * 2 - 1
    with without_tf32():
        found = flow_consistency(other.to(DEVICE), clip.to(DEVICE), 3)
    torch.testing.assert_close(found.cpu(), flow_consistency(other, clip, 3), rtol=0.01, atol=1e-4)


def alexnet(folder: Path) -> list[Path]:
    """AlexNet's convolutions: random ones, and the trained ones where they are."""
    torchvision = pytest.importorskip("torchvision")
    path = folder / "alexnet.safetensors"
    save_file(torchvision.models.alexnet(weights=None).features.state_dict(), path)
    named = os.environ.get("SETEVSR_LPIPS_WEIGHTS")
    return [path, *([Path(named)] if named and Path(named).is_file() else [])]


def test_lpips_is_the_cpus(frames: Tensor, tmp_path: Path, say: Say) -> None:
    pytest.importorskip("lpips")
    worse = (frames + 0.1 * noise(*frames.shape)).clamp(0, 1)
    for path in alexnet(tmp_path):
        here, there = (LPIPS(path, device)(worse[:2], frames[:2]) for device in (torch.device("cpu"), DEVICE))
        say(f"{path.stem}: {here:.5f} on the CPU, {there:.5f} on the device")
        assert here > 0 and there == pytest.approx(here, abs=1e-3)


def test_dists_is_the_cpus(frames: Tensor, say: Say) -> None:
    pytest.importorskip("DISTS_pytorch")
    from setevsr_core.evaluation.dists import DISTS

    named = os.environ.get("SETEVSR_LPIPS_WEIGHTS", "")
    path = Path(named).parent / "vgg16_features_fp16.safetensors"
    if not named or not path.is_file():
        pytest.skip(f"{path.name} is not there: set SETEVSR_LPIPS_WEIGHTS to the AlexNet weights beside it")
    worse = (frames + 0.1 * noise(*frames.shape)).clamp(0, 1)
    here, there = (DISTS(path, device)(worse[:2], frames[:2]) for device in (torch.device("cpu"), DEVICE))
    say(f"{here:.5f} on the CPU, {there:.5f} on the device")
    assert here > 0 and there == pytest.approx(here, abs=1e-3)
