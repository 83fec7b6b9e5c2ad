"""ComfyUI's own samplers on our denoiser: the same latents as our own loop, LoRA patches, and refusals in one sentence.

Needs a ComfyUI tree, like test_nodes.py, whose tiny networks are used here.
"""

from __future__ import annotations

import importlib
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import test_nodes as shared  # type: ignore[attr-defined]

pack, nodes, handles = shared.pack, shared.nodes, shared.handles
part, clip = shared.part, shared.clip

SEED, STEPS = 3, 4  # four steps have whole timesteps: 999, 666, 333, 0


@pytest.fixture
def stages(nodes: dict[str, Any], handles: dict[str, Any]) -> dict[str, Any]:
    """Segments, latents and semantics of a short clip: two segments of three frames that share one."""
    with torch.inference_mode():
        segments, _ = nodes["SeTeVSRSplitSegments"].execute(clip(5), 2.0, 3, 1, "off").result
        (latents,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
        semantics, _ = nodes["SeTeVSREncodeSemantics"].execute(segments, handles["encoder"]).result
        (model,) = nodes["SeTeVSRDenoiserModel"].execute(handles["denoiser"]).result
    return {"segments": segments, "latents": latents, "semantics": semantics, "model": model}


def native(
    nodes: dict[str, Any], stages: dict[str, Any], *, sampler: Any, cfg: float = 1.0, tile: int = 0, overlap: int = 0,
    semantics: bool = True, noise: Any = None, timesteps: Any = None,
) -> Any:  # fmt: skip
    """The joined LATENT of a native run, as SamplerCustomAdvanced does it, segment by segment. timesteps: others than
    those of the scheduler "normal".
    """
    import comfy.sample
    import comfy.samplers

    model = stages["model"]
    positive, negative, latents = nodes["SeTeVSRSamplingConditioning"].execute(
        model, stages["latents"], tile, overlap, stages["semantics"] if semantics else None
    ).result
    (source,) = nodes["SeTeVSRFrameNoise"].execute(SEED).result
    levels = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(levels, "normal", STEPS)
    if timesteps is not None:
        sigmas = torch.cat([levels.sigma(torch.tensor(timesteps)), torch.zeros(1)])
    done = []
    for plus, minus, latent in zip(positive, negative, latents, strict=True):
        sampled = comfy.sample.sample_custom(
            model, (noise or source).generate_noise(latent), cfg, sampler(latent), sigmas, plus, minus,
            latent["samples"], disable_pbar=True, seed=SEED,
        )  # fmt: skip
        done.append({**latent, "samples": sampled})
    return nodes["SeTeVSRJoinLatents"].execute(done).result[0]


def own(nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], sampler: str, tile: int = 0,
        overlap: int = 0, semantics: bool = True) -> Any:  # fmt: skip
    return nodes["SeTeVSRDenoise"].execute(
        handles["denoiser"], stages["latents"], SEED, STEPS, sampler, 1.0, tile, overlap,
        semantics=stages["semantics"] if semantics else None,
    ).result[0]  # fmt: skip


def euler(_: Any) -> Any:
    import comfy.samplers

    return comfy.samplers.sampler_object("euler")


def close(first: Any, second: Any) -> float:
    """Largest difference relative to the spread of the values."""
    return float((first["samples"] - second["samples"]).abs().max() / second["samples"].std())


@torch.inference_mode()
@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (8, 4)])
def test_euler_gives_what_our_ddim_gives(
    tile: int, overlap: int, nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any]
) -> None:
    ours = own(nodes, handles, stages, "ddim", tile, overlap)
    theirs = native(nodes, stages, sampler=euler, tile=tile, overlap=overlap)
    assert close(theirs, ours) < 1e-3
    assert close(theirs, own(nodes, handles, stages, "ddim", tile, overlap, semantics=False)) > 1e-3
    decoded = nodes["SeTeVSRTemporalDecode"].execute(theirs, stages["segments"], handles["vae"]).result[0]
    (images,) = nodes["SeTeVSRStitchSegments"].execute(decoded, "wavelet").result
    assert images.shape == (5, 40, 48, 3)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "theirs"), [("ddpm", "ddpm"), ("dpmpp_2m", "dpmpp_2m"), ("unipc", "uni_pc_bh2"),
                                              ("lcm", "lcm")])  # fmt: skip
