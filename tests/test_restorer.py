"""The whole way with tiny random networks: exact sizes, bits that do not depend on how one asks, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from setevsr_core import InputError, Restorer, SettingsError, segment_run, stages
from setevsr_core.estimate import step_work
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.temporal_vae import TemporalVAE, VAEConfig
from setevsr_core.settings import RestoreSettings
from setevsr_core.video.resize import upscale_bicubic
from setevsr_core.video.segments import plan_spans
from setevsr_core.video.stitch import Stitcher

from .tiny_networks import TinyEncoder, tiny_denoiser, tiny_vae


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    torch.set_num_threads(1)
    return Restorer(tiny_denoiser(), tiny_vae(), TinyEncoder(), defaults={"steps": 1, "unused": 1})


def clip(frames: int, h: int = 16, w: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(frames, h, w, channels, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 9])
def test_frame_counts_come_back_exactly(restorer: Restorer, count: int) -> None:
    result = restorer.restore(clip(count), scale=4, steps=1, sampler="ddim")
    assert result.shape == (count, 64, 64, 3) and result.dtype == torch.float32
    assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize(
    ("h", "w", "scale", "expected"),
    [
        (16, 16, 1, (16, 16)),
        (16, 17, 1.5, (24, 26)),
        (16, 16, 8, (128, 128)),
        (33, 19, 2, (66, 38)),
        (17, 40, 2.37, (40, 95)),
        (1, 3, 4, (4, 12)),
    ],
)
def test_sizes_come_back_exactly(restorer: Restorer, h: int, w: int, scale: float, expected: tuple[int, int]) -> None:
    assert restorer.restore(clip(1, h, w), scale=scale, steps=1).shape == (1, *expected, 3)


def test_same_call_same_bits_and_seed_matters(restorer: Restorer) -> None:
    frames = clip(3)
    results = [restorer.restore(frames, scale=1, steps=2, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("cuts", [None, (4,)])
def test_stream_gives_the_bits_of_restore(restorer: Restorer, channels: int, cuts: tuple[int, ...] | None) -> None:
    frames = clip(9, channels=channels)
    whole = restorer.restore(frames, scale=2, steps=2, cuts=cuts)
    blocks = list(restorer.stream(iter(frames), scale=2, steps=2, cuts=cuts))
    assert len(blocks) > 1 and torch.equal(torch.cat(blocks), whole)


@pytest.mark.parametrize("keep_features", [True, False])
@pytest.mark.parametrize("steps", [0, 2])
def test_composed_stages_give_the_bits_of_restore(restorer: Restorer, keep_features: bool, steps: int) -> None:
    frames, scale = clip(7, 20, 40), 2
    tiling: dict[str, Any] = {"tile": 8, "tile_overlap": 4}
    vae, denoiser, encoder = restorer.vae, restorer.denoiser, restorer.encoder
    encoded = stages.encode_latents(vae, frames, scale, keep_features=keep_features)
    semantics = stages.encode_semantics(encoder, frames)
    stitcher, blocks = Stitcher(), []
    for span in plan_spans(len(frames), 5, 2):
        part = slice(span.start, span.stop)
        latents = stages.denoise_span(
            denoiser,
            encoded.latents[part],
            semantics[part],
            span.indices,
            seed=3,
            steps=steps,
            content=encoded.content,
            **tiling,
        )
        features = [feature[part] for feature in encoded.features] if encoded.features else None
        pictures = stages.decode_span(vae, latents, frames[part], scale, features=features)
        blocks.append(stitcher.push(span, pictures))
    blocks.append(stitcher.finish())
    assert torch.equal(torch.cat(blocks), restorer.restore(frames, scale=scale, steps=steps, seed=3, **tiling))


def test_features_over_budget_are_recomputed_with_the_same_bits(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = clip(6)
    kept = restorer.restore(frames, scale=2)
    monkeypatch.setattr("setevsr_core.segment_run.FEATURE_BUDGET", 1)
    assert torch.equal(restorer.restore(frames, scale=2), kept)


def test_every_setting_reaches_the_result(restorer: Restorer) -> None:
    frames = 0.9 * clip(1, 16, 40) + 0.05 * clip(4, 16, 40)  # of one scene, with some noise
    base: dict[str, Any] = {"scale": 2, "steps": 2, "length": 2, "overlap": 1}
    reference = restorer.restore(frames, **base)
    changes: list[dict[str, Any]] = [
        {"steps": 3}, {"strength": 0.5}, {"sampler": "ddim"}, {"length": 3}, {"overlap": 0}, {"cuts": [1]},
        {"fusion": 0.5}, {"fusion": 0.0}, {"colour": "adain"}, {"colour": "none"}, {"tile": 8, "tile_overlap": 0},
        {"text": torch.ones(1, 3, 8)}, {"steps": 0}, {"steady": 1},
    ]  # fmt: skip
    for change in changes:
        assert not torch.equal(restorer.restore(frames, **{**base, **change}), reference), change


def test_semantics_reach_the_result(restorer: Restorer) -> None:
    without = Restorer(restorer.denoiser, restorer.vae, None, defaults={"steps": 1})
    assert not torch.equal(without.restore(clip(1), scale=2), restorer.restore(clip(1), scale=2))


def test_alpha_is_enlarged_and_kept_and_colours_do_not_see_it(restorer: Restorer) -> None:
    frames = clip(6, channels=4)
    result = restorer.restore(frames, scale=3)
    alpha = upscale_bicubic(frames[..., 3:].movedim(-1, 1), 3).movedim(1, -1)
    assert torch.equal(result[..., 3:], alpha)
    assert torch.equal(result[..., :3], restorer.restore(frames[..., :3], scale=3))


def test_colours_follow_the_input(restorer: Restorer) -> None:
    frames = torch.tensor([0.8, 0.2, 0.4]).expand(1, 16, 16, 3)
    result = restorer.restore(frames, scale=4, colour="adain")
    torch.testing.assert_close(result.mean((0, 1, 2)), frames[0, 0, 0], atol=0.05, rtol=0)


def test_half_precision_frames_are_taken(restorer: Restorer) -> None:
    assert restorer.restore(clip(1).half(), scale=2).dtype == torch.float32


def test_result_is_an_ordinary_tensor(restorer: Restorer) -> None:
    result = restorer.restore(clip(1), scale=2)
    block = next(iter(restorer.stream(clip(1), scale=2)))
    assert not result.is_inference() and not block.is_inference()
    assert not torch.is_inference_mode_enabled()


def test_the_input_is_left_alone(restorer: Restorer) -> None:
    frames = clip(5)
    before = frames.clone()
    restorer.restore(frames, scale=2)
    assert torch.equal(frames, before)


def test_progress_rises_to_one_with_previews(restorer: Restorer) -> None:
    seen: list[tuple[float, str, torch.Tensor | None]] = []
    restorer.restore(clip(7), scale=4, steps=3, progress=lambda *report: seen.append(report))
    shares = [share for share, _, _ in seen]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1.0
    assert max(b - a for a, b in zip(shares, shares[1:], strict=False)) < 0.35
    previews = [preview for _, _, preview in seen if preview is not None]
    assert len(previews) == 3 * len(plan_spans(7)) and previews[0].shape == (8, 8, 3)
    assert any("step 2 of 3" in message for _, message, _ in seen)


def test_progress_of_a_stream_of_unknown_length_counts_frames(restorer: Restorer) -> None:
    seen: list[tuple[float, str]] = []
    list(restorer.stream(clip(7), scale=1, steps=1, progress=lambda share, text, _: seen.append((share, text))))
    assert {share for share, _ in seen[:-1]} == {0.0} and seen[-1][0] == 1.0
    assert any("frames 6-7" in text for _, text in seen)


def test_cancel_works_in_every_stage(restorer: Restorer) -> None:
    class Stop(Exception):
        pass

    def cancel_after(limit: int) -> int:
        calls = 0

        def check() -> None:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise Stop

        restorer.restore(clip(3), scale=2, steps=4, check_cancel=check)
        return calls

    total = cancel_after(10**9)
    assert total == 3 + 3 + 4 + 1  # encode and semantics per frame, one tile per step, decode
    for limit in range(total):
        with pytest.raises(Stop):
            cancel_after(limit)


def test_stream_holds_few_frames(restorer: Restorer) -> None:
    taken = 0

    def source() -> Iterator[torch.Tensor]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield torch.rand(8, 8, 3)

    delivered = 0
    for block in restorer.stream(source(), scale=1, steps=0):
        delivered += len(block)
        assert taken - delivered <= 2 * 5
    assert delivered == 40


def test_overlap_is_encoded_once(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    original = restorer.vae.encode
    monkeypatch.setattr(restorer.vae, "encode", lambda pixels: encoded.append(len(pixels)) or original(pixels))
    restorer.restore(clip(11), scale=1, steps=0)
    assert encoded == [1] * 11


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(0, 16, 16, 3), "no frames"),
        (torch.zeros(16, 16, 3), "shape"),
        (torch.zeros(1, 3, 16, 16), "shape"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), "divide 8-bit"),
        (torch.full((1, 16, 16, 3), 255.0), "0..1"),
        (torch.tensor([0.5, float("nan"), 0.5]).expand(2, 16, 16, 3), "frame 0 contains NaN"),
        (torch.tensor([0.5, float("inf"), 0.5]).expand(2, 16, 16, 3), "frame 0 contains NaN or infinite"),
        ([[0.0]], "torch tensor"),
    ],
)
def test_unusable_frames_are_refused_in_one_sentence(restorer: Restorer, frames: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        restorer.restore(frames)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("a prompt", "text must be an embedding.*got str"), (torch.zeros(8), r"text must be an embedding.*got \(8,\)"),
    (torch.zeros(1, 3, 9), "text embedding is 9 wide"), (torch.zeros(2, 3, 8), "came with 2 texts"),
    (torch.full((1, 3, 8), float("nan")), "denoiser gives NaN.*text"),
])
def test_unusable_texts_are_refused(restorer: Restorer, text: Any, message: str) -> None:
    with pytest.raises((InputError, SettingsError), match=message):
        restorer.restore(clip(3), scale=1, text=text)


def test_networks_that_do_not_fit_are_refused_by_name(restorer: Restorer) -> None:
    vae = TemporalVAE(VAEConfig(channels=(32, 32), layers=1, patch=4, fusion_levels=(), latent_channels=16))
    for networks, message in (
        ((restorer.vae, restorer.denoiser), "denoiser is a TemporalVAE; give what checkpoints.load_denoiser"),
        ((restorer.denoiser, None), "vae is a NoneType"), (("a.ckpt", "b.ckpt"), "denoiser is a str"),
        ((restorer.denoiser, vae), "VAE makes latents of 16 channels, the denoiser takes 4"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=message):
            Restorer(*networks)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="device is 'banana'"):
        Restorer.from_preset("nano", device="banana")


def test_stream_refuses_bad_frames_by_number(restorer: Restorer) -> None:
    good = torch.zeros(16, 16, 3)
    with pytest.raises(InputError, match="frame 2 contains NaN"):
        list(restorer.stream([good, good, good * float("nan")], scale=1, steps=0))
    with pytest.raises(InputError, match="video is empty"):
        list(restorer.stream([]))
    with pytest.raises(InputError, match="iterable of tensors.*NoneType"):
        restorer.stream(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="meta device"):
        restorer.restore(torch.empty(2, 16, 16, 3, device="meta"))
    with pytest.raises(InputError, match="sparse"):
        restorer.restore(torch.zeros(2, 16, 16, 3).to_sparse())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", 0.5), ("scale", 9), ("scale", "4"), ("steps", -1), ("steps", 1001), ("steps", 2.5), ("seed", -1),
        ("seed", 2**64), ("strength", 0), ("strength", 1.5), ("sampler", "euler"), ("length", 0), ("overlap", 5),
        ("cuts", "often"), ("fusion", 2), ("colour", "sepia"), ("tile", 60), ("tile_overlap", 64), ("tile_overlap", -1),
        ("steady", 5), ("steady", 0.5), ("steady_result", 5),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(restorer: Restorer, name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        restorer.restore(clip(1), **{name: value})
    with pytest.raises(SettingsError, match=name):
        restorer.stream(clip(1), **{name: value})  # at the call, not at the first frame


def test_unknown_settings_are_refused(restorer: Restorer) -> None:
    with pytest.raises(SettingsError, match="sharpness"):
        restorer.stream(clip(1), sharpness=1)


def test_an_overlap_nobody_chose_fits_small_segments_and_tiles(restorer: Restorer) -> None:
    small = restorer.settings(length=1, tile=16)
    assert (small.overlap, small.tile_overlap) == (0, 8)
    assert restorer.settings(length=3, tile=24) == replace(restorer.settings(), length=3, tile=24)
    with pytest.raises(SettingsError, match="overlap must be .* below the length of 2, got 2"):
        restorer.settings(length=2, overlap=2)


def test_defaults_fill_what_is_left_open(restorer: Restorer) -> None:
    assert restorer.settings().steps == 1
    assert restorer.settings(steps=7, scale=None).steps == 7
    assert Restorer(restorer.denoiser, restorer.vae).settings() == RestoreSettings()


def test_diffusion_without_a_denoiser_is_refused(restorer: Restorer) -> None:
    decoder_only = Restorer(None, restorer.vae)
    assert decoder_only.restore(clip(1), scale=2, steps=0).shape == (1, 32, 32, 3)
    with pytest.raises(SettingsError, match="denoiser"):
        decoder_only.restore(clip(1), scale=2, steps=1)


def test_latents_of_another_video_are_refused(restorer: Restorer) -> None:
    latents = stages.encode_latents(restorer.vae, clip(2), 4).latents
    with pytest.raises(InputError, match="do not belong"):
        stages.decode_span(restorer.vae, latents, clip(3), 4)
    with pytest.raises(InputError, match="do not belong"):
        stages.decode_span(restorer.vae, latents, clip(2), 8)


def test_bits_of_an_encoded_frame_do_not_depend_on_its_neighbours(restorer: Restorer) -> None:
    frames = clip(5)
    together = stages.encode_latents(restorer.vae, frames, 4)
    alone = stages.encode_latents(restorer.vae, frames[3:4], 4)
    assert torch.equal(together.latents[3:4], alone.latents)
    assert together.size == (64, 64) and together.content == (1.0, 1.0)
    assert stages.encode_latents(restorer.vae, clip(1, 20, 40), 4).content == (80 / 128, 160 / 192)


@pytest.mark.parametrize("colour", ["wavelet", "adain", "none"])
def test_colour_can_be_chosen_after_decoding(restorer: Restorer, colour: str) -> None:
    frames = clip(2)
    latents = stages.encode_latents(restorer.vae, frames, 3).latents
    at_once = stages.decode_span(restorer.vae, latents, frames, 3, colour=colour)
    plain = stages.decode_span(restorer.vae, latents, frames, 3, colour="none")
    assert torch.equal(stages.recolour(plain, frames, colour), at_once)


def test_preview_shows_the_colours_that_latents_stand_for() -> None:
    colours = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mixing = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    small = torch.nn.functional.avg_pool2d(colours, 8)
    latents = torch.einsum("cd,ndhw->nchw", mixing, small - 0.3)
    picture = stages.preview(latents, stages.fit_preview(latents, colours))
    torch.testing.assert_close(picture, small.movedim(1, -1), atol=0.05, rtol=0)


def test_place_casts_and_prepare_is_called_before_each_network(restorer: Restorer) -> None:
    vae = TemporalVAE(VAEConfig(channels=(32, 32), layers=1, patch=4, mid_attention=False, fusion_levels=()))
    used: list[str] = []
    twin = Restorer(restorer.denoiser, vae, restorer.encoder, dtype=None, prepare=used.append)
    twin.restore(clip(1), scale=1, steps=1)
    assert used == ["vae", "encoder", "denoiser", "vae"]
    Restorer(None, vae, dtype=torch.bfloat16, place=False)
    assert vae.dtype == torch.float32
    cast = Restorer(None, vae, dtype=torch.bfloat16)
    assert vae.dtype == torch.bfloat16 and next(vae.parameters()).dtype == torch.bfloat16
    assert cast.restore(clip(1), scale=1, steps=0).dtype == torch.float32


def test_importing_the_package_is_free() -> None:
    code = "import sys, setevsr_core; print(setevsr_core.__version__, 'torch' in sys.modules)"
    root = Path(__file__).parent.parent
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert answer.split()[1] == "False"


def test_cuts_are_found_while_streaming(restorer: Restorer) -> None:
    pytest.importorskip("scenedetect")
    frames = torch.cat([torch.full((7, 32, 32, 3), 0.1), torch.full((6, 32, 32, 3), 0.9)])
    frames = frames + 0.02 * clip(13, 32, 32)
    found = restorer.restore(frames, scale=1, steps=0, cuts="auto")
    assert torch.equal(found, restorer.restore(frames, scale=1, steps=0, cuts=[7]))
    assert not torch.equal(found, restorer.restore(frames, scale=1, steps=0))


def test_no_ghost_of_the_scene_before_a_hard_cut(restorer: Restorer) -> None:
    pytest.importorskip("scenedetect")
    after = torch.full((6, 16, 16, 3), 0.9) + 0.02 * clip(6)
    dark, green = torch.full((6, 16, 16, 3), 0.1), torch.tensor([0.0, 0.5, 0.1]).expand(6, 16, 16, 3)
    settings = {"scale": 2, "steps": 0, "length": 5, "overlap": 2, "cuts": "auto"}
    results = [restorer.restore(torch.cat([before, after]), **settings)[6:] for before in (dark, green)]
    assert torch.equal(*results)  # not one bit of the second scene depends on the first
    ghosts = restorer.restore(torch.cat([dark, after]), **{**settings, "cuts": None})[6:]
    assert not torch.equal(ghosts, results[0])


def test_a_full_memory_makes_the_denoisers_tiles_smaller_and_the_run_goes_on(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Full in the second segment: the first one counts, and the third is not tried in large tiles again. The last
    words of the run name the setting.
    """
    denoise, seen = stages.denoise_span, []
    room = 32

    def scarce(*arguments: Any, tile: int, tile_overlap: int, **options: Any) -> torch.Tensor:
        seen.append((arguments[3].start, tile, tile_overlap))
        if seen[-1][0] and tile > room:
            raise MemoryError
        return denoise(*arguments, tile=tile, tile_overlap=tile_overlap, **options)

    monkeypatch.setattr(stages, "denoise_span", scarce)
    settings: dict[str, Any] = {"scale": 4, "steps": 1, "length": 2, "overlap": 1, "tile": 64, "tile_overlap": 32}
    settings["fusion"] = 0.0
    result = restorer.restore(clip(4, 80, 16), **settings)  # 40 latents high
    assert seen == [(0, 64, 32), (1, 64, 32), (1, 16, 8), (2, 16, 8)] and result.shape == (4, 320, 64, 3)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "the memory is full: the denoiser goes on in tiles of 16 latents",
        "for want of memory the denoiser ended in tiles of 16 latents; set 'tile' to 16 to spare the attempts",
    ]
    room = 8
    with pytest.raises(SettingsError, match="The memory is full: lower 'length'.*or 'scale'"):
        restorer.restore(clip(4, 80, 16), **settings)


