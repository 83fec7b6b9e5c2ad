"""Every benchmark, with tiny networks, frames and packs: what it prints has the right rows and makes sense."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks import (
    ablation,
    denoiser_step,
    device_timing,
    estimate_law,
    full_size,
    kernels,
    measuring,
    memory,
    precision,
    process_memory,
    regressor,
    sampling,
    seams,
    steadying,
    tiles,
    training_cost,
    training_data,
    vae_tiles,
)
from setevsr_core import Restorer, workload
from setevsr_core import vae_tiles as core_vae_tiles
from setevsr_core.checkpoints.presets import preset_folder
from setevsr_core.errors import InputError, SettingsError
from setevsr_core.evaluation.datasets import Clip
from setevsr_core.evaluation.measures import MEASURES
from setevsr_core.evaluation.methods import parse_method
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig
from setevsr_core.training.batches import Batch
from setevsr_core.training.data import PackedDataset
from setevsr_core.training.vae_stages import PixelLoss
from tools.clips import read_clip

from .tiny_networks import TinyEncoder, tiny_denoiser, tiny_vae
from .training_helpers import compact_upscaler

ASSET = Path(__file__).resolve().parent.parent / "assets" / "city_lq.mp4"


# ---- the regressor --------------------------------------------------------------------------------------------------
def test_the_regressor_trains_and_is_a_method_of_evaluate(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    command = [str(packed), "--batch", "2", "--crop", "32", "--width", "8", "--convolutions", "2", "--lpips-weight",
               "0", "--precision", "fp32", "--device", "cpu"]  # fmt: skip
    regressor.main([*command, "--out", str(tmp_path), "--steps", "2"])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["steps"] == 2 and math.isfinite(record["final_l1"])

    class Clip:
        lr = torch.rand(2, 12, 20, 3)

    method: Any = parse_method(f"plain@{tmp_path / 'regressor.safetensors'}", scale=4, device="cpu")
    result = method(Clip())
    assert result.shape == (2, 48, 80, 3)
    repeated = Clip.lr.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert 0 < (result - repeated).abs().max() < 0.1  # two steps from where it starts

    weights = tmp_path / "regressor.safetensors"
    regressor.main([*command, "--out", str(tmp_path / "on"), "--steps", "1", "--learning-rate", "0", "--start",
                    str(weights)])  # fmt: skip
    before, after = load_file(weights), load_file(tmp_path / "on" / "regressor.safetensors")
    assert all(torch.equal(value, after[key]) for key, value in before.items())

    regressor.main([*command, "--out", str(tmp_path / "taught"), "--steps", "1", "--learning-rate", "0", "--start",
                    str(weights), "--teacher", str(weights)])  # fmt: skip
    taught = json.loads((tmp_path / "taught" / "record.json").read_text())
    assert taught["final_l1"] < 0.01 * record["final_l1"]  # its own teacher: only what leaves 0..1 differs
    save_file(compact_upscaler(width=8, inner=2, scale=2), tmp_path / "twice.safetensors")
    with pytest.raises(SettingsError, match="twice.safetensors' enlarges by 2, the pack's scale is 4"):
        regressor.main([*command, "--out", str(tmp_path / "not"), "--teacher", str(tmp_path / "twice.safetensors")])


def test_the_regressor_starts_by_repeating_pixels_and_its_losses_reach_every_layer() -> None:
    pytest.importorskip("spandrel")
    torch.manual_seed(0)
    network = regressor.compact(width=8, convolutions=12)
    pixels = torch.rand(3, 3, 8, 8)
    assert torch.equal(network(pixels), pixels.repeat_interleave(4, 2).repeat_interleave(4, 3))

    class Distance(torch.nn.Module):
        def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            assert prediction.shape == target.shape == (3, 3, 16, 16)
            return (prediction - target).square().mean()

    stage = regressor.RegressorStage(network, PixelLoss(Distance(), 0.5, 3, 16))  # type: ignore[arg-type]
    torch.nn.init.normal_(network.body[-1].weight, std=0.01)  # type: ignore[index,arg-type]
    batch = Batch(pixels * 2 - 1, torch.rand(3, 3, 32, 32) * 2 - 1, 1, torch.Generator().manual_seed(0))
    losses = stage.losses(batch)
    assert set(losses) == {"l1", "lpips"}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters())


def test_the_regressor_is_as_large_as_nanos_decoder() -> None:
    pytest.importorskip("spandrel")
    with safe_open(preset_folder("nano") / "vae.safetensors", "pt") as file:
        decoder = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys() if key.startswith("decoder."))
    ours = sum(p.numel() for p in regressor.compact().parameters())
    assert ours == pytest.approx(decoder, rel=0.03)


# ---- the ablation ---------------------------------------------------------------------------------------------------
class Brightness:
    """Stands for LPIPS, whose weights are not in the repository."""

    def __init__(self, weights: Path):
        pass

    def distance(self, first: torch.Tensor, second: torch.Tensor) -> float:
        return float((first - second).abs().mean())


def ablation_arguments(packed: Path, networks: Path, out: Path, *more: str) -> list[str]:
    return [str(packed), str(packed), "--out", str(out), "--vae", str(networks / "vae.safetensors"),
            "--denoiser", str(networks / "denoiser.safetensors"), "--lpips-weights", "unused",
            "--semantic", str(networks / "semantic_encoder.safetensors"), "--lpips-weight", "0", "--batch", "1",
            "--crop", "64", "--rollout-steps", "1", "--segments", "2", "--precision", "fp32", "--device", "cpu", *more]


def test_the_ablation_trains_four_variants_and_resumes(
    packed: Path, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "LPIPS", Brightness)
    command = ablation_arguments(packed, networks, tmp_path, "--steps", "2")
    ablation.main(command)
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| (")]
    assert [(cells[0], cells[1], cells[2]) for cells in lines] == [
        ("| (a)", "", ""), ("| (b)", "✓", ""), ("| (c)", "", "✓"), ("| (d)", "✓", "✓")]
    losses = {name: csv.DictReader((tmp_path / name / "log.csv").open()) for name in "abcd"}
    first = {name: next(rows) for name, rows in losses.items()}
    # The four start as one function on one batch: all losses of the first step agree.
    for key in first["a"]:
        if key != "seconds":
            assert [float(row[key]) for row in first.values()] == pytest.approx([float(first["a"][key])] * 4, rel=1e-4)
    keys = {name: set(safe_open(tmp_path / name / "denoiser.safetensors", "pt").keys()) for name in "abcd"}
    assert not any("semantic_attention" in key or "temporal_spatial" in key for key in keys["a"])
    assert keys["d"] == keys["b"] | keys["c"] and keys["b"] & keys["c"] == keys["a"] < keys["b"]
    written = (tmp_path / "a" / "denoiser.safetensors").stat().st_mtime_ns
    (tmp_path / "d" / "record.json").unlink()  # as if interrupted there
    ablation.main(command)
    assert (tmp_path / "d" / "record.json").is_file()
    assert (tmp_path / "a" / "denoiser.safetensors").stat().st_mtime_ns == written
    with pytest.raises(SettingsError, match="an ablation with steps '2' and not '3'"):
        ablation.main(ablation_arguments(packed, networks, tmp_path, "--steps", "3"))


def test_the_ablation_has_the_papers_columns_and_an_equal_time_for_all(
    packed: Path, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "LPIPS", Brightness)
    brisque = replace(MEASURES["brisque"], build=lambda _: lambda result, truth: 40 + float(result.mean()))
    monkeypatch.setitem(MEASURES, "brisque", brisque)
    monkeypatch.setattr(ablation, "VARIANTS", ablation.VARIANTS[:1])
    ablation.main(ablation_arguments(packed, networks, tmp_path, "--minutes", "1e-4"))
    table = (tmp_path / "table.md").read_text("utf-8")
    assert table in capsys.readouterr().out and table.startswith("Equal time: 0.0001 minutes, of 1 clips of 3 frames")
    heading, _, row = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert heading[3:8] == ["LPIPS ↓", "BRISQUE ↓", "DOVER ↑", "PSNR ↑", "E_warp ↓"] and heading[10] == "steps"
    assert re.fullmatch(r"40\.\d\d \(40\.\d\d to 4[01]\.\d\d\)", row[4]) and row[5] == "–" and row[10] == "1"
    assert table.endswith("\n\nDOVER: not measured: no file DOVER in the folders given with --weights\n")
    with pytest.raises(SystemExit):
        ablation.main(ablation_arguments(packed, networks, tmp_path, "--minutes", "1", "--steps", "3"))


# ---- curves ---------------------------------------------------------------------------------------------------------
def test_a_curve_moves_one_setting_and_keeps_the_others() -> None:
    fixed = {"steps": 4, "strength": 0.5, "sampler": None}
    runs = sampling.curve_runs("steps", fixed)
    assert [run["steps"] for run in runs] == [1, 2, 4, 8, 15, 25, 50] and {run["strength"] for run in runs} == {0.5}
    assert sampling.curve_runs("strength", fixed)[-1] == {"strength": 1.0, "steps": 4}


@torch.inference_mode()
def test_the_curve_against_sharpening_sets_it_in_the_vae() -> None:
    restorer, lr = Restorer(None, tiny_vae()), torch.rand(2, 16, 16, 3)
    runs = sampling.curve_runs("sharpen", {"steps": 0, "strength": None})
    plain, *sharper = (sampling.restored(restorer, lr, 4, run) for run in runs)
    assert restorer.vae.config.sharpen == runs[-1]["sharpen"]
    amounts = [float((result - plain).abs().mean()) for result in sharper]
    assert 0 < amounts[0] < amounts[1] < amounts[-1]
    woven, clean = (sampling.restored(restorer, lr, 4, run) for run in sampling.curve_runs("descreen", {"steps": 0}))
    assert restorer.vae.config.descreen is True and not torch.equal(woven, clean)


def test_curves_are_written_as_csv_and_as_a_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    runs, rows = sampling.curve_runs("strength", {"steps": 2}), [(0.5 - i / 10, 20.0, 5.0 + i, 0.1) for i in range(5)]
    sampling.write_csv(tmp_path / "curve.csv", runs, rows)
    back = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [float(line["strength"]) for line in back] == [0.1, 0.25, 0.5, 0.75, 1.0]
    assert float(back[1]["LPIPS"]) == pytest.approx(0.4)
    sampling.draw_curves(tmp_path / "curve.png", "strength", [run["strength"] for run in runs], rows)
    picture = image.open(tmp_path / "curve.png").convert("RGB")
    blue = [(x, y) for x in range(320) for y in range(240) if picture.getpixel((x, y)) == (0x1F, 0x5F, 0xA8)]
    assert min(blue, key=lambda p: p[0])[1] < max(blue, key=lambda p: p[0])[1]  # LPIPS falls: the line goes down


def test_figures_of_perfect_results_and_too_few_segments(packed: Path) -> None:
    data = PackedDataset(packed)
    pairs = measuring.held_out(data, 2)
    truth = {lr.sum().item(): hr for lr, hr in pairs}
    figures = measuring.measure(lambda lr: truth[lr.sum().item()], pairs, Brightness(Path()).distance)
    assert figures.means()[:2] == (0.0, pytest.approx(100.0))
    with pytest.raises(InputError, match="4 segments, 5"):
        measuring.held_out(data, 5)


# ---- tiles ----------------------------------------------------------------------------------------------------------
def test_tiles_of_both_schemes() -> None:
    """The baseline's counts are those of the fact sheet, section 5.7."""
    assert [tiles.baseline_tiles(*size) for size in tiles.SIZES] == [1, 12, 12, 54, 72]
    assert tiles.our_tiles(1280, 720, 64, 16) <= 0.67 * tiles.baseline_tiles(1280, 720)