def test_samplers_of_one_name_give_the_same(
    name: str, theirs: str, nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], pack: ModuleType
) -> None:
    """ComfyUI's sampler at the timesteps of ours, with the noise of our own loop between the steps.

    UniPC is of order 2 here and of order 3 there, so beyond these few steps, in which both are of order 2, results
    differ (by 0.01 of their spread at 8 steps), as with ComfyUI's "uni_pc", another variant. It has no tcd.
    """
    import comfy.samplers

    table = part(pack, "setevsr_core.sampling.noise").frames_noise

    def sampler(latent: Any) -> Any:
        steps = iter(range(STEPS))

        def between(sigma: Any, following: Any) -> Tensor:
            return table(SEED, latent["batch_index"], next(steps), latent["samples"].shape[1:])

        if name in ("ddpm", "lcm"):
            return comfy.samplers.ksampler(theirs, {"noise_sampler": between})
        return comfy.samplers.sampler_object(theirs)

    timesteps = part(pack, "setevsr_core.sampling.samplers").make_sampler(name, STEPS).timesteps
    sampled = native(nodes, stages, sampler=sampler, timesteps=timesteps)
    assert close(sampled, own(nodes, handles, stages, name)) < 1e-3


@torch.inference_mode()
def test_comfyuis_torch_compile_gives_the_same(nodes: dict[str, Any], stages: dict[str, Any]) -> None:
    """By the function of ComfyUI's TorchCompileModel; "aot_eager" traces as "inductor" does and needs no compiler."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = stages["model"].clone()
    set_torch_compile_wrapper(model=compiled, backend="aot_eager")
    plain = native(nodes, stages, sampler=euler)
    assert close(native(nodes, {**stages, "model": compiled}, sampler=euler), plain) < 1e-3


@torch.inference_mode()
def test_keys_and_values_are_projected_once_a_segment_and_kept_no_longer(
    nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], pack: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """ComfyUI gives fresh tensors at every step; guidance adds the negative's text. Nothing is kept after a run."""
    hosted, module = stages["model"].model.diffusion_model, handles["denoiser"].module
    made: list[tuple[str, Any]] = []

    def counted(name: str) -> Any:
        project = getattr(module, name)

        def run(context: Any) -> Any:
            keys = project(context)
            if context is not None:
                made.append((name, weakref.ref(next(site for site in keys.sites if site is not None)[0])))
            return keys

        return run

    for name in ("project_text", "project_semantics"):
        monkeypatch.setattr(module, name, counted(name))
    kept = native(nodes, stages, sampler=euler, tile=8, overlap=4)
    assert [name for name, _ in made] == ["project_text", "project_semantics"] * 2  # two segments
    assert not any(keys() for _, keys in made)
    made.clear()
    guided = native(nodes, stages, sampler=euler, cfg=2.0)
    assert sorted(name for name, _ in made) == ["project_semantics"] * 2 + ["project_text"] * 4

    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr(hosted, "keep_keys", lambda keep: None)  # as it was before: projected at every step
        assert torch.equal(native(nodes, stages, sampler=euler, tile=8, overlap=4)["samples"], kept["samples"])
        assert torch.equal(native(nodes, stages, sampler=euler, cfg=2.0)["samples"], guided["samples"])
    assert len(made) == 2 * STEPS * 2 + 2 * STEPS * 3
    for change in (lambda x: x + 1, lambda x: x.double(), lambda x: x[:1]):  # other values, another type, other frames
        assert not part(pack, "nodes.native_model").same_values(torch.ones(2, 3), change(torch.ones(2, 3)))