def test_on_a_gpu_no_tile_is_tried_that_is_sure_not_to_fit(caplog: pytest.LogCaptureFixture) -> None:
    """Where the whole frame fits nothing changes; on a processor nothing ever does."""
    config = DenoiserConfig.nano()
    network, latents = Denoiser(config, device="meta", dtype=torch.bfloat16), torch.zeros(5, 4, 96, 160)
    each = segment_run.STEP_NUMBERS * 5 * config.channels[0] * 2

    def first(tile: int, free: int, device: str = "cuda") -> int:
        tiles = segment_run.denoiser_tiles(network, tile, latents, torch.device(device), lambda _: free, "lower it.")
        found = tiles.run(lambda side: side)
        tiles.report()
        return found

    assert first(0, each * 96 * 160) == 0 and first(64, each * 64**2) == 64 and first(64, 0, "cpu") == 64
    assert not caplog.records
    assert first(0, each * 96 * 160 - 1) == 80 and first(64, each * 40**2) == 32
    assert "tiles of 32 latents; set 'tile' to 32 to spare the attempts" in caplog.text
    assert first(64, 0) == segment_run.SMALLEST_TILE


@pytest.mark.parametrize("modules", [{}, {"semantic_levels": (), "temporal_sites": "none", "spade": False,
                                          "temporal_spatial_sites": "none"}])  # fmt: skip
def test_a_step_never_holds_less_than_what_is_taken_for_sure(modules: dict[str, Any]) -> None:
    config = DenoiserConfig.nano(layers=1, **modules)
    network = Denoiser(config, device="meta", dtype=torch.bfloat16)
    work, _ = step_work(network, None, (16, 16), 2, RestoreSettings(tile=0, tile_overlap=0))
    numbers = work.peak_bytes / (2 * 2 * 16 * 16 * config.channels[0])
    assert segment_run.STEP_NUMBERS <= numbers < 1.4 * segment_run.STEP_NUMBERS
