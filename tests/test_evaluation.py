"""Measuring: exact figures on synthetic pictures, alignment, statistics, tables, data sets, and the command itself."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from setevsr_core import cli
from setevsr_core.errors import CheckpointError, InputError, MissingPackageError, SettingsError, VideoError
from setevsr_core.evaluation import (
    alignment,
    datasets,
    measures,
    methods,
    metrics,
    naturalness,
    no_reference,
    pictures,
    running,
    tables,
)
from setevsr_core.evaluation.records import TRUTH, Records, Row
from setevsr_core.evaluation.statistics import bootstrap
from setevsr_core.video import layouts

from .training_helpers import compact_upscaler


def textured(frames: int = 2, height: int = 64, width: int = 80, seed: int = 0) -> torch.Tensor:
    """(N, H, W, 3) of smooth random texture that moves by one pixel a frame."""
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(seed))
    size = (height, width)
    picture = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0].movedim(0, -1)
    return torch.stack([picture.roll(i, 1) for i in range(frames)])


def fourier_shift(clip: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """The clip moved by fractions of a pixel, exactly, with its borders wrapped around."""
    fy = torch.fft.fftfreq(clip.shape[1]).view(1, -1, 1, 1)
    fx = torch.fft.fftfreq(clip.shape[2]).view(1, 1, -1, 1)
    turn = torch.exp(-2j * math.pi * (fx * x + fy * y))
    return torch.fft.ifft2(torch.fft.fft2(clip.double(), dim=(1, 2)) * turn, dim=(1, 2)).real.float()


def photograph(seed: int = 0) -> torch.Tensor:
    """(1, 192, 288, 3) grey: noise whose power falls with the square of the frequency, as that of photographs does.

    The same on every machine, in whole 8-bit levels.
    """
    frequency = np.hypot(np.fft.fftfreq(192)[:, None], np.fft.fftfreq(288)[None]).clip(min=1 / 288)
    noise = np.random.RandomState(seed).standard_normal((192, 288))  # its stream is frozen, that of default_rng is not
    picture = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    picture = (0.5 + 0.15 * (picture - picture.mean()) / picture.std()).clip(0, 1)
    return torch.from_numpy((picture * 255).round() / 255).float().expand(3, 192, 288).movedim(0, -1)[None]


def blurred(clip: torch.Tensor, side: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(clip.movedim(-1, 1), (side // 2,) * 4, mode="reflect")
    return torch.nn.functional.avg_pool2d(padded, side, 1).movedim(1, -1)


def noisy(clip: torch.Tensor, deviation: float) -> torch.Tensor:
    noise = np.random.RandomState(1).standard_normal((192, 288, 1))
    return (clip + deviation * torch.from_numpy(noise).float()).clamp(0, 1)


def write_frames(folder: Path, clip: torch.Tensor) -> None:
    for index, frame in enumerate(clip):
        pictures.save_png(folder / f"{index:08d}.png", frame)


# ---- metrics --------------------------------------------------------------------------------------------------------
def test_psnr_of_a_known_error() -> None:
    truth = torch.full((2, 16, 16, 3), 0.5)
    assert metrics.psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr(truth, truth) == pytest.approx(100.0)
    # A grey error of 0.1 is one of 0.1 * 219 / 255 in studio luma.
    assert metrics.psnr(truth + 0.1, truth, of_luma=True) == pytest.approx(20 - 20 * math.log10(219 / 255), abs=1e-4)
    green = truth.clone()
    green[..., 1] += 0.1
    assert metrics.psnr(green, truth) == pytest.approx(20 + 10 * math.log10(3), abs=1e-4)


def test_ssim_of_equal_and_of_constant_pictures() -> None:
    truth = textured()
    assert metrics.ssim(truth, truth) == pytest.approx(1.0) == metrics.ssim(truth, truth, of_luma=False)
    dark, bright = torch.full((1, 16, 16, 3), 0.2), torch.full((1, 16, 16, 3), 0.4)
    expected = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)
    assert metrics.ssim(dark, bright, of_luma=False) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="11x11"):
        metrics.ssim(dark[:, :8], bright[:, :8])


def test_temporal_distance_compares_the_changes() -> None:
    def brightness(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.mean() - b.mean()).abs())

    levels = torch.tensor([0.0, 0.1, 0.4]).view(3, 1, 1, 1).expand(3, 4, 4, 3)
    steady = torch.zeros(3, 4, 4, 3)
    assert metrics.temporal_distance(brightness, levels, steady) == pytest.approx((0.1 + 0.3) / 2)
    assert metrics.temporal_distance(brightness, levels, levels + 0.5) == pytest.approx(0.0, abs=1e-6)


def test_a_flickering_clip_has_a_larger_warping_error() -> None:
    truth = textured(4)
    flicker = truth.clone()
    flicker[1::2] = (flicker[1::2] - 0.1).clamp(0, 1)
    assert metrics.warping_error(truth, truth) < 2 < 10 < metrics.warping_error(flicker, truth)


def weights_file(name: str) -> Path:
    named = os.environ.get("SETEVSR_LPIPS_WEIGHTS")
    path = Path(named).parent / name if named else Path(name)
    if not path.is_file():
        pytest.skip(f"{name} is not there: set SETEVSR_LPIPS_WEIGHTS to the AlexNet weights, with {name} beside them")
    return path


@pytest.mark.parametrize(("power", "shape"), [(1, 1.0), (2, 2.0)])
@pytest.mark.parametrize("right", [0.5, 1.0])
def test_the_fit_behind_niqe_finds_known_distributions(power: int, shape: float, right: float) -> None:
    """Shape and both scales of Laplace and Gauss, also where the right half is narrower than the left."""
    pytest.importorskip("scipy")
    random = np.random.RandomState(0)
    values = np.abs(random.laplace(size=200_000) if power == 1 else random.normal(scale=0.5**0.5, size=200_000))
    below = np.arange(200_000) < 200_000 / (1 + right)  # so that the density has no step at 0
    found = naturalness._generalised_gaussian(np.where(below, -values, right * values))
    assert found == pytest.approx((shape, 1.0, right), rel=0.02)


def test_niqe_agrees_with_another_implementation() -> None:
    """With that of pyiqa 0.1.16 (in single precision, and with a resize of its own) on the same model file."""
    pytest.importorskip("scipy")
    niqe = naturalness.NIQE(weights_file("niqe_pris_params.npz"))
    clip = photograph()
    coloured = torch.stack([photograph(seed)[..., 0] for seed in (1, 2, 3)], dim=-1)
    for other, value in ((clip, 6.2084), (blurred(clip, 3), 6.0437), (blurred(clip, 9), 9.0275),
                         (noisy(clip, 0.05), 9.3698), (coloured, 6.0083)):
        assert niqe(other) == pytest.approx(value, rel=5e-3)
    with pytest.raises(InputError, match="96x96"):
        niqe(clip[:, :100, :100])


def test_brisque_grows_with_blur_and_noise_on_its_scale() -> None:
    pytest.importorskip("brisque")
    brisque = naturalness.BRISQUE()
    clip = photograph()
    for worse in ([blurred(clip, side) for side in (3, 5, 9)], [noisy(clip, level) for level in (0.02, 0.05, 0.2)]):
        scores = [brisque(clip), *map(brisque, worse)]
        assert 25 < scores[0] < 45 and 55 < scores[-1] < 75 and scores == sorted(scores)
    grey = metrics.luma(torch.stack([photograph(seed)[..., 0] for seed in (1, 2, 3)], dim=-1))
    assert brisque(grey.float()[..., None].expand(-1, -1, -1, 3)) == pytest.approx(scores[0], abs=5)


def test_brisque_hands_whole_levels_of_rgb_to_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    class Package:
        def scale_features(self, features: list[float]) -> list[float]:
            assert all(type(feature) is float for feature in features)
            return features

        def score(self, picture: np.ndarray) -> float:
            seen.append(picture)
            return self.scale_features([np.array([float(picture.mean())])])[0]  # type: ignore[list-item]

    monkeypatch.setitem(sys.modules, "brisque", SimpleNamespace(BRISQUE=Package))
    clip = torch.zeros(2, 16, 20, 3)
    clip[0, ..., 0], clip[1] = 1.2, 0.5
    assert naturalness.BRISQUE()(clip) == pytest.approx((255 / 3 + 128) / 2)
    assert seen[0].dtype == np.uint8 and seen[0].shape == (16, 20, 3) and tuple(seen[0][0, 0]) == (255, 0, 0)
    monkeypatch.setattr(Package, "score", lambda *_: float("nan"))
    with pytest.raises(InputError, match="without any texture"):
        naturalness.BRISQUE()(clip)
    with pytest.raises(InputError, match="14x14 or more, got 20x8"):
        naturalness.BRISQUE()(clip[:, :8])


def test_dists_is_zero_for_equal_frames_and_grows() -> None:
    pytest.importorskip("DISTS_pytorch")
    from setevsr_core.evaluation.dists import DISTS

    dists = DISTS(weights_file("vgg16_features_fp16.safetensors"))
    truth = textured(1)
    assert dists(truth, truth) == pytest.approx(0.0, abs=1e-5)
    noise = 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert 0 < dists((truth + noise).clamp(0, 1), truth) < dists((truth + 4 * noise).clamp(0, 1), truth)


def test_lpips_lies_wholly_on_the_device_that_it_is_given() -> None:
    metric = metrics.LPIPS(weights_file("alexnet_features.safetensors"), "meta").metric
    assert {tensor.device.type for tensor in (*metric.parameters(), *metric.buffers())} == {"meta"}


def test_vmaf_where_ffmpeg_has_it() -> None:
    from setevsr_core.evaluation.vmaf import VMAF

    try:
        vmaf = VMAF()
    except MissingPackageError as error:
        pytest.skip(str(error))
    truth = textured(3, 144, 176)
    assert vmaf(truth, truth) > 90
    assert vmaf((truth * 0.2 + 0.4), truth) < vmaf(truth, truth) - 20


# ---- alignment ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("x", "y"), [(1.0, 0.0), (0.5, 0.0), (0.0, -0.5), (-3.0, 2.0)])
def test_a_shifted_result_is_refused_with_its_shift(x: float, y: float) -> None:
    truth = textured(2, 96, 128)
    shift = alignment.estimate_shift(fourier_shift(truth, x, y), truth)
    assert (shift.x, shift.y) == pytest.approx((x, y), abs=0.08) and shift.error < 0.1
    with pytest.raises(InputError, match=r"city of bicubic: the result is shifted by [+-]\d\.\d\d px to the right"):
        alignment.check_alignment(fourier_shift(truth, x, y), truth, "city of bicubic")


def test_aligned_blurred_and_flat_results_pass() -> None:
    truth = textured(2, 96, 128)
    low = torch.nn.functional.avg_pool2d(truth.movedim(-1, 1), 4)
    blurred = torch.nn.functional.interpolate(low, scale_factor=4, mode="bicubic").movedim(1, -1)
    assert alignment.check_alignment(blurred, truth, "blurred").distance < 0.1
    flat = torch.full_like(truth, 0.5)
    assert math.isinf(alignment.check_alignment(flat, flat, "flat").error)


def test_the_shift_of_the_input_is_forgiven_up_to_half_a_pixel() -> None:
    truth = textured(2, 96, 128)
    moved = fourier_shift(truth, 0.4, 0.0)
    own = alignment.Shift(0.4, 0.0, 0.01)
    assert alignment.check_alignment(moved, truth, "noisy", own=own).x == pytest.approx(0.4, abs=0.08)
    with pytest.raises(InputError):
        alignment.check_alignment(truth.roll(2, 2), truth, "far", own=alignment.Shift(2.0, 0.0, 0.01))


def test_other_counts_and_sizes_are_refused() -> None:
    truth = textured(2)
    with pytest.raises(InputError, match="1 frames and the truth 2"):
        alignment.check_alignment(truth[:1], truth, "short")
    with pytest.raises(InputError, match="78x64 and the truth 80x64"):
        alignment.check_alignment(truth[:, :, 1:-1], truth, "narrow")


# ---- statistics and tables ------------------------------------------------------------------------------------------
def test_bootstrap_of_known_data() -> None:
    interval = bootstrap([1.0] * 5)
    assert (interval.mean, interval.low, interval.high, interval.count) == (1.0, 1.0, 1.0, 5)
    values = np.random.default_rng(3).normal(10, 2, 200)
    interval = bootstrap(list(values))
    half = 1.96 * values.std(ddof=1) / 200**0.5
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1)
    assert bootstrap(list(values), seed=1) == bootstrap(list(values), seed=1) != interval
    assert math.isnan(bootstrap([4.0]).low) and bootstrap([4.0]).mean == 4.0
    with pytest.raises(InputError):
        bootstrap([])


def test_table_holds_means_clips_and_what_is_missing(tmp_path: Path) -> None:
    def row(clip: str, method: str, psnr: float | None, niqe: float) -> Row:
        figures: dict[str, float | None] = {"niqe": niqe}
        if psnr is not None:
            figures["psnr"] = psnr
        return Row(clip, method, "", 2, (8, 8), 0.5, None if method == TRUTH else (0.1, -0.2, 0.05), figures)

    rows = [row("a", "bicubic", 20.0, 8.0), row("b", "bicubic", 20.0, 8.0), row("a", TRUTH, None, 4.0)]
    settings = {"crop": (8, 8), "frames": 2, "scale": 4, "low": "degrade", "seed": 1000, "bootstrap_seed": 0}
    text = tables.markdown(rows, ["psnr", "niqe", "dover"], settings, {"dover": "no | file"})
    assert "2 clips, first 2 frames, centre 8x8, x4, degradation seeds 1000.., bootstrap seed 0;" in text
    assert f"torch {torch.__version__}" in text and f"{torch.get_num_threads()} threads" in text
    assert "| method | PSNR ↑ | NIQE ↓ | s/frame |" in text
    assert "| bicubic | 20.00 (20.00 to 20.00) | 8.00 (8.00 to 8.00) | 0.50 (0.50 to 0.50) |" in text
    assert "| a | truth | – | 4.00 | – | – |" in text
    assert "| a | bicubic | 20.00 | 8.00 | 0.50 | +0.10, -0.20 ± 0.05 |" in text
    assert "| DOVER | no \\| file |" in text
    tables.write_csv(tmp_path, rows, ["psnr", "niqe"], settings)
    assert (tmp_path / "means.csv").read_text().splitlines()[1] == "bicubic,psnr,20,20,20,2"
    assert (tmp_path / "clips.csv").read_text().splitlines()[1] == "a,bicubic,2,8,8,20,8,0.5,0.1,-0.2,0.05"


def test_records_go_on_after_a_torn_line_and_refuse_other_settings(tmp_path: Path) -> None:
    row = Row("a", "m", "f", 2, (8, 8), 0.5, (0.0, 0.0, 0.1), {"psnr": 20.0, "niqe": None})
    Records(tmp_path, {"seed": 1, "crop": (4, 4)}).add(row)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"clip": "b", "meth')
    records = Records(tmp_path, {"seed": 1, "crop": (4, 4)})
    assert records.rows == {("a", "m"): row}
    records.add(Row("b", "m", "f", 2, (8, 8), 0.5))
    assert len(Records(tmp_path, {"seed": 1, "crop": (4, 4)}).rows) == 2
    assert records.find("a", "m", "f", ["psnr", "niqe"]) == row
    assert records.find("a", "m", "f", ["lpips"]) is None and records.find("a", "m", "other", []) is None
    with pytest.raises(SettingsError, match="seed 1 and not 2"):
        Records(tmp_path, {"seed": 2, "crop": (4, 4)})


# ---- data sets ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layout", "low", "folders", "expected"),
    [
        ("folder", "auto", ["a", "b"], {"a": ("a", None), "b": ("b", None)}),
        ("folder", "auto", ["GT/a", "LQ/a"], {"a": ("GT/a", "LQ/a")}),
        ("REDS", "BI", [f"train/train_sharp/{n}" for n in ("000", "001", "011", "020")] + ["val/val_sharp/000"]
         + ["train/train_sharp_bicubic/X4/001", "val/val_sharp_bicubic/X4/000"],
         {"001": ("train/train_sharp/001", "train/train_sharp_bicubic/X4/001"),
          "val_000": ("val/val_sharp/000", "val/val_sharp_bicubic/X4/000")}),
        ("REDS4", "degrade", [f"train_sharp/{n}" for n in ("000", "001", "011", "015", "020")],
         {n: (f"train_sharp/{n}", None) for n in ("000", "011", "015", "020")}),
        ("REDS4", "auto", ["GT/000", "BIx4/000"], {"000": ("GT/000", "BIx4/000")}),
        ("SPMCS", "auto", ["car05_001/truth", "car05_001/input4", "car05_001/input2"],
         {"car05_001": ("car05_001/truth", "car05_001/input4")}),
        ("UDM10", "BD", ["archpeople/truth", "archpeople/blur4"],
         {"archpeople": ("archpeople/truth", "archpeople/blur4")}),
        ("UDM10", "auto", ["GT/000", "BDx4/000"], {"000": ("GT/000", "BDx4/000")}),
        ("Vid4", "BI", ["GT/city", "BIx4/city", "BDx4/city"], {"city": ("GT/city", "BIx4/city")}),
        ("Vid4", "degrade", ["GT/city", "BIx4/city", "BDx4/city"], {"city": ("GT/city", None)}),
        ("VideoLQ", "auto", ["000", "001"], {"000": (None, "000"), "001": (None, "001")}),
        ("VideoLQ", "auto", ["Input/000"], {"000": (None, "Input/000")}),
    ],
)
def test_layouts_are_read_as_they_are_published(
    tmp_path: Path, layout: str, low: str, folders: list[str], expected: dict[str, tuple[str | None, str | None]]
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "00000000.png").touch()
    found = layouts.find_clips(tmp_path, layout, low)
    got = {c.name: tuple(p and p.relative_to(tmp_path).as_posix() for p in (c.truth, c.low)) for c in found}
    assert got == expected
    assert [clip.index for clip in found] == list(range(len(found)))


@pytest.mark.parametrize(
    ("layout", "low", "folders", "version"),
    [
        ("folder", "auto", ["a"], "degrade"),
        ("folder", "auto", ["GT/a", "lq/a"], "LQ"),
        ("SPMCS", "auto", ["car05_001/truth", "car05_001/input4"], "BI"),
        ("UDM10", "BD", ["archpeople/truth", "archpeople/blur4"], "BD"),
        ("Vid4", "degrade", ["GT/city", "BIx4/city"], "degrade"),
        ("VideoLQ", "auto", ["000"], "LQ"),
    ],
)
def test_clips_know_the_version_of_their_frames(
    tmp_path: Path, layout: str, low: str, folders: list[str], version: str
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").touch()
    assert [clip.version for clip in layouts.find_clips(tmp_path, layout, low)] == [version]


def test_unclear_and_empty_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no clips in the layout Vid4"):
        layouts.find_clips(tmp_path, "Vid4")
    for folder in ("GT/city", "BIx4/city", "BDx4/city"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").touch()
    with pytest.raises(SettingsError, match="several low-resolution versions"):
        layouts.find_clips(tmp_path, "Vid4")
    with pytest.raises(SettingsError, match="no low-resolution version 'LQ'"):
        layouts.find_clips(tmp_path, "Vid4", "LQ")
    with pytest.raises(SettingsError, match="unknown data set 'Vid5'"):
        layouts.find_clips(tmp_path, "Vid5")


def test_loading_cuts_the_centre_on_the_grid_and_degrades_with_the_clips_seed(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", textured(10, 50, 70))
    files = layouts.find_clips(tmp_path)[0]
    whole = datasets.ClipLoader(frames=3).load(files)
    assert whole.truth is not None and whole.truth.shape == (3, 48, 68, 3) and whole.lr.shape == (3, 12, 17, 3)
    cut = datasets.ClipLoader(frames=3, crop=(32, 24)).load(files)
    assert cut.window == (12, 16, 24, 32) and cut.full == (50, 70) and cut.lr.shape == (3, 6, 8, 3)
    assert cut.truth is not None
    assert torch.equal(cut.truth, datasets.read_frames(tmp_path / "a", 3)[:, 12:36, 16:48])
    again = datasets.ClipLoader(frames=3, crop=(32, 24)).load(files)
    other = datasets.ClipLoader(frames=3, crop=(32, 24), seed=1001).load(files)
    assert torch.equal(cut.lr, again.lr) and not torch.equal(cut.lr, other.lr)


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        pictures.save_png(tmp_path / f"im{number}.png", torch.full((4, 4, 3), number / 255))
    assert (datasets.read_frames(tmp_path)[:, 0, 0, 0] * 255).round().tolist() == [9, 10, 100]
    pictures.save_png(tmp_path / "im101.png", torch.zeros(4, 5, 3))
    with pytest.raises(VideoError, match="5x4, the first picture 4x4; all need one size"):
        datasets.read_frames(tmp_path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("shape", [(), (3,), (4,)])
@pytest.mark.parametrize("depth", [8, 16])
def test_pixels_of_pictures_are_those_of_opencv_in_0_to_1(
    tmp_path: Path, ending: str, shape: tuple[int, ...], depth: int
) -> None:
    if ending == ".jpg" and (depth == 16 or shape == (4,)):
        pytest.skip("JPEG has neither")
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(0).integers(0, 2**depth, (256, 300, *shape))
    path = str(tmp_path / f"frame_1{ending}")
    assert cv2.imwrite(path, values.astype(f"uint{depth}"))
    expected = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    assert expected is not None and expected.dtype == f"uint{depth}"
    found = datasets.read_frames(tmp_path)[0].numpy()
    assert np.array_equal(found, expected[..., ::-1].astype(np.float32) / (2**depth - 1))


def test_low_resolution_that_does_not_belong_to_the_truth_is_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "GT" / "a", textured(2, 32, 32))
    write_frames(tmp_path / "LQ" / "a", textured(2, 8, 9))
    with pytest.raises(InputError, match="9x8, the truth at scale 4 asks for 8x8"):
        datasets.ClipLoader().load(layouts.find_clips(tmp_path)[0])


# ---- methods --------------------------------------------------------------------------------------------------------
def test_methods_are_parsed_and_named(tmp_path: Path) -> None:
    preset: Any = methods.parse_method("fast@preset:nano:steps=4,strength=0.5,sampler=ddim")
    assert (preset.name, preset.preset) == ("fast", "nano")
    assert preset.settings == {"steps": 4, "strength": 0.5, "sampler": "ddim"}
    assert methods.parse_method("preset:nano:steps=0").name == "nano (steps 0)"
    assert methods.parse_method(str(tmp_path)).name == tmp_path.name
    assert methods.parse_method("bicubic:steady=4,steady_result=2").name == "bicubic (steady 4, steady_result 2)"
    (tmp_path / "a:b=c").mkdir()
    assert isinstance(methods.parse_method(str(tmp_path / "a:b=c")), methods.Results)
    with pytest.raises(SettingsError, match="two methods are called 'bicubic'"):
        methods.parse_methods(["bicubic", "bicubic"])
    with pytest.raises(SettingsError, match="'steps' in the method 'bicubic:steps=2' is no setting of it"):
        methods.parse_method("bicubic:steps=2")
    for radius in ("5", "-1", "0.5", "much"):
        with pytest.raises(SettingsError, match="steady in the method .* whole number from 0 to 4"):
            methods.parse_method(f"bicubic:steady={radius}")
    with pytest.raises(SettingsError, match="unknown method 'magic'"):
        methods.parse_method("magic")
    with pytest.raises(SettingsError, match="--scale"):
        methods.parse_method("preset:nano:scale=2")


def test_other_settings_of_a_preset_are_another_method() -> None:
    """Else a run that goes on would show figures of the settings before."""
    def fingerprint(settings: str) -> str:
        return methods.parse_method(f"x@preset:nano{settings}").fingerprint("clip")

    prints = [fingerprint(settings) for settings in ("", ":steps=0", ":steps=4", ":steps=4,strength=0.5")]
    assert len(set(prints)) == 4
    assert fingerprint(":strength=0.5,steps=4") == prints[3]


def test_a_method_of_single_frames_can_be_steadied() -> None:
    torch.manual_seed(0)
    still = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8), (24, 32), mode="bicubic").clamp(0.1, 0.9)
    noisy = (still.repeat(5, 1, 1, 1) + 0.02 * torch.randn(5, 3, 24, 32)).movedim(1, -1)
    clip = datasets.Clip("clip", noisy, None, (0, 0, 96, 128), (96, 128))
    runs = [methods.parse_method(f"bicubic{settings}") for settings in ("", ":steady=2", ":steady=2,steady_result=2")]
    flicker = [float(method(clip).diff(dim=0).abs().mean()) for method in runs]
    assert flicker[0] > 1.5 * flicker[1] > 1.5 * flicker[2]
    assert len({method.fingerprint("clip") for method in runs}) == 3


def test_tiles_give_the_whole_picture() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 12, 3, padding=1).eval()

    def network(picture: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(layer(picture), 2)

    picture = torch.rand(1, 3, 23, 37)
    with torch.inference_mode():
        whole = network(picture)
    torch.testing.assert_close(methods.tiled(network, picture, 2, tile=10, margin=2), whole)


# ---- pictures -------------------------------------------------------------------------------------------------------
def test_the_liveliest_window_is_found() -> None:
    frame = torch.full((40, 60, 3), 0.5)
    frame[20:28, 30:40] = torch.rand(8, 10, 3, generator=torch.Generator().manual_seed(0))
    top, left, height, width = pictures.lively_window(frame, (12, 14))
    assert (height, width) == (12, 14) and top <= 20 and top + 12 >= 28 and left <= 30 and left + 14 >= 40
    assert pictures.lively_window(frame, (100, 100)) == (0, 0, 40, 60)


def test_crops_are_enlarged_and_wrapped() -> None:
    crops = {str(i): torch.full((2, 30, 3), i / 10) for i in range(3)}
    picture = pictures.crop_comparison(crops, zoom=3, columns=2)
    assert picture.shape == (2 * (pictures.LABEL + 6) + pictures.GAP, 2 * 90 + pictures.GAP, 3)
    assert (picture[pictures.LABEL :, :, 0][:6, 94:] == 0.1).all()


# ---- the command ----------------------------------------------------------------------------------------------------
@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    for seed, name in enumerate(("one", "two")):
        write_frames(tmp_path / "data" / name, textured(3, 64, 96, seed))
    for name in ("one", "two"):
        write_frames(tmp_path / "ready" / name, datasets.read_frames(tmp_path / "data" / name))
    return tmp_path


def evaluate(folder: Path, *more: str) -> int:
    figures = ("--metrics", "psnr", "ssim_y", "warping", "lpips", "musiq", "dover")
    return cli.main(["evaluate", str(folder / "data"), "--out", str(folder / "out"), *figures, *more])


def test_command_from_data_to_pictures_and_resumes(
    small_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--methods", "bicubic", f"perfect@{small_set / 'ready'}", "--frames", "2", "--crop", "64x48")
    assert evaluate(small_set, *arguments) == 0
    printed = capsys.readouterr()
    assert "lpips: not measured: no file alexnet_features" in printed.err
    text = (small_set / "out" / "table.md").read_text("utf-8")
    assert text in printed.out and "2 clips, first 2 frames, centre 64x48" in text
    assert "| MUSIQ | no file musiq_koniq*.pth in the folders given with --weights |" in text
    rows = [json.loads(line) for line in (small_set / "out" / "rows.jsonl").read_text().splitlines()]
    assert [(row["clip"], row["method"]) for row in rows] == [
        (clip, method) for clip in ("one", "two") for method in ("bicubic", "perfect", TRUTH)
    ]
    assert rows[1]["figures"]["psnr"] == 100 and rows[1]["figures"]["ssim_y"] == pytest.approx(1)
    assert rows[0]["figures"]["psnr"] < 40 and set(rows[2]["figures"]) == {"warping"}
    names = {path.name for path in (small_set / "out" / "pictures").iterdir()}
    assert names == {f"{clip}_{kind}.png" for clip in ("one", "two") for kind in ("crop", "profile")}

    def forbidden(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(datasets.ClipLoader, "load", forbidden)
    assert evaluate(small_set, *arguments) == 0
    assert len((small_set / "out" / "rows.jsonl").read_text().splitlines()) == len(rows)


def test_figures_of_other_data_are_measured_again(small_set: Path) -> None:
    """Also where folder and clips have the names of before; clips that are the same files stay."""
    def measured() -> list[tuple[str, str]]:
        lines = (small_set / "out" / "rows.jsonl").read_text().splitlines()
        return [(row["clip"], row["method"]) for row in map(json.loads, lines)]

    arguments = ("--methods", "bicubic")
    assert evaluate(small_set, *arguments) == 0
    before = measured()
    shutil.copytree(small_set / "data", small_set / "copy")  # with the times of change, as to another machine
    shutil.rmtree(small_set / "data")
    (small_set / "copy").rename(small_set / "data")
    assert evaluate(small_set, *arguments) == 0 and measured() == before
    frame = small_set / "data" / "two" / "00000001.png"
    pictures.save_png(frame, textured(1, 64, 96, seed=7)[0])
    os.utime(frame, ns=(0, 1))  # however soon after the first time
    assert evaluate(small_set, *arguments) == 0
    assert measured()[len(before):] == [("two", "bicubic"), ("two", TRUTH)]


@pytest.mark.parametrize("kind", ["preset", "upscaler"])
def test_command_measures_networks(small_set: Path, networks: Path, kind: str) -> None:
    """From weight files to tables: a preset folder with tiny networks, and a file that spandrel knows."""
    if kind == "preset":
        shutil.copytree(networks, small_set / "tiny")
        (small_set / "tiny" / "config.json").write_text(json.dumps({"defaults": {"steps": 1}}))
        methods_given = [f"preset:{small_set / 'tiny'}", f"decoder@preset:{small_set / 'tiny'}:steps=0"]
        names = ["tiny", "decoder"]
    else:
        pytest.importorskip("spandrel")
        save_file(compact_upscaler(width=8, inner=1), small_set / "net.safetensors")
        save_file(compact_upscaler(width=8, inner=1, scale=2), small_set / "twice.safetensors")
        methods_given = [str(small_set / "net.safetensors"), f"steadied@{small_set / 'twice.safetensors'}:steady=1"]
        names = ["net", "steadied"]
    command = ("--methods", *methods_given, "--frames", "2", "--crop", "64x48", "--clips", "one", "--device", "cpu",
               "--max-shift", "99")  # random networks invent structure of their own
    assert evaluate(small_set, *command) == 0
    rows = [json.loads(line) for line in (small_set / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == [*names, TRUTH]
    assert all(row["size"] == [48, 64] and row["frames"] == 2 for row in rows)
    psnr = [row["figures"]["psnr"] for row in rows[:2]]
    assert all(3 < value < 60 for value in psnr) and psnr[0] != psnr[1]
    for name in names:
        assert f"| {name} |" in (small_set / "out" / "table.md").read_text("utf-8")
    with (small_set / "out" / "means.csv").open() as file:
        assert {line.partition(",")[0] for line in file} == {"method", *names, TRUTH}


def test_command_names_the_version_and_not_the_clip_that_it_lies_in(tmp_path: Path) -> None:
    truth = textured(2, 64, 96)
    write_frames(tmp_path / "data" / "car05_001" / "truth", truth)
    low = torch.nn.functional.avg_pool2d(truth.movedim(-1, 1), 4).movedim(1, -1)
    write_frames(tmp_path / "data" / "car05_001" / "input4", low)
    command = ["evaluate", str(tmp_path / "data"), "--dataset", "SPMCS", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--methods", "bicubic", "--metrics", "psnr"]) == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["low"] == "BI"
    assert "low resolution BI," in (tmp_path / "out" / "table.md").read_text("utf-8")


def test_command_refuses_a_shifted_result_and_keeps_the_rows(
    small_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = small_set / "ready" / "two"
    write_frames(ready, datasets.read_frames(ready).roll(1, 2))
    assert evaluate(small_set, "--methods", "bicubic", f"mine@{small_set / 'ready'}") == 2
    assert "two of mine: the result is shifted by" in capsys.readouterr().err
    rows = [json.loads(line) for line in (small_set / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["bicubic", "mine", TRUTH, "bicubic"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "wide"], "--crop is 'wide'"),
        (["--clips", "three"], "no clip 'three'; the set has one, two"),
        (["--metrics", "beauty"], "unknown metric 'beauty'"),
        (["--methods", "preset:none"], "no preset 'none'"),
        (["--device", "cuda:77"], "device is 'cuda:77', which cannot compute here"),
    ],
)
def test_command_names_what_is_wrong(
    small_set: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert evaluate(small_set, *options) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_a_reason_not_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "brisque", None)
    built = measures.Instruments.build(["brisque", "psnr"], measures.Equipment())
    assert set(built.figures) == {"psnr"} and "pip install brisque" in built.missing["brisque"]


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_a_reason_not_an_end(tmp_path: Path, content: bytes) -> None:
    for name in ("alexnet_features.safetensors", "vgg16_features.safetensors", "niqe_pris_params.npz",
                 "musiq_koniq10k.pth", "RN50.pt"):
        (tmp_path / name).write_bytes(content)
    names = ["lpips", "dists", "niqe", "musiq", "clipiqa", "dover"]
    built = measures.Instruments.build(names, measures.Equipment([tmp_path]))
    assert not built.figures and list(built.missing) == names


def test_frames_that_do_not_suit_a_figure_are_a_reason_not_an_end() -> None:
    small = textured(2, 12, 12)

    def broken(result: torch.Tensor, truth: torch.Tensor) -> float:
        raise VideoError("the program failed")

    figures: dict[str, Any] = {"psnr": metrics.psnr, "dover": broken}
    try:
        figures["lpips"] = metrics.LPIPS(weights_file("alexnet_features.safetensors"))
    except pytest.skip.Exception:
        pass
    built = measures.Instruments(figures)
    found = built.measure(list(figures), small, small)
    assert found.pop("psnr") == pytest.approx(100) and "dover" not in found  # so that a later run tries it again
    assert built.missing["dover"] == "not everywhere: the program failed"
    if found:
        assert found == {"lpips": None} and "31x31 or more, got 12x12" in built.missing["lpips"]


class Pyiqa:
    """Stands for pyiqa 0.1.16: its signatures, on networks that are one number."""

    def __init__(self, failure: Exception | None = None):
        self.failure = failure
        self.built: list[dict[str, Any]] = []

    def create_metric(self, metric_name: str, as_loss: bool = False, device: Any = None, **kwargs: Any) -> Any:
        defaults = {"musiq": {"pretrained": "koniq10k"}, "clipiqa": {}}[metric_name]
        return self._model(metric_name, as_loss=as_loss, device=device, **{**defaults, **kwargs})

    def _model(
        self, metric_name: str, as_loss: bool = False, loss_weight: Any = None, loss_reduction: str = "mean",
        device: Any = None, seed: int = 123, check_input_range: bool = True, **options: Any,
    ) -> Any:
        network = {"musiq": self._musiq, "clipiqa": self._clipiqa}[metric_name](**options)

        def metric(target: torch.Tensor, ref: torch.Tensor | None = None) -> torch.Tensor:
            assert target.ndim == 4 and target.shape[1] == 3 and 0 <= target.min() and target.max() <= 1
            if self.failure is not None:
                raise self.failure
            return network * target[:, 0].mean().view(1, 1)

        self.built.append({"device": device, **options})
        return metric

    def _musiq(
        self, patch_size: int = 32, num_class: int = 1, pretrained: bool | str = True,
        pretrained_model_path: str | None = None, longer_side_lengths: tuple[int, ...] = (224, 384),
    ) -> torch.Tensor:
        assert pretrained_model_path is not None and not pretrained, "it would download"
        return torch.load(pretrained_model_path, map_location="cpu", weights_only=False)["weight"]

    def _clipiqa(
        self, model_type: str = "clipiqa", backbone: str = "RN50", pretrained: bool = True, pos_embedding: bool = False
    ) -> torch.Tensor:
        assert Path(backbone).is_file(), "it would download"
        return torch.load(backbone, map_location="cpu")["weight"]


@pytest.mark.parametrize(("name", "file"), [("musiq", "musiq_koniq_ckpt-e95806b9.pth"), ("clipiqa", "RN50.pt")])
def test_pyiqa_is_called_as_it_is_written_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    pyiqa = Pyiqa()
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    torch.save({"weight": torch.tensor(60.0)}, tmp_path / file)
    equipment = measures.Equipment([tmp_path], device="cpu")
    instruments = measures.Instruments.build([name], equipment)
    assert not instruments.missing and pyiqa.built[0]["device"] == torch.device("cpu")
    clip = torch.stack([torch.full((8, 9, 3), level) for level in (0.25, 0.5, 1.5)])
    clip[..., 1:] = 0  # red counts: the channels are planes, in the order RGB
    assert instruments.measure([name], clip, clip) == {name: pytest.approx(60 * (0.25 + 0.5 + 1) / 3)}
    pyiqa.failure = RuntimeError("Output size is too small\nat line 7")
    assert instruments.measure([name], clip, clip) == {name: None}
    assert f"{name} cannot judge frames of 9x8: Output size is too small" in instruments.missing[name]
    pyiqa.failure = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        instruments.measure([name], clip, clip)


def test_a_musiq_file_that_holds_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", Pyiqa())
    torch.save({"weight": SimpleNamespace(anything=print)}, tmp_path / "musiq_koniq.pth")
    with pytest.raises(CheckpointError, match="no weight file for musiq"):
        no_reference.FromPyiqa("musiq", tmp_path / "musiq_koniq.pth")


def test_dover_reads_the_authors_script(tmp_path: Path) -> None:
    from setevsr_core.evaluation.no_reference import DOVER

    with pytest.raises(CheckpointError, match="evaluate_one_video"):
        DOVER(tmp_path)
    (tmp_path / "dover.yml").touch()
    (tmp_path / "pretrained_weights").mkdir()
    (tmp_path / "pretrained_weights" / "DOVER.pth").touch()
    script = "import sys\nassert sys.argv[1] == '-v' and open(sys.argv[2], 'rb').read(12)[4:8] == b'ftyp'\n"
    script += "print('Normalized fused overall score (scale in [0,1]):', 0.625)\n"
    (tmp_path / "evaluate_one_video.py").write_text(script)
    assert DOVER(tmp_path)(textured(2)) == 0.625


def test_file_names_stay_different() -> None:
    assert running.slug("city") == "city"
    assert len({running.slug(name) for name in ("a b", "a_b", "a/b", "äb")}) == 4