@torch.inference_mode()
def test_weight_hooks_and_cancels_leave_nothing_kept(
    nodes: dict[str, Any], stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheduled LoRAs change weights between two steps; a sampler that stops half way still ends its run."""
    hosted, model = stages["model"].model.diffusion_model, stages["model"].clone()
    model.pre_run()
    assert hosted._kept == {}
    model.cleanup()
    model.hook_patches = {object(): {}}
    model.pre_run()
    assert hosted._kept is None

    def cancel(*_: Any, **__: Any) -> None:
        assert hosted._kept
        raise KeyboardInterrupt

    monkeypatch.setattr(type(hosted.denoiser), "encode_lr", cancel)
    with pytest.raises(KeyboardInterrupt):
        native(nodes, stages, sampler=euler)
    assert hosted._kept is None


@torch.inference_mode()
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_full_memory_under_a_native_sampler_names_the_widget_in_the_same_error(
    error: Exception, nodes: dict[str, Any], stages: dict[str, Any], pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI knows by the error's type that all models are to be unloaded, so it must stay what it is."""

    def full(*_: Any, **__: Any) -> None:
        raise error

    told = str(error)
    monkeypatch.setattr(type(stages["model"].model.diffusion_model.denoiser), "encode_lr", full)
    with pytest.raises(type(error), match="The memory is full: lower 'tile' of Sampling Conditioning") as caught:
        native(nodes, stages, sampler=euler)
    assert caught.value is error and told in str(error) and part(pack, "nodes.compat").is_out_of_memory(error)


@torch.inference_mode()
def test_ksampler_node_runs_with_any_sampler(nodes: dict[str, Any], stages: dict[str, Any]) -> None:
    """ComfyUI's own KSampler node, guidance included: positive and negative in one batch or one after the other."""
    KSampler = importlib.import_module("nodes").KSampler  # ComfyUI's, not this repository's folder

    results = []
    for semantics in (None, stages["semantics"]):
        positive, negative, latents = nodes["SeTeVSRSamplingConditioning"].execute(
            stages["model"], stages["latents"], 64, 16, semantics
        ).result
        for name, scheduler, cfg in (("dpmpp_2m", "karras", 1.0), ("uni_pc", "beta", 2.0), ("lcm", "simple", 1.0)):
            (out,) = KSampler().sample(
                stages["model"], 1, 2, cfg, name, scheduler, positive[0], negative[0], latents[0], denoise=0.5
            )
            assert out["samples"].shape == latents[0]["samples"].shape and out["samples"].isfinite().all()
            assert set(latents[0]) <= set(out)
            results.append(out["samples"])
    assert not torch.allclose(results[1], results[4])


@torch.inference_mode()
def test_context_windows_cut_a_segment(
    nodes: dict[str, Any], stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's context windows: every window has its own frames' latents and semantics, with and without guidance."""
    windows = importlib.import_module("comfy_extras.nodes_context_windows").ContextWindowsManualNode
    arguments = (stages["model"], 2, 1, "standard_static", 1, False, "pyramid", 0, False)
    (windowed,) = windows.execute(*arguments).result
    seen: list[int] = []
    denoiser = type(stages["model"].model.diffusion_model.denoiser)
    forward = denoiser.forward

    def remember(self: Any, x: Tensor, *arguments: Any, num_frames: int, **more: Any) -> Tensor:
        seen.append(num_frames)
        return forward(self, x, *arguments, num_frames=num_frames, **more)

    monkeypatch.setattr(denoiser, "forward", remember)
    for cfg in (1.0, 2.0):
        result = native(nodes, {**stages, "model": windowed}, sampler=euler, cfg=cfg)
        assert result["samples"].isfinite().all()
        assert close(result, native(nodes, stages, sampler=euler, cfg=cfg)) > 1e-3
    assert set(seen) == {2, 3}


@torch.inference_mode()
def test_native_sampling_asks_for_the_memory_of_a_tile(
    nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any]
) -> None:
    """What ComfyUI frees before sampling, and by what it decides whether guidance runs in one batch."""
    from comfy.sampler_helpers import convert_cond, estimate_memory

    segments, _ = nodes["SeTeVSRSplitSegments"].execute(clip(3), 4.0, 3, 1, "off").result
    (encoded,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
    patcher = stages["model"]

    def asked(tile: int) -> list[float]:
        positive, _, (latent,) = nodes["SeTeVSRSamplingConditioning"].execute(patcher, encoded, tile, 0).result
        conds, shape = convert_cond(positive[0]), list(latent["samples"].shape)
        plan = patcher.model.extra_conds(**conds[0], noise=latent["samples"], device="cpu")["plan"]
        now = patcher.model.memory_required(shape, cond_shapes={"plan": [plan.size()]})
        return [now, *estimate_memory(patcher, shape, {"positive": conds})]

    whole, tiled = asked(0), asked(8)
    assert encoded["samples"].shape == (3, 4, 16, 16)
    assert whole == asked(64) == [whole[0], 2 * whole[0], whole[0]]
    assert tiled == pytest.approx([number / 4 for number in whole])


@torch.inference_mode()
def test_shared_frames_start_from_the_same_noise(nodes: dict[str, Any], stages: dict[str, Any]) -> None:
    """KSampler and RandomNoise draw by `batch_index`: the last frame of a segment is the first of the next."""
    import comfy.sample

    _, _, latents = nodes["SeTeVSRSamplingConditioning"].execute(stages["model"], stages["latents"]).result
    first, second = (np.asarray(comfy.sample.prepare_noise(x["samples"], 5, x["batch_index"])) for x in latents)
    assert np.array_equal(first[-1], second[0]) and not np.array_equal(first[0], second[0])


@torch.inference_mode()
def test_previews_show_the_videos_colours(nodes: dict[str, Any], stages: dict[str, Any], pack: ModuleType) -> None:
    """ComfyUI's latent preview of clean latents is our own preview, whatever VAE made the latents."""
    import latent_preview

    nodes["SeTeVSRSamplingConditioning"].execute(stages["model"], stages["latents"])
    note = part(pack, "nodes.payloads").read_latent(stages["latents"], wanted_from="x")
    form = stages["model"].model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(form.latent_rgb_factors, form.latent_rgb_factors_bias)
    shown = torch.tensor(np.array(previewer.decode_latent_to_preview(note.scaled[:1]))).float() / 255
    expected = part(pack, "setevsr_core.stages").preview(note.scaled[:1], note.preview_matrix)[0]
    assert (shown - expected).abs().max() < 2 / 255


@torch.inference_mode()
def test_lora_patches_the_denoiser_and_leaves_the_given_one(
    nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], pack: ModuleType, tmp_path: Path
) -> None:
    """The node's patches give what merging the LoRA into the weights gives, in our loop and in native sampling."""
    import folder_paths
    from safetensors.torch import save_file

    loras, loaders = part(pack, "setevsr_core.checkpoints.lora"), part(pack, "nodes.loaders")
    denoiser = handles["denoiser"]
    state = denoiser.module.state_dict()
    linear = "up_blocks.3.attentions.1.transformer_blocks.0.attn1.to_v"
    conv = "up_blocks.3.resnets.1.conv1"
    shapes = {layer: state[f"unet.{layer}.weight"].shape for layer in (linear, conv)}
    tensors = {}
    for layer, shape in shapes.items():
        name = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, *(1,) * (len(shape) - 2))
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, *shape[1:])
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    folder = tmp_path / "loras"
    folder.mkdir()
    save_file(tensors, folder / "style.safetensors")
    folder_paths.add_model_folder_path("loras", str(folder))
    (changed,) = nodes["SeTeVSRLoadLoRA"].execute(denoiser, "style.safetensors", 0.5).result

    plain = own(nodes, handles, stages, "ddim")
    patched = own(nodes, {**handles, "denoiser": changed}, stages, "ddim")
    again = own(nodes, handles, stages, "ddim")
    assert torch.equal(plain["samples"], again["samples"]) and close(patched, plain) > 0.01
    (model,) = nodes["SeTeVSRDenoiserModel"].execute(changed).result
    assert close(native(nodes, {**stages, "model": model}, sampler=euler), patched) < 1e-3

    merged = loras.apply_loras(state, [(folder / "style.safetensors", 0.5)])
    fresh = type(denoiser.module)(denoiser.module.config, ops=part(pack, "nodes.compat").operations())
    fresh.empty_text = denoiser.module.empty_text
    fresh.load_state_dict(merged)
    hosted = part(pack, "nodes.hosting").host_component("denoiser", fresh, "merged", torch.float32)
    assert close(own(nodes, {**handles, "denoiser": hosted}, stages, "ddim"), patched) < 1e-4
    assert loaders.with_lora(changed, str(folder / "style.safetensors"), 1.0).patcher is not changed.patcher