def test_clean_frames_are_reduced_to_the_size_of_the_degraded_ones() -> None:
    clip = Clip("grey", torch.zeros(2, 6, 8, 3), torch.full((2, 24, 32, 3), 0.5), (0, 0, 24, 32), (24, 32))
    reduced = steadying.reduced(clip)
    assert reduced.shape == clip.lr.shape and torch.allclose(reduced, torch.tensor(0.5))
    assert steadying.seconds_of([reduced], 1) > 0


# ---- speed on a GPU, tried on the processor -------------------------------------------------------------------------
CPU = torch.device("cpu")
SMALL = DenoiserConfig(channels=(32, 32, 32, 32), layers=1, head_dim=16, context_dim=1024, map_channels=32,
                       spade_hidden=8, lr_channels=(32, 32, 32, 32), lr_layers=1, lr_heads=2)


class Plain(torch.nn.Conv2d):
    """Stands for diffusers' U-Net."""

    def __init__(self, device: str, dtype: torch.dtype):
        super().__init__(4, 4, 3, padding=1, device=device, dtype=dtype)

    def forward(self, latents: Any, times: Any, encoder_hidden_states: Any) -> Any:
        assert len(latents) == len(times) == len(encoder_hidden_states)
        return super().forward(latents)


def quick_rate(device: torch.device, dtype: torch.dtype) -> float:
    assert (device, dtype) == (CPU, torch.float32)
    return 1e9