@torch.inference_mode()
def test_mixed_up_native_inputs_are_refused(
    nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], pack: ModuleType
) -> None:
    import comfy.sample

    wrong = part(pack, "setevsr_core.errors").InputError
    condition, join = nodes["SeTeVSRSamplingConditioning"].execute, nodes["SeTeVSRJoinLatents"].execute
    model = stages["model"]
    with pytest.raises(wrong, match="not a SeTe-VSR denoiser"):
        condition(handles["vae"].patcher, stages["latents"])
    positive, _, latents = condition(model, stages["latents"]).result
    with pytest.raises(wrong, match="1 segments came .1 different ones., but the video has 2"):
        join(latents[:1])
    with pytest.raises(wrong, match="2 segments came .1 different ones., but the video has 2"):
        join([latents[0], latents[0]])
    with pytest.raises(part(pack, "setevsr_core.errors").SettingsError, match="strength of a LoRA is nan"):
        part(pack, "nodes.loaders").with_lora(handles["denoiser"], "any.safetensors", float("nan"))
    with pytest.raises(wrong, match="no segments of 'Sampling Conditioning'"):
        join([stages["latents"]])
    with pytest.raises(wrong, match="do not cut, repeat or resize"):
        join([{**latents[0], "samples": latents[0]["samples"][:2]}, latents[1]])

    def sample(conditioning: Any, samples: Tensor) -> None:
        sigmas = torch.tensor([1.0, 0.0])
        noise = torch.randn(samples.shape)
        comfy.sample.sample_custom(
            model, noise, 1.0, euler(None), sigmas, conditioning, conditioning, samples, disable_pbar=True
        )

    with pytest.raises(wrong, match="holds no low-resolution latents"):
        sample([[torch.zeros(1, 2, 8), {}]], latents[0]["samples"])
    with pytest.raises(wrong, match="use the latents that 'Sampling Conditioning' gives"):
        sample(positive[0], latents[0]["samples"][:2])
    empty = handles["denoiser"].module.empty_text
    try:
        handles["denoiser"].module.empty_text = None
        with pytest.raises(wrong, match="no embedding of the empty prompt: connect a CONDITIONING"):
            condition(model, stages["latents"])
        text = [[torch.ones(1, 2, 8), {}]]
        plus, minus, _ = condition(model, stages["latents"], conditioning=text).result
        assert torch.equal(plus[0][0][0], text[0][0]) and not minus[0][0][0].any()
    finally:
        handles["denoiser"].module.empty_text = empty


# ---- memory and precision -------------------------------------------------------------------------------------------
@torch.inference_mode()
def test_streamed_weights_give_the_same_bits(
    nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Low-VRAM loading: with room for a tenth of the weights the other layers are cast at use, layer by layer."""
    denoiser = handles["denoiser"]
    whole = own(nodes, handles, stages, "ddim")
    patcher = denoiser.patcher.clone()
    streamed = type(denoiser)(denoiser.kind, denoiser.module, patcher, "streamed", denoiser.defaults)
    monkeypatch.setattr(type(denoiser), "load", lambda self, memory=0.0: self.module)
    patcher.load(torch.device("cpu"), lowvram_model_memory=patcher.model_size() // 10)
    layers = [m for m in denoiser.module.modules() if hasattr(m, "comfy_cast_weights")]
    try:
        assert 0 < sum(m.comfy_cast_weights for m in layers) and patcher.model.model_lowvram
        assert torch.equal(own(nodes, {**handles, "denoiser": streamed}, stages, "ddim")["samples"], whole["samples"])
    finally:
        patcher.unpatch_model(torch.device("cpu"))


def fresh_denoiser(handles: dict[str, Any], pack: ModuleType, precision: str) -> Any:
    """The tiny denoiser once more, hosted in another precision, as the loaders do it."""
    hosting, module = part(pack, "nodes.hosting"), handles["denoiser"].module
    copy = type(module)(module.config, ops=part(pack, "nodes.compat").operations(), empty_text=module.empty_text)
    copy.load_state_dict(module.state_dict())
    return hosting.host_component(
        "denoiser", copy, precision, hosting.choose_dtype("denoiser", precision), fp8=precision == hosting.FP8
    )


@torch.inference_mode()
def test_precisions(
    nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], pack: ModuleType
) -> None:
    """bf16 and fp8 stay near fp32, fp8 less so; fp8 takes a byte a weight; native sampling takes it too."""
    exact = own(nodes, handles, stages, "ddim")
    spread = exact["samples"].std()
    errors, sizes = {}, {}
    for precision in ("fp32", "bf16", "fp8"):
        hosted = fresh_denoiser(handles, pack, precision)
        found = own(nodes, {**handles, "denoiser": hosted}, stages, "ddim")["samples"]
        errors[precision] = float((found - exact["samples"]).square().mean().sqrt() / spread)
        sizes[precision] = hosted.patcher.model_size()
    assert errors["fp32"] == 0 and 0 < errors["bf16"] < errors["fp8"] < 0.2, errors
    assert sizes["bf16"] / sizes["fp32"] == pytest.approx(0.5, abs=0.01)
    assert sizes["fp8"] / sizes["fp32"] < 0.3
    (model,) = nodes["SeTeVSRDenoiserModel"].execute(hosted).result
    assert close(native(nodes, {**stages, "model": model}, sampler=euler), {"samples": found}) < 0.05


@pytest.mark.parametrize("native_bf16", [True, False])
def test_automatic_precision_on_a_cpu(
    native_bf16: bool, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import args

    hosting, precision = part(pack, "nodes.hosting"), part(pack, "setevsr_core.precision")
    monkeypatch.setattr(precision, "cpu_computes_bfloat16", lambda: native_bf16)
    for kind in ("denoiser", "vae", "semantic_encoder"):
        expected = torch.bfloat16 if native_bf16 else torch.float32
        assert hosting.choose_dtype(kind, "auto") == expected
        assert hosting.choose_dtype(kind, "fp32") == torch.float32
    monkeypatch.setattr(args, "force_fp32", True)
    assert hosting.choose_dtype("vae", "auto") == torch.float32


@torch.inference_mode()
def test_comfyuis_fp8_options_store_the_denoiser_and_nothing_computes_in_them(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import args

    hosting, kinds = part(pack, "nodes.hosting"), ("denoiser", "vae", "semantic_encoder")
    assert not hosting.stores_fp8("auto") and hosting.stores_fp8("fp8")
    for option in ("fp8_e4m3fn_unet", "fp8_e5m2_unet"):
        with monkeypatch.context() as patch:
            patch.setattr(args, option, True)
            assert hosting.stores_fp8("auto") and not hosting.stores_fp8("bf16")
            patch.setattr(hosting, "devices", lambda _: (torch.device("cuda"), torch.device("cpu")))
            assert {hosting.choose_dtype(kind, "auto").itemsize for kind in kinds} <= {2, 4}
            assert hosting.choose_dtype("denoiser", "auto") == torch.bfloat16


@torch.inference_mode()
def test_taesd_previews(
    handles: dict[str, Any], stages: dict[str, Any], pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TAESD file in models/vae_approx makes the previews of Stable Diffusion's latents, and of no others."""
    import folder_paths
    from comfy.cli_args import LatentPreviewMethod, args
    from safetensors.torch import save_file

    diffusers = pytest.importorskip("diffusers")
    progress, preview = part(pack, "nodes.progress"), part(pack, "setevsr_core.stages").preview
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    assert progress.latent_pictures(handles["denoiser"]) is preview
    monkeypatch.setattr(progress, "makes_sd_latents", lambda _: True)
    assert progress.latent_pictures(handles["denoiser"]) is preview  # there is no file yet
    folder_paths.add_model_folder_path("vae_approx", str(tmp_path))
    path = tmp_path / "taesd_decoder.safetensors"
    save_file(diffusers.AutoencoderTiny().state_dict(), path)
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda _: [path.name])
    show = progress.latent_pictures(handles["denoiser"])
    assert show(torch.zeros(1, 4, 6, 8), torch.zeros(5, 3)).shape == (1, 48, 64, 3)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    assert progress.latent_pictures(handles["denoiser"]) is preview
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    progress.tiny_decoder.cache_clear()
    save_file({"weight": torch.zeros(1)}, path)
    assert progress.latent_pictures(handles["denoiser"]) is preview  # a wrong file is a warning, no error
    progress.tiny_decoder.cache_clear()