def test_a_call_is_timed_after_a_warm_up_with_something_new_before_each() -> None:
    calls: list[str] = []
    seconds = device_timing.median_seconds(lambda: calls.append("call"), CPU, calls=3, warm_up=2, each=2,
                                           between=lambda: calls.append("anew"))
    assert seconds >= 0 and calls == ["anew", "call"] * 2 + ["anew", "call", "call"] * 3
    assert device_timing.products_rate(CPU, torch.float32, side=16) > 0


def test_another_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA events and graphs belong to the current device, whatever the work runs on."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cpu", "cuda", "cuda:1"):
        assert device_timing.chosen(name) == torch.device(name)
    assert current == [torch.device("cuda:1")]


def test_the_table_of_a_step_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(denoiser_step, "plain_unet", Plain)
    monkeypatch.setattr(device_timing, "products_rate", quick_rate)
    monkeypatch.setattr(device_timing, "profiled", lambda *_: ([("gemm", 3, 0.003)], [("aten::mm", 3, 0.004)]))
    denoiser_step.on_gpu(CPU, torch.float32, {"SeTe-VSR": SMALL}, 2, 8, (1, 2), calls=1)
    denoiser_step.print_profile(CPU, torch.float32, SMALL, 2, 8)
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.count(" | ") == 8]
    assert [(row[0], row[1]) for row in rows[1:]] == [
        ("| plain SD 2.1, diffusers", "1"), ("| SeTe-VSR", "1"), ("| SeTe-VSR", "2")]
    assert "not finite" not in printed and "| 4.000 | 100.0 % | 3 | aten::mm |" in printed
    assert float(rows[-1][2]) == pytest.approx(2 * float(rows[-2][2]), abs=0.001)
    assert "\n| LR encoder, in every step | " in printed and "keys and values projected at every step" in printed