def test_pictures_are_enlarged_to_a_visible_size(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy.cli_args import LatentPreviewMethod, args

    progress = part(pack, "nodes.progress")
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    for side, shown in ((20, 80), (200, 400), (600, 600)):
        assert progress.preview_picture(torch.zeros(8, side, 3))[1].width == shown


@torch.inference_mode()
def test_estimate_node(nodes: dict[str, Any], handles: dict[str, Any]) -> None:
    """With the preset's networks, and with connected ones."""
    common = {"preset": "nano", "width": 32, "height": 24, "frames": 7, "scale": 2.0, "steps": 2}
    text, gigabytes, minutes = nodes["SeTeVSREstimate"].execute(**common).result
    assert "7 frames become 64x48, in 2 segments" in text and gigabytes > 0 and minutes > 0
    _, smaller, _ = nodes["SeTeVSREstimate"].execute(**common, **handles).result
    assert 0 < smaller < gigabytes


@torch.inference_mode()
@pytest.mark.parametrize(("stage", "remedy"), [
    ("encode_latents", "lower 'scale' of Split Segments"), ("encode_semantics", "load a smaller SAM 2 encoder"),
    ("decode_span", "lower 'length' of Split Segments"), ("denoise_span", "lower 'tile' of Denoise"),
    ("recolour", "lower 'length' of Split Segments, or choose 'none' for 'colour'"),
])  # fmt: skip
def test_a_full_memory_names_the_widget_in_every_stage(
    stage: str, remedy: str, nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any],
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    segments, latents = stages["segments"], stages["latents"]
    (decoded,) = nodes["SeTeVSRTemporalDecode"].execute(latents, segments, handles["vae"]).result
    monkeypatch.setattr(part(pack, "setevsr_core.stages"), stage, full)
    runs = {
        "encode_latents": lambda: nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]),
        "encode_semantics": lambda: nodes["SeTeVSREncodeSemantics"].execute(segments, handles["encoder"]),
        "decode_span": lambda: nodes["SeTeVSRTemporalDecode"].execute(latents, segments, handles["vae"]),
        "denoise_span": lambda: own(nodes, handles, stages, "ddim"),
        "recolour": lambda: nodes["SeTeVSRStitchSegments"].execute(decoded),
    }
    with pytest.raises(part(pack, "setevsr_core.errors").SettingsError, match=f"The memory is full: {remedy}"):
        runs[stage]()


@torch.inference_mode()
def test_encoding_keeps_the_frames_that_are_done_when_the_memory_is_full(
    nodes: dict[str, Any], handles: dict[str, Any], stages: dict[str, Any], pack: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As the Upscale nodes do, so that both ways go on giving the same."""
    module, tries = part(pack, "setevsr_core.stages"), []
    encode = module.encode_latents

    def full_at_the_second(network: Any, frames: torch.Tensor, scale: float, *, tile: int, **options: Any) -> Any:
        tries.append((len(frames), tile))
        if len(tries) == 2:
            raise MemoryError
        return encode(network, frames, scale, tile=tile, **options)

    monkeypatch.setattr(module, "encode_latents", full_at_the_second)
    monkeypatch.setattr(part(pack, "setevsr_core.vae_tiles"), "SMALLEST", 4)
    segments = stages["segments"]
    (latents,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
    count = len(segments.frames)
    assert len(tries) == count + 1 and tries[0] == (1, 0) == tries[1]
    assert all(frames == 1 and tile > 0 for frames, tile in tries[2:])
    assert latents["samples"].shape == stages["latents"]["samples"].shape