def test_a_batch_of_segments_keeps_them_apart() -> None:
    torch.manual_seed(0)
    network = denoiser_step.filled(Denoiser(SMALL, device="meta"), "cpu")
    data = denoiser_step.inputs(4, 8, "cpu", torch.float32)
    with torch.no_grad():
        together = denoiser_step.our_step(network, data, segments=2)()
        first = {name: value if name == "text" else value[:2] for name, value in data.items()}
        assert torch.allclose(denoiser_step.our_step(network, first)(), together[:2], atol=1e-5)


@torch.no_grad()
def test_a_step_for_a_gpu_makes_nothing_on_the_processor() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        network = Denoiser(SMALL, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
        data = denoiser_step.inputs(4, 8, "cuda", torch.bfloat16)
        denoiser_step.draw_anew(data)
        assert denoiser_step.our_step(network, data, segments=2)().device.type == "cuda"


@torch.no_grad()
def test_the_tables_of_kernels_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = VAEConfig(channels=(32, 32, 32), layers=1)
    monkeypatch.setattr(kernels, "GPU_ATTENTION", {"over time": ((2, 4, 2, 16), None), "spatial": ((2, 4, 2, 16), 3)})
    monkeypatch.setattr(kernels, "works", lambda latent, frames, dtype, device: {"VAE": lambda way: run(way)})
    monkeypatch.setattr(device_timing, "products_rate", quick_rate)

    def run(way: Any) -> Any:
        network = denoiser_step.filled(TemporalVAE(small, device="meta"), "cpu")
        way(network)
        return lambda: network.encode(torch.rand(1, 3, 16, 16))

    kernels.on_gpu(CPU, torch.float32, 8, 2, compiling=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines if line.startswith(("| over", "| sp"))] == ["| over ti", "| spatial"]
    assert [line.split(" | ")[1] for line in lines if line.startswith("| VAE")] == ["as it is", "channels last"]


# ---- every other one, from its command line -------------------------------------------------------------------------
@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a process of its own is called in this one, which has all modules already."""
    monkeypatch.setattr(process_memory, "in_own_process", lambda threads, call, *arguments: call(*arguments))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of tiny networks in place of nano, and a small piece of the bundled clip."""

    def from_preset(*_: Any, **__: Any) -> Restorer:
        return Restorer(tiny_denoiser(), tiny_vae(), TinyEncoder(), defaults={"steps": 1, "sampler": "ddim"})

    monkeypatch.setattr(Restorer, "from_preset", from_preset)
    small = SimpleNamespace(frames=read_clip(ASSET).frames[:2, 32:48, 32:48])
    for module in (estimate_law, precision):
        monkeypatch.setattr(module, "read_clip", lambda _: small)


@pytest.fixture
def small_clip(tmp_path: Path) -> Path:
    """A short, small piece of the bundled clip, without loss."""
    from setevsr_core.video.writing import VideoWriter

    path, frames = tmp_path / "clip.mkv", read_clip(ASSET).frames[:5, 32:96, 32:96].copy()
    with VideoWriter(path, 24, (64, 64), codec="ffv1") as writer:
        for frame in frames:
            writer.write(torch.from_numpy(frame).float() / 255)
    return path


def table(printed: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table whose heading begins with `first`."""
    lines = printed.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_first_line_says_where_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []
    for _ in range(2):
        measuring.begin("3 frames", dtype=torch.bfloat16, threads=1, seed="degradation 7")
        drawn.append(torch.rand(1))
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"3 frames, bfloat16, torch {torch.__version__}, {measuring.processor()}, ")
    assert line.endswith("1 threads, seed 0, degradation 7") and measuring.processor() and drawn[0] == drawn[1]


def test_training_data(small_clip: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training_data.main([str(small_clip), "--segments", "1", "--pack", str(packed)])
    rows = table(capsys.readouterr().out, "what")
    assert [row[1] for row in rows] == ["256 px"] * 3 + ["512 px"] * 3 + ["64 px"]
    assert all(0 < float(row[2].split("%")[0]) for row in rows)


def test_training_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With one small stage in place of all, whose networks take a minute to play through."""
    pytest.importorskip("spandrel")
    loss = PixelLoss(None, 0.0, 3, 16)
    stage = regressor.RegressorStage(regressor.compact(width=8, convolutions=1), loss)
    monkeypatch.setattr(training_cost, "build_weightless", lambda options, device: stage)
    training_cost.main(["--size", "nano", "--stages", "stage1", "turbo", "--rate", "0.001"])
    rows = table(capsys.readouterr().out, "stage")
    assert [row[0] for row in rows] == ["stage1", "turbo"] and all(float(row[-1]) > 0 for row in rows)


def test_full_size_in_small(here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts = ["native", "sd21-ckpt", "sd21-lora"]
    full_size.main(["--tiny", "--only", *layouts, "--latent", "8", "--frames", "1", "--folder", str(tmp_path)])
    rows = {row[0]: row[1:] for row in table(capsys.readouterr().out, "layout")}
    assert list(rows) == layouts
    assert {name for name, row in rows.items() if row[5] != "-"} == {"native"}  # only there is an encoder
    assert rows["sd21-lora"][0] == rows["sd21-ckpt"][0] and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        full_size.main(["--tiny", "--only", "mgld-vsr"])


def test_the_law_of_estimates(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate_law, "LENGTH", 1)
    monkeypatch.setattr(estimate_law, "LAW", tmp_path / "law.json")
    estimate_law.main(["--write"])
    assert [row[0] for row in table(capsys.readouterr().out, "stage")] == ["encode", "semantics", "denoise", "decode"]
    law, kept = json.loads((tmp_path / "law.json").read_text()), workload.law()
    assert law.keys() == kept.keys() and law["efficiency"].keys() == kept["efficiency"].keys()
    assert law["memory_factor"] >= 1 and all(0 <= share < 2 for share in law["efficiency"].values())


@pytest.mark.parametrize("more", [[], ["--images"]])
def test_memory_of_a_long_run(
    more: list[str], tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "FIRST", 12)
    memory.main(["--frames", "24", "--height", "16", "--width", "16", "--scale", "1", *more])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[2:4]] == ["frame 12", "frame 24"]
    assert -500 < int(re.findall(r"to frame 24: ([+-]\d+) MB", lines[4])[0]) < 500


def test_seams(tiny: None, small_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seams.main([str(small_clip), "--frames", "4", "--crop", "64x64", "--length", "3", "--overlap", "1", "--steps", "1"])
    rows = table(capsys.readouterr().out, "joined by")
    assert [row[0].split(",")[0] for row in rows] == ["hard cut", "crossfade", "crossfade", "latents per step",
                                                      "known latents"]  # fmt: skip
    assert len({row[2] for row in rows[1:2] + rows[3:]}) == 1  # the same moments of the one long segment
    assert all(float(row[4]) == pytest.approx(float(row[1]) / float(row[2]), rel=0.05) for row in rows)


def test_precisions_of_the_networks(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    precision.main(["--frames", "1", "--repeat", "1"])
    rows = table(capsys.readouterr().out, "number types")
    assert [row[0] for row in rows] == list(precision.CHOICES) and rows[0][3:] == ["1.00", "-"]
    assert all(float(row[4].split()[0]) > 20 for row in rows[1:])


def test_tiles_of_the_vae(
    here: None, tiny: None, small_clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vae_tiles, "FULL", VAEConfig(channels=(32, 32, 32, 32), layers=1))
    vae_tiles.main(["--size", "128", "64", "--frames", "1", "--tiles", "0", "8", "--dtype", "float32"])
    whole, tiled = table(capsys.readouterr().out, "tile")
    assert (whole[0], tiled[0]) == ("whole", "8") and float(whole[1]) > 0
    vae_tiles.main(["--count-only"])
    counted = table(capsys.readouterr().out, "VAE")
    assert len(counted) == 6 and counted[0][-1] == "whole"
    monkeypatch.setattr(core_vae_tiles, "SMALLEST", 8)
    vae_tiles.main(["--clip", str(small_clip), "--frames", "1", "--tiles", "0", "24"])
    whole, tiled = table(capsys.readouterr().out, "tile")
    assert whole[2] == "100.0" and 20 < float(tiled[2]) < 100


def test_a_step_on_a_processor(
    here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(denoiser_step, "plain_unet", Plain)
    monkeypatch.setattr(denoiser_step, "matmul_rate", lambda *_: 1e9)
    two_levels: dict[str, Any] = {"channels": (32, 32), "lr_channels": (32, 32), "semantic_levels": (0, 1)}
    monkeypatch.setattr(DenoiserConfig, "sd21", lambda **changes: replace(SMALL, **{**two_levels, **changes}))
    denoiser_step.main(["--latent", "8", "--frames", "2", "--dtype", "float32"])
    printed = capsys.readouterr().out
    assert [row[0] for row in table(printed, "step")] == [denoiser_step.PLAIN, "without the new modules", "lighter",
                                                          "SeTe-VSR"]  # fmt: skip
    encoder, keys = table(printed, "of SeTe-VSR")
    assert "every step" in encoder[0] and "once a segment" in keys[0]
    saved = re.findall(r"a step ([\d.]+) s instead of ([\d.]+) s: ([\d.]+) %", printed)[0]
    assert float(saved[0]) >= float(saved[1]) and 0 < float(saved[2]) < 100


def test_settings_and_curves_from_the_command_line(
    tiny: None, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "LPIPS", Brightness)
    command = [str(packed), "--lpips-weights", "unused", "--segments", "1", "--csv", str(tmp_path / "rows.csv")]
    sampling.main([*command, "--only", "0", "1"])
    assert [row[0] for row in table(capsys.readouterr().out, "setting")] == [
        "steps 0", "steps 2, sampler ddim, strength 0.5"]  # fmt: skip
    monkeypatch.setitem(sampling.CURVES, "steps", (1, 2))
    sampling.main([*command, "--curve", "steps"])
    printed = capsys.readouterr().out
    assert "float32" in printed and "kept: strength 1.0, sampler ddim" in printed
    assert [float(row["steps"]) for row in csv.DictReader((tmp_path / "rows.csv").open())] == [1, 2]


def test_steadying_from_the_command_line(
    tiny: None, small_clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steadying, "LPIPS", Brightness)
    steadying.main([str(small_clip.parent), "--lpips-weights", "unused", "--frames", "2", "--radii", "0", "1"])
    rows = table(capsys.readouterr().out, "input")
    assert [row[:2] for row in rows] == [[kind, radius] for kind in ("degraded", "clean") for radius in "01"]


def test_tiles_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    tiles.main(["--overlap", "8"])
    assert len(table(capsys.readouterr().out, "result")) == len(tiles.SIZES)
