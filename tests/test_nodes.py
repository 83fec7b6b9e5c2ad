"""The ComfyUI nodes, without a server: schemas, pages, workflows, messages, and that all ways give the same bits.

Needs a ComfyUI tree (COMFYUI_PATH, or what `make setup` fetched); skips with the reason where there is none.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.install_comfyui import ComfyUINotFound, locate  # noqa: E402

try:
    TREE = locate()
except ComfyUINotFound as error:
    pytest.skip(str(error), allow_module_level=True)

NODE_IDS = {
    "SeTeVSRLoadPreset", "SeTeVSRLoadDenoiser", "SeTeVSRLoadTemporalVAE", "SeTeVSRLoadSemanticEncoder",
    "SeTeVSRSplitSegments", "SeTeVSREncodeSemantics", "SeTeVSREncodeLatents", "SeTeVSRDenoise",
    "SeTeVSRTemporalDecode", "SeTeVSRStitchSegments", "SeTeVSRUpscaleImages", "SeTeVSRUpscaleVideo",
    "SeTeVSRDegradeVideo", "SeTeVSRCompare", "SeTeVSRSampleVideo", "SeTeVSRMeasure", "SeTeVSRTemporalProfile",
    "SeTeVSRLoadLoRA", "SeTeVSRDenoiserModel", "SeTeVSRSamplingConditioning", "SeTeVSRFrameNoise", "SeTeVSRJoinLatents",
    "SeTeVSREstimate",
}  # fmt: skip
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SAMPLING = {"seed": 3, "steps": 2, "sampler": "ddpm", "strength": 1.0, "tile": 16, "tile_overlap": 8}


def load_pack(name: str) -> ModuleType:
    """Import the repository the way ComfyUI does: by its path, under a name that is no Python identifier."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def list_nodes(pack: ModuleType) -> dict[str, Any]:
    """Node id -> class, as ComfyUI asks for them."""

    async def ask() -> list[Any]:
        extension = await pack.comfy_entrypoint()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(ask())}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pack inside an imported (not running) ComfyUI, with its folders in a temporary place."""
    sys.path.insert(0, str(TREE))
    try:
        try:
            from comfy.cli_args import args

            args.cpu = True  # before anything asks for the device
            import folder_paths
        except ImportError as error:
            pytest.skip(f"ComfyUI's own requirements are not installed ({error}); run `make setup`")
        folder = tmp_path_factory.mktemp("comfyui")
        folder_paths.models_dir = str(folder / "models")
        folder_paths.set_temp_directory(str(folder / "temp"))
        yield load_pack("custom_nodes/SeTe-VSR test")
    finally:
        sys.path.remove(str(TREE))


@pytest.fixture(scope="module")
def nodes(pack: ModuleType) -> dict[str, Any]:
    return list_nodes(pack)


def part(pack: ModuleType, name: str) -> Any:
    """A module of the pack by its dotted name below the root."""
    return importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="module")
def handles(pack: ModuleType) -> dict[str, Any]:
    """Tiny random networks, hosted as the loaders host theirs."""
    hosting = part(pack, "nodes.hosting")
    operations = part(pack, "nodes.compat").operations()
    denoiser_module = part(pack, "setevsr_core.networks.denoiser")
    vae_module = part(pack, "setevsr_core.networks.temporal_vae")
    encoder_module = part(pack, "setevsr_core.networks.semantic_encoder")
    torch.manual_seed(0)
    sizes = {
        "channels": (64, 64, 64, 64), "layers": 1, "head_dim": 32, "context_dim": 8, "map_channels": 32,
        "spade_hidden": 8, "lr_channels": (64, 64, 64, 64), "lr_heads": 2,
    }  # fmt: skip
    denoiser = denoiser_module.Denoiser(
        denoiser_module.DenoiserConfig.nano(**sizes), ops=operations, empty_text=torch.zeros(1, 2, 8)
    )
    # Random weights of a trunk would make far too much of a difference between two frames.
    vae_sizes = {"channels": (32, 32), "trunk": 0, "fusion_levels": (0, 1), "growth": 16, "refine": 8}
    vae = vae_module.TemporalVAE(vae_module.VAEConfig.nano(**vae_sizes), ops=operations)
    encoder = encoder_module.SemanticEncoder(encoder_module.SemanticEncoderConfig.nano(image_size=64))
    for network in (denoiser, vae, encoder):
        for value in network.parameters():
            # ComfyUI's layers come without initial values
            torch.nn.init.normal_(value, 1.0 if value.ndim == 1 else 0.0, 0.05)
    made = {"denoiser": denoiser, "vae": vae, "encoder": encoder}
    kinds = {"denoiser": hosting.DENOISER, "vae": hosting.VAE, "encoder": hosting.ENCODER}
    return {
        name: hosting.host_component(kinds[name], module, "tiny", torch.float32, {"steps": 2})
        for name, module in made.items()
    }


def clip(frames: int = 4, height: int = 20, width: int = 24, channels: int = 3) -> torch.Tensor:
    """A small moving pattern (N,H,W,C) in 0..1."""
    generator = torch.Generator().manual_seed(frames)
    picture = torch.rand(height, width + frames, channels, generator=generator)
    return torch.stack([picture[:, index : index + width] for index in range(frames)])


def composed(nodes: dict[str, Any], handles: dict[str, Any], images: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    """The result of the graph of single stages."""
    segments, count = nodes["SeTeVSRSplitSegments"].execute(images, scale, 3, 1, "off").result
    assert count == len(segments.spans)
    (semantics, preview) = nodes["SeTeVSREncodeSemantics"].execute(segments, handles["encoder"]).result
    assert preview.shape == (*images.shape[:3], 3)
    (latents,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
    (latents,) = nodes["SeTeVSRDenoise"].execute(handles["denoiser"], latents, semantics=semantics, **SAMPLING).result
    (segments,) = nodes["SeTeVSRTemporalDecode"].execute(latents, segments, handles["vae"], 1.0).result
    return nodes["SeTeVSRStitchSegments"].execute(segments, "wavelet").result[0]


# ---- schemas, pages, translations -----------------------------------------------------------------------------------
def test_all_nodes_are_there(nodes: dict[str, Any]) -> None:
    assert set(nodes) == NODE_IDS


def test_importing_the_root_package_imports_nothing_of_comfyui() -> None:
    text = (ROOT / "__init__.py").read_text("utf-8")
    assert "import" not in text.split("async def comfy_entrypoint")[0].split('"""', 2)[2]


def test_every_node_and_every_widget_explains_itself(nodes: dict[str, Any]) -> None:
    for node_id, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.category.split("/")[0] == "SeTe-VSR", node_id
        assert schema.description, node_id
        assert schema.display_name.endswith("(SeTe-VSR)"), node_id
        for entry in schema.inputs:
            assert entry.tooltip or entry.id == "fourth", f"{node_id}.{entry.id} has no tooltip"


def test_tooltips_promise_halved_tiles_only_where_tiles_are_halved(nodes: dict[str, Any]) -> None:
    promising = {
        node_id
        for node_id, node in nodes.items()
        for entry in node.GET_SCHEMA().inputs
        if entry.id == "tile" and "Halved" in entry.tooltip
    }
    upscaling = {"SeTeVSRUpscaleVideo", "SeTeVSRUpscaleImages", "SeTeVSREstimate"}
    assert promising == {*upscaling, "SeTeVSRDenoise"}  # ComfyUI's samplers, behind Sampling Conditioning, halve none


def test_every_node_has_a_help_page_that_starts_with_its_name_and_names_its_widgets(nodes: dict[str, Any]) -> None:
    pages = {path.stem: path.read_text("utf-8") for path in (ROOT / "web" / "docs").glob("*.md")}
    assert set(pages) == set(nodes)
    for node_id, node in nodes.items():
        title = node.GET_SCHEMA().display_name.removesuffix(" (SeTe-VSR)")
        assert pages[node_id].startswith(f"# {title}\n"), node_id
        for entry in node.GET_SCHEMA().inputs:
            assert not is_widget(entry) or f"`{entry.id}`" in pages[node_id], f"{node_id}.{entry.id}"


@pytest.mark.parametrize("language", sorted(path.name for path in (ROOT / "locales").iterdir()))
def test_translations_name_exactly_what_the_schemas_have(nodes: dict[str, Any], language: str) -> None:
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert set(texts) == set(nodes)
    for node_id, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert set(texts[node_id]["inputs"]) == {entry.id for entry in schema.inputs}, node_id
        assert set(texts[node_id]["outputs"]) == {str(index) for index in range(len(schema.outputs))}, node_id
        if language == "en":
            assert texts[node_id]["display_name"] == schema.display_name
            assert texts[node_id]["description"] == schema.description
            continue
        slots = {("inputs", entry.id): entry for entry in schema.inputs}
        slots |= {("outputs", str(index)): entry for index, entry in enumerate(schema.outputs)}
        for (side, name), entry in slots.items():
            assert bool(texts[node_id][side][name].get("tooltip")) >= bool(entry.tooltip), f"{node_id}.{side}.{name}"
    titles = {text["display_name"].removesuffix(" (SeTe-VSR)") for text in texts.values()}
    quoted = re.findall("[„“]([A-ZÄÖÜ一-鿿][^”“]*)[”“]", json.dumps(texts, ensure_ascii=False))
    assert set(quoted) <= titles, "a text names a node that does not exist"


def test_nodes_register_without_the_optional_packages(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sam2", "hydra", "diffusers", "cv2", "scenedetect", "einops"):
        for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    assert set(list_nodes(load_pack("custom_nodes/SeTe-VSR bare"))) == NODE_IDS


def test_keywords_of_newer_versions_are_left_out(pack: ModuleType) -> None:
    from comfy_api.latest import io

    compat = part(pack, "nodes.compat")
    assert compat.schema(node_id="x", from_the_future=1).node_id == "x"
    assert compat.widget(io.Int, "x", default=1, from_the_future=1).default == 1


def test_inputs_of_later_versions_come_last_and_may_stay_open(nodes: dict[str, Any]) -> None:
    for node_id in ("SeTeVSRUpscaleVideo", "SeTeVSRUpscaleImages"):
        last = nodes[node_id].GET_SCHEMA().inputs[-1]
        assert (last.id, last.optional) == ("conditioning", True)


def test_a_seed_stays_as_it_is_after_a_run(nodes: dict[str, Any]) -> None:
    """Another seed is another job: what was interrupted would never be continued."""
    seeds = [entry for node in nodes.values() for entry in node.GET_SCHEMA().inputs if entry.id == "seed"]
    assert len(seeds) == 5
    assert {json.dumps(entry.as_dict()["control_after_generate"]) for entry in seeds} == {'"fixed"'}


def test_layers_have_weights_under_dynamic_vram(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.memory_management

    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True, raising=False)
    layer = part(pack, "nodes.compat").operations().Linear(3, 5)
    assert layer.weight.shape == (5, 3)
    layer.load_state_dict({"weight": torch.ones(5, 3), "bias": torch.zeros(5)})
    assert layer(torch.ones(1, 3)).tolist() == [[3.0] * 5]


# ---- workflows ------------------------------------------------------------------------------------------------------
def is_widget(entry: Any) -> bool:
    return entry.get_io_type() in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_fits_the_nodes(path: Path, nodes: dict[str, Any]) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    by_id = {node["id"]: node for node in workflow["nodes"]}
    assert any(node["type"] in NODE_IDS for node in by_id.values())
    for node in by_id.values():
        if node["type"] in NODE_IDS:
            schema = nodes[node["type"]].GET_SCHEMA()
            widgets = [entry for entry in schema.inputs if is_widget(entry)]
            seeds = sum(bool(getattr(entry, "control_after_generate", None)) for entry in widgets)
            assert len(node["widgets_values"]) == len(widgets) + seeds, node["type"]
            assert node["properties"]["Node name for S&R"] == node["type"]
            assert {entry["name"] for entry in node["inputs"]} <= {entry.id for entry in schema.inputs}
    for link, source, output, target, slot, kind in workflow["links"]:
        assert link in by_id[source]["outputs"][output]["links"]
        assert by_id[target]["inputs"][slot]["link"] == link
        assert by_id[source]["outputs"][output]["type"] == kind


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_workflow_decodes_the_whole_result_of_upscale_video(path: Path) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    fed = {kinds[target] for _, source, _, target, *_ in workflow["links"] if kinds[source] == "SeTeVSRUpscaleVideo"}
    assert "GetVideoComponents" not in fed


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_laid_out_without_overlaps(path: Path) -> None:
    nodes = json.loads(path.read_text("utf-8"))["nodes"]
    title = 30  # a node's title bar lies above its position
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other, (other_left, other_top, other_right, other_bottom) in enumerate(boxes[:index]):
            beside = right <= other_left or other_right <= left
            assert beside or bottom <= other_top - title or other_bottom <= top - title, (
                f"{nodes[index]['type']} lies on {nodes[other]['type']}"
            )


# ---- the same bits by every way -------------------------------------------------------------------------------------
@torch.inference_mode()
@pytest.mark.parametrize("channels", [3, 4])
def test_composed_graph_and_single_node_give_the_same_bits(
    nodes: dict[str, Any], handles: dict[str, Any], channels: int
) -> None:
    images = clip(channels=channels)
    settings = {**SAMPLING, "length": 3, "overlap": 1, "scene_cuts": "off", **handles}
    one, audio, info = nodes["SeTeVSRUpscaleImages"].execute(
        images, "none needed", 2.0, audio="sound", video_info="info", **settings
    ).result
    assert one.shape == (4, 40, 48, channels)
    assert (audio, info) == ("sound", "info")
    assert torch.equal(composed(nodes, handles, images), one)


@torch.inference_mode()
def test_steady_averages_frames_in_both_ways_unless_it_is_off(nodes: dict[str, Any], handles: dict[str, Any]) -> None:
    images, split = clip(), nodes["SeTeVSRSplitSegments"].execute
    assert split(images, 2.0, 3, 1, "off", steady=0).result[0].frames is images
    averaged = split(images, 2.0, 3, 1, "off", steady=1).result[0].frames
    assert averaged.shape == images.shape and not torch.equal(averaged, images)
    settings = {**SAMPLING, "length": 3, "overlap": 1, "scene_cuts": "off", **handles}
    upscale = nodes["SeTeVSRUpscaleImages"].execute
    steadied = upscale(images, "none needed", 2.0, steady=1, **settings).result[0]
    assert torch.equal(steadied, upscale(averaged, "none needed", 2.0, steady=0, **settings).result[0])


@torch.inference_mode()
def test_steady_result_averages_restored_frames_in_both_ways_unless_it_is_off(
    nodes: dict[str, Any], handles: dict[str, Any]
) -> None:
    still = clip(1).repeat(4, 1, 1, 1) + 0.001 * torch.randn(4, 20, 24, 3, generator=torch.Generator().manual_seed(1))
    segments, _ = nodes["SeTeVSRSplitSegments"].execute(still, 2.0, 3, 1, "off", steady=0).result
    (latents,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
    (decoded,) = nodes["SeTeVSRTemporalDecode"].execute(latents, segments, handles["vae"]).result
    sampling = {"seed": 0, "sampler": "none (decoder only)", "length": 3, "overlap": 1, "scene_cuts": "off"}
    results = []
    for radius in (0, 1):
        (composed,) = nodes["SeTeVSRStitchSegments"].execute(decoded, "wavelet", steady_result=radius).result
        one = nodes["SeTeVSRUpscaleImages"].execute(
            still, "none needed", 2.0, steady=0, steady_result=radius, **sampling, **handles
        ).result[0]
        assert torch.equal(composed, one)
        results.append(one)
    assert not torch.equal(*results)


@torch.inference_mode()
def test_latents_follow_comfyuis_scale_and_carry_changes(
    nodes: dict[str, Any], handles: dict[str, Any], pack: ModuleType
) -> None:
    payloads = part(pack, "nodes.payloads")
    segments, _ = nodes["SeTeVSRSplitSegments"].execute(clip(), 2.0, 3, 1, "off").result
    (latent,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
    note = payloads.read_latent(latent, wanted_from="x")
    assert torch.allclose(latent["samples"] * note.factor, note.scaled)
    changed = payloads.read_latent({**latent, "samples": latent["samples"] + 1}, wanted_from="x")
    assert torch.allclose(changed.scaled, note.scaled + note.factor, atol=1e-5)


@torch.inference_mode()
def test_upscale_video_keeps_count_rate_size_and_sound(
    nodes: dict[str, Any], handles: dict[str, Any], pack: ModuleType
) -> None:
    from comfy_api.latest import InputImpl, Types

    sound: Any = {"waveform": torch.sin(torch.arange(12000) / 20)[None, None].repeat(1, 2, 1), "sample_rate": 24000}
    rate = Fraction(30000, 1001)
    source = InputImpl.VideoFromComponents(Types.VideoComponents(images=clip(5), audio=sound, frame_rate=rate))
    settings = {**SAMPLING, "sampler": "none (decoder only)", "length": 3, "overlap": 1, "scene_cuts": "off", **handles}
    (video,) = nodes["SeTeVSRUpscaleVideo"].execute(source, "none needed", 2.0, **settings).result
    parts = video.get_components()
    assert parts.images.shape == (5, 40, 48, 3)
    assert parts.frame_rate == rate
    assert parts.audio["sample_rate"] == 24000
    # A file is read frame by frame instead; trimming is ComfyUI's own.
    for start in (float(2 / rate), -0.44):  # from the end of the sound, which lasts 0.5 s
        trimmed = InputImpl.VideoFromFile(video.get_stream_source(), start_time=start, duration=float(2 / rate))
        with part(pack, "nodes.media").open_video(trimmed) as stream:
            assert len(list(stream.frames)) == len(trimmed.get_components().images) < 5
            assert stream.frame_rate == rate


@pytest.mark.slow
@torch.inference_mode()
def test_upscale_video_on_a_cluster_gives_the_same_video(
    nodes: dict[str, Any], handles: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits are compared in test_cluster, with as many threads on both sides."""
    from comfy_api.latest import InputImpl, Types

    pytest.importorskip("ray", reason="the optional package ray is not installed")
    source = InputImpl.VideoFromComponents(Types.VideoComponents(images=clip(5), frame_rate=Fraction(24)))
    settings = {**SAMPLING, "length": 3, "overlap": 1, "scene_cuts": "off", "crf": 0.0, **handles}
    here, there = (
        nodes["SeTeVSRUpscaleVideo"].execute(source, "none needed", 2.0, cluster=where, **settings).result[0]
        for where in ("", " local ")
    )
    images, rate = there.get_components().images, there.get_components().frame_rate
    assert rate == 24
    assert (images - here.get_components().images).abs().max() <= 2 / 255

    monkeypatch.setattr(handles["denoiser"].patcher, "patches", {"some.weight": []})
    with pytest.raises(Exception, match="cannot be sent to a cluster; store it with 'setevsr convert --lora'"):
        nodes["SeTeVSRUpscaleVideo"].execute(source, "none needed", 2.0, cluster="local", **settings)


def test_sample_and_degraded_video(nodes: dict[str, Any]) -> None:
    (reference,) = nodes["SeTeVSRSampleVideo"].execute("reference").result
    (bad,) = nodes["SeTeVSRSampleVideo"].execute("low quality").result
    width, height = reference.get_dimensions()
    assert bad.get_dimensions() == (width // 4, height // 4)
    assert bad.get_frame_count() == reference.get_frame_count()


# ---- text, jobs, networks from several places -----------------------------------------------------------------------
@contextmanager
def empty_prompt(denoiser: Any, text: torch.Tensor | None) -> Iterator[None]:
    """The weights with another embedding of the empty prompt, or none."""
    own = denoiser.module.empty_text
    denoiser.module.empty_text = text
    try:
        yield
    finally:
        denoiser.module.empty_text = own


@torch.inference_mode()
def test_upscale_takes_a_text_and_says_before_any_work_that_it_is_missing(
    nodes: dict[str, Any], handles: dict[str, Any], pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SAMPLING, "length": 3, "overlap": 1, "scene_cuts": "off", **handles}
    text = torch.ones(1, 2, 8)

    def upscale(**more: Any) -> torch.Tensor:
        return nodes["SeTeVSRUpscaleImages"].execute(clip(), "none needed", 2.0, **{**settings, **more}).result[0]

    with empty_prompt(handles["denoiser"], text):
        expected = upscale()
    with empty_prompt(handles["denoiser"], None):
        assert torch.equal(upscale(conditioning=[[text, {}]]), expected)
        assert not torch.equal(upscale(sampler="none (decoder only)"), expected)  # needs no text

        def encode(*_: Any, **__: Any) -> None:
            raise AssertionError("frames were encoded")

        monkeypatch.setattr(part(pack, "setevsr_core.stages"), "encode_latents", encode)
        wrong = part(pack, "setevsr_core.errors").InputError
        said = "no embedding of the empty prompt: connect a CONDITIONING .* 'setevsr convert --empty-text'"
        for where in ({}, {"cluster": "nobody:1"}):
            with pytest.raises(wrong, match=said):
                upscale(**where)
        with pytest.raises(wrong, match=said):
            part(pack, "nodes.hosting").make_restorer(*handles.values(), {}).stream(clip(), steps=1)


def job_of(pack: ModuleType, handles: dict[str, Any], **settings: Any) -> str:
    """What names the job of these networks."""
    return part(pack, "nodes.hosting").make_restorer(*handles.values(), {}).fingerprint(**settings)


def with_random_lora(pack: ModuleType, denoiser: Any, path: Path) -> Any:
    """strength -> the denoiser behind Load LoRA with a file of random numbers for one layer, written to `path`."""
    from safetensors.torch import save_file

    layer = "up_blocks.3.attentions.1.transformer_blocks.0.attn1.to_v"
    height, width = denoiser.module.state_dict()[f"unet.{layer}.weight"].shape
    name = "lora_unet_" + layer.replace(".", "_")
    ends = {"up": torch.randn(height, 2), "down": torch.randn(2, width)}
    save_file({f"{name}.lora_{end}.weight": value for end, value in ends.items()}, path)
    return lambda strength: part(pack, "nodes.loaders").with_lora(denoiser, str(path), strength)


@torch.inference_mode()
def test_text_and_lora_are_parts_of_a_job(handles: dict[str, Any], pack: ModuleType, tmp_path: Path) -> None:
    denoiser = handles["denoiser"]
    changed = [with_random_lora(pack, denoiser, tmp_path / f"{name}.safetensors") for name in ("one", "other")]
    texts = [torch.zeros(1, 77, 8), torch.zeros(1, 77, 8)]
    texts[1][0, 70] = 1.0  # prompts begin alike
    jobs = [job_of(pack, handles, text=text) for text in (None, *texts)]
    for denoiser in (changed[0](0.5), changed[0](0.75), changed[1](0.5)):
        jobs.append(job_of(pack, {**handles, "denoiser": denoiser}))
    assert len(set(jobs)) == len(jobs)
    identities = [part(pack, "setevsr_core.restorer").network_identity(handle.module) for handle in handles.values()]
    assert [handle.identity for handle in handles.values()] == identities


@torch.inference_mode()
def test_patches_in_place_change_no_job_and_are_not_sent_with_the_base(
    handles: dict[str, Any], pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load LoRA shares the weights of the denoiser that it changes; ComfyUI leaves its patches in them after a run."""
    from safetensors.torch import load_file

    denoiser, cluster = handles["denoiser"], part(pack, "nodes.cluster")
    original = {key: value.clone() for key, value in denoiser.load().state_dict().items()}
    patched = with_random_lora(pack, denoiser, tmp_path / "style.safetensors")(1.0)
    jobs = [job_of(pack, {**handles, "denoiser": one}) for one in (denoiser, patched)]
    assert any(not torch.equal(value, original[key]) for key, value in patched.load().state_dict().items())
    assert jobs == [job_of(pack, {**handles, "denoiser": one}) for one in (denoiser, patched)]
    sent: dict[str, torch.Tensor] = {}

    class Far:
        def __init__(self, address: str, folder: str, **_: Any) -> None:
            sent.update(load_file(Path(folder) / "denoiser.safetensors"))

        def __enter__(self) -> Far:
            return self

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(part(pack, "setevsr_core.cluster"), "ClusterRestorer", Far)
    with cluster.cluster_restorer("somewhere", *handles.values()):
        assert sent.keys() == original.keys()
        assert all(torch.equal(value, original[key]) for key, value in sent.items())
    with (
        pytest.raises(part(pack, "setevsr_core.errors").SettingsError, match="setevsr convert --lora"),
        cluster.cluster_restorer("somewhere", patched, handles["vae"], None),
    ):
        pass


@torch.inference_mode()
def test_smaller_tiles_go_on_with_the_same_job(
    nodes: dict[str, Any], handles: dict[str, Any], pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is full in the second segment: it and the next are restored in smaller tiles, the first one counts."""
    import folder_paths
    from comfy_api.latest import InputImpl, Types

    stages, seen = part(pack, "setevsr_core.stages"), []
    denoise = stages.denoise_span

    def scarce(*arguments: Any, tile: int, **options: Any) -> torch.Tensor:
        seen.append((tile, arguments[3].start))
        if seen[-1] == (32, 2):
            raise MemoryError
        return denoise(*arguments, tile=tile, **options)

    monkeypatch.setattr(stages, "denoise_span", scarce)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    images = torch.rand(7, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    source = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(24)))
    settings = {**SAMPLING, "tile": 32, "length": 3, "overlap": 1, "scene_cuts": "off", **handles}
    (video,) = nodes["SeTeVSRUpscaleVideo"].execute(source, "none needed", 4.0, **settings).result
    assert seen == [(32, 0), (32, 2), (16, 2), (16, 4)]
    assert video.get_components().images.shape == (7, 256, 256, 3)
    assert not list(tmp_path.iterdir())


@torch.inference_mode()
def test_smaller_tiles_keep_what_was_finished_in_memory(
    nodes: dict[str, Any], handles: dict[str, Any], pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, for Upscale Images and Denoise: nothing is computed twice, and what was done before stays as it is."""
    stages = part(pack, "setevsr_core.stages")
    settings = {**SAMPLING, "length": 3, "overlap": 1, "scene_cuts": "off", **handles}
    denoise_span, seen, images = stages.denoise_span, [], clip(7, 64, 64)

    def upscale() -> torch.Tensor:
        return nodes["SeTeVSRUpscaleImages"].execute(images, "none needed", 4.0, **{**settings, "tile": 32}).result[0]

    segments, _ = nodes["SeTeVSRSplitSegments"].execute(images, 4.0, 3, 1, "off").result
    (encoded,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result

    def denoise() -> torch.Tensor:
        chosen = {**SAMPLING, "tile": 32}
        return nodes["SeTeVSRDenoise"].execute(handles["denoiser"], encoded, **chosen).result[0]["samples"]

    def scarce(denoiser: Any, latents: torch.Tensor, semantics: Any, indices: Any, **more: Any) -> torch.Tensor:
        seen.append((more["tile"], indices[0]))
        if seen[-1] == (32, 2):
            raise MemoryError
        return denoise_span(denoiser, latents, semantics, indices, **more)

    for work in (upscale, denoise):
        expected = work()
        with monkeypatch.context() as patch:
            patch.setattr(stages, "denoise_span", scarce)
            assert torch.equal(work()[:2], expected[:2])
        assert seen == [(32, 0), (32, 2), (16, 2), (16, 4)]
        seen.clear()


@pytest.mark.parametrize("node_id", ["SeTeVSRUpscaleVideo", "SeTeVSRUpscaleImages", "SeTeVSREstimate"])
def test_a_preset_that_changed_on_disk_makes_a_result_stale(
    node_id: str, nodes: dict[str, Any], pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    monkeypatch.setattr(part(pack, "nodes.folders"), "preset_folder", lambda name: tmp_path)
    before = nodes[node_id].fingerprint_inputs("mine", scale=None)
    assert nodes[node_id].fingerprint_inputs("mine", scale=None) == before
    os.utime(tmp_path / "config.json", ns=(1, 2**62))
    assert nodes[node_id].fingerprint_inputs("mine", scale=None) != before


def test_a_choice_that_a_link_brings_is_no_reason_to_run_again(nodes: dict[str, Any], tmp_path: Path) -> None:
    """ComfyUI gives None for linked inputs here; an error would make every result stale."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("setevsr")[0]) / "linked"
    folder.mkdir(parents=True)
    changing = (tmp_path / "weights.safetensors", folder / "config.json")
    for path in changing:
        path.write_text("{}", "utf-8")
    for key in ("checkpoints", "loras"):
        folder_paths.add_model_folder_path(key, str(tmp_path))

    def stamps() -> list[int]:
        linked = {"UpscaleVideo": "preset", "LoadPreset": "preset", "LoadDenoiser": "file", "LoadLoRA": "file"}
        return [nodes[f"SeTeVSR{name}"].fingerprint_inputs(**{entry: None}) for name, entry in linked.items()]

    before = stamps()
    assert stamps() == before
    for path in changing:
        os.utime(path, ns=(1, 2**62))
    assert all(now > then for now, then in zip(stamps(), before, strict=True))
    changing[1].unlink()
    folder.rmdir()


def test_figures_whose_weights_came_later_are_measured(nodes: dict[str, Any]) -> None:
    """'Not measured: no file ...' would stay for ever if ComfyUI took the table for that of a run before."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("setevsr")[0])
    folder.mkdir(parents=True, exist_ok=True)
    before = nodes["SeTeVSRMeasure"].fingerprint_inputs(figures=None)
    assert nodes["SeTeVSRMeasure"].fingerprint_inputs(figures=None) == before
    weights = folder / "alexnet_features.safetensors"
    weights.write_bytes(b"")
    os.utime(weights, ns=(1, 2**62))
    assert nodes["SeTeVSRMeasure"].fingerprint_inputs(figures=None) != before
    weights.unlink()


def full_size(pack: ModuleType, kind: str, name: str) -> Any:
    """A hosted network of Stable Diffusion's sizes without weights."""
    networks = part(pack, "setevsr_core.networks.denoiser"), part(pack, "setevsr_core.networks.temporal_vae")
    build, config = (
        (networks[0].Denoiser, networks[0].DenoiserConfig.sd21(layers=1))
        if kind == "denoiser" else (networks[1].TemporalVAE, networks[1].VAEConfig.sd21())
    )  # fmt: skip
    return part(pack, "nodes.hosting").ComponentHandle(kind, build(config, device="meta"), None, name)


def test_networks_that_do_not_belong_together_are_refused(nodes: dict[str, Any], pack: ModuleType) -> None:
    """A full-size denoiser with the preset's VAE, and Stable Diffusion's VAE with the preset's denoiser."""
    wrong, upscale = part(pack, "setevsr_core.errors").InputError, part(pack, "nodes.upscale")
    denoiser, vae = full_size(pack, "denoiser", "unet.ckpt"), full_size(pack, "vae", "vae.ckpt")
    inputs: dict[str, dict[str, Any]] = {
        "SeTeVSRUpscaleImages": {"images": clip(), "seed": 0},
        "SeTeVSREstimate": {"width": 32, "height": 32, "frames": 5},
    }
    for node_id, given in inputs.items():
        with pytest.raises(wrong, match="denoiser works in Stable Diffusion's latents and the VAE makes others"):
            nodes[node_id].execute(**given, preset="nano", scale=2.0, denoiser=denoiser)
        with pytest.raises(wrong, match="VAE makes Stable Diffusion's latents and the denoiser works in others"):
            nodes[node_id].execute(**given, preset="nano", scale=2.0, vae=vae)
    upscale.require_denoising(denoiser, vae, None, torch.zeros(1))


def test_the_presets_encoder_serves_its_own_denoiser(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    upscale, handle = part(pack, "nodes.upscale"), part(pack, "nodes.hosting").ComponentHandle
    vae, encoder = (handle(kind, None, None, "mine") for kind in ("vae", "semantic_encoder"))

    def denoiser(name: str, levels: tuple[int, ...] = (0, 1)) -> Any:
        return handle("denoiser", SimpleNamespace(config=SimpleNamespace(semantic_levels=levels)), None, name)

    own, with_lora, foreign = denoiser("mine"), denoiser("mine"), denoiser("foreign.safetensors")
    read: list[str] = []
    monkeypatch.setattr(upscale, "load_preset", lambda name, _: read.append(name) or (own, vae, encoder))

    def chosen(*connected: Any) -> Any:
        return upscale.choose_networks("mine", "auto", *connected)

    assert chosen(None, None, None) == (own, vae, encoder)
    assert chosen(with_lora, vae, None) == (with_lora, vae, encoder)
    assert chosen(foreign, None, None) == (foreign, vae, None)
    assert len(read) == 3
    assert chosen(foreign, vae, encoder) == (foreign, vae, encoder)
    assert chosen(foreign, vae, None) == (foreign, vae, None)
    without_seam = denoiser("foreign.safetensors", levels=())
    assert chosen(without_seam, vae, encoder) == (without_seam, vae, None)
    assert len(read) == 3  # it was not needed


def test_estimate_counts_every_network_in_its_own_type(
    nodes: dict[str, Any], handles: dict[str, Any], pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates, node = part(pack, "setevsr_core.estimate"), part(pack, "nodes.estimate")
    types = {"denoiser": torch.bfloat16, "vae": torch.float32, "semantic_encoder": torch.float16}
    monkeypatch.setattr(node, "choose_dtype", lambda kind, precision: types[kind])
    monkeypatch.setattr(node, "measured_rate", lambda device, dtype: torch.finfo(dtype).bits)
    asked: dict[str, Any] = {}
    original = estimates.estimate

    def remember(networks: Any, *sizes: Any, **more: Any) -> Any:
        asked.update(networks=networks, **more)
        return original(networks, *sizes, **more)

    monkeypatch.setattr(estimates, "estimate", remember)

    def execute(**connected: Any) -> float:
        common = {"preset": "nano", "width": 32, "height": 24, "frames": 3, "scale": 2.0, "steps": 1}
        return nodes["SeTeVSREstimate"].execute(**common, **connected).result[1] * 2**30

    in_half = execute()
    assert [asked["networks"][name].dtype for name in node.KINDS] == list(types.values())
    assert asked["rate"] == {"denoiser": 16, "vae": 32, "encoder": 16} and not asked["stored"]
    weights = estimates.weight_bytes(asked["networks"]["denoiser"])
    assert in_half - execute(precision="fp8") == pytest.approx(weights / 2, rel=1e-3)
    execute(denoiser=handles["denoiser"])
    assert asked["networks"]["denoiser"].dtype == torch.float32  # its own, whatever the widget says
    assert asked["stored"] == {"denoiser": estimates.weight_bytes(handles["denoiser"].module)}
    assert asked["networks"]["encoder"] is None  # the preset's serves the preset's denoiser


# ---- wrong inputs ---------------------------------------------------------------------------------------------------
@torch.inference_mode()
def test_mixed_up_inputs_are_refused_in_one_sentence(
    nodes: dict[str, Any], handles: dict[str, Any], pack: ModuleType
) -> None:
    wrong = part(pack, "setevsr_core.errors").InputError
    split = nodes["SeTeVSRSplitSegments"].execute
    segments, other = split(clip(), 2.0, 3, 1, "off").result[0], split(1 - clip(), 2.0, 3, 1, "off").result[0]
    larger = split(clip(), 3.0, 3, 1, "off").result[0]
    (latents,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
    semantics = nodes["SeTeVSREncodeSemantics"].execute(other, handles["encoder"]).result[0]
    decode, denoise = nodes["SeTeVSRTemporalDecode"].execute, nodes["SeTeVSRDenoise"].execute
    with pytest.raises(wrong, match="different videos .both 4 frames of 24x20, but not the same pictures"):
        decode(latents, other, handles["vae"])
    with pytest.raises(wrong, match="planned differently"):
        decode(latents, larger, handles["vae"])
    with pytest.raises(wrong, match="Semantics and latents come from different videos"):
        denoise(handles["denoiser"], latents, semantics=semantics, **SAMPLING)
    with pytest.raises(wrong, match="connect the output of 'Encode Latents'"):
        denoise(handles["denoiser"], {"samples": torch.zeros(4, 4, 8, 8)}, **SAMPLING)
    with pytest.raises(wrong, match="do not cut, repeat or resize"):
        decode({**latents, "samples": latents["samples"][:2]}, segments, handles["vae"])
    with pytest.raises(part(pack, "setevsr_core.errors").SettingsError, match="fusion is nan"):
        decode(latents, segments, handles["vae"], float("nan"))
    with pytest.raises(wrong, match="not decoded yet"):
        nodes["SeTeVSRStitchSegments"].execute(segments)
    with pytest.raises(wrong, match="no semantic encoder; connect 'Load SAM2 Encoder'"):
        nodes["SeTeVSREncodeSemantics"].execute(segments, None)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 8, 8, 3), "'images'.*no frames"),
        (torch.full((1, 8, 8, 3), float("nan")), "'images'.*frame 0 contains NaN"),
        (torch.zeros(1, 8, 8, 1), "'images'.*shape"),
    ],
)
def test_unusable_images_are_refused(pack: ModuleType, nodes: dict[str, Any], images: Any, message: str) -> None:
    with pytest.raises(part(pack, "setevsr_core.errors").InputError, match=message):
        nodes["SeTeVSRUpscaleImages"].execute(images, "nano", 4.0, seed=0)


def test_missing_weights_name_the_folder(pack: ModuleType, nodes: dict[str, Any]) -> None:
    folders, errors = part(pack, "nodes.folders"), part(pack, "setevsr_core.errors")
    assert folders.own_folder().name == "setevsr"
    with pytest.raises(errors.CheckpointError, match=r"semantic encoder; put it into .*setevsr"):
        nodes["SeTeVSRLoadSemanticEncoder"].execute(folders.NO_FILE)


def test_weights_are_found_and_a_wrong_one_is_named(pack: ModuleType, nodes: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folders, errors = part(pack, "nodes.folders"), part(pack, "setevsr_core.errors")
    folder = folders.own_folder()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"lora_up.weight": torch.zeros(1)}, folder / "wrong.safetensors")
    assert "wrong.safetensors" in folders.weight_files("denoiser")
    with pytest.raises(errors.CheckpointError, match="wrong.safetensors is a LoRA"):
        nodes["SeTeVSRLoadDenoiser"].execute("wrong.safetensors")


def test_loaders_list_what_other_programs_have_laid_down(pack: ModuleType, tmp_path: Path) -> None:
    """A checkpoint with a VAE in it, a model in diffusers' layout, and such a model's part in our own folder."""
    import folder_paths

    folders = part(pack, "nodes.folders")
    places = folder_paths.folder_names_and_paths
    own, checkpoint = folders.own_folder() / "sd21-unet", tmp_path / "checkpoints" / "v2-1_512-ema-pruned.safetensors"
    files = [tmp_path / "diffusers" / "sd21" / name / "diffusion_pytorch_model.fp16.safetensors" for name in
             ("unet", "vae", "text_encoder")] + [own / "diffusion_pytorch_model.safetensors", checkpoint]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    (own / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    for key in ("checkpoints", "diffusers"):
        places[key][0].append(str(tmp_path / key))
    try:
        found = {kind: set(folders.weight_files(kind)) for kind in ("denoiser", "vae")}
        names = {kind: f"sd21/{name}/{files[0].name}" for kind, name in (("denoiser", "unet"), ("vae", "vae"))}
        assert Path(folders.find_weights("denoiser", names["denoiser"])) == files[0]
    finally:
        for key in ("checkpoints", "diffusers"):
            places[key][0].remove(str(tmp_path / key))
    for kind, name in names.items():
        listed = {file for file in found[kind] if file.startswith("sd21/")}
        assert listed == {name} and {checkpoint.name, f"sd21-unet/{files[3].name}"} <= found[kind]
    assert "sd21-unet" not in folders.preset_names("nano")


def test_a_folder_that_another_pack_registered_keeps_its_endings(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import folder_paths

    for endings, wanted in (([".onnx"], {".onnx", ".safetensors", ".pt"}), (set(), set())):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "sam2", ([str(tmp_path)], endings))
        part(pack, "nodes.folders").register()
        assert wanted <= set(folder_paths.folder_names_and_paths["sam2"][1])
        assert bool(folder_paths.folder_names_and_paths["sam2"][1]) == bool(wanted)


@torch.inference_mode()
def test_own_preset_loads_by_name_and_is_read_again_when_it_changes(
    pack: ModuleType, nodes: dict[str, Any], handles: dict[str, Any]
) -> None:
    checkpoints, folders = part(pack, "setevsr_core.checkpoints"), part(pack, "nodes.folders")
    folder = folders.own_folder() / "mine"
    folder.mkdir(parents=True)
    checkpoints.save_native(handles["denoiser"].module, folder / "denoiser.safetensors")
    checkpoints.save_native(handles["vae"].module, folder / "vae.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": "mine", "defaults": {"steps": 7}}), "utf-8")
    assert "mine" in folders.preset_names("nano")
    assert "mine/denoiser.safetensors" not in folders.weight_files("denoiser")
    denoiser, vae, encoder = nodes["SeTeVSRLoadPreset"].execute("mine").result
    assert (denoiser.defaults, vae.kind, encoder) == ({"steps": 7}, "vae", None)
    assert nodes["SeTeVSRLoadPreset"].execute("mine").result[0] is denoiser
    os.utime(folder / "config.json", ns=(1, 2**62))
    assert nodes["SeTeVSRLoadPreset"].execute("mine").result[0] is not denoiser


def test_a_result_that_does_not_fit_points_to_the_video_node(pack: ModuleType) -> None:
    checks, errors = part(pack, "nodes.checks"), part(pack, "setevsr_core.errors")
    assert checks.result_bytes(10, (100, 200), 3) == 10 * 100 * 200 * 3 * 4
    checks.require_memory(10, (100, 200), 3, available=2_700_000)
    with pytest.raises(errors.InputError, match="10 frames of 200x100.*use 'Upscale Video'"):
        checks.require_memory(10, (100, 200), 3, available=2_600_000)


@torch.inference_mode()
def test_stages_say_before_the_work_that_the_result_will_not_fit(
    pack: ModuleType, nodes: dict[str, Any], handles: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four frames in two segments of three: six decoded frames, and the four of the result with alpha, at once."""
    import psutil

    def free(numbers: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * numbers / 0.9))

    wrong, split = part(pack, "setevsr_core.errors").InputError, nodes["SeTeVSRSplitSegments"].execute
    pixels, images, arguments = 40 * 48, clip(channels=4), (2.0, 3, 1, "off")
    segments = split(images, *arguments).result[0]
    (latents,) = nodes["SeTeVSREncodeLatents"].execute(segments, handles["vae"]).result
    free(pixels * (4 * 4 + 6 * 3) + 1)
    split(images, *arguments)
    free(pixels * (4 * 4 + 6 * 3) - 1)
    said = r"4 frames of 48x40\) and its 6 decoded frames need .*use 'Upscale Video'"
    with pytest.raises(wrong, match=said):
        split(images, *arguments)
    with pytest.raises(wrong, match=said):
        nodes["SeTeVSRTemporalDecode"].execute(latents, segments, handles["vae"])


# ---- memory and cancel ----------------------------------------------------------------------------------------------
def test_out_of_memory_halves_the_tile_and_cancel_passes(pack: ModuleType) -> None:
    import comfy.model_management as management

    memory, wrong = part(pack, "setevsr_core.memory"), part(pack, "setevsr_core.errors").SettingsError
    tried: list[int] = []

    def tiles(tile: int, whole: int) -> Any:
        return memory.ShrinkingTiles(tile, whole, 16, "cpu", "the test", "lower 'it'")

    def needs_small(tile: int) -> str:
        tried.append(tile)
        if tile == 0 or tile > 24:
            raise MemoryError
        return "done"

    shrinking = tiles(0, 144)
    assert shrinking.run(needs_small) == shrinking.run(needs_small) == "done"
    assert tried == [0, 72, 32, 16, 16]

    def always(error: type[BaseException]) -> Any:
        def run(tile: int) -> None:
            tried.append(tile)
            raise error

        return run

    cancel = management.InterruptProcessingException
    for error, whole, tries, told in (
        (MemoryError, 64, 3, wrong), (MemoryError, 8, 1, wrong), (cancel, 64, 1, cancel),
        (ValueError, 64, 1, ValueError),
    ):  # fmt: skip
        tried.clear()
        with pytest.raises(told):
            tiles(64, whole).run(always(error))
        assert len(tried) == tries


def fresh_handles(pack: ModuleType, handles: dict[str, Any]) -> dict[str, Any]:
    """The same weights in networks of their own, hosted under the memory mode of the moment."""
    hosting = part(pack, "nodes.hosting")
    copies = {}
    for name, handle in handles.items():
        kind, module = type(handle.module), handle.module
        streams = handle.kind != hosting.ENCODER
        copy = kind(module.config, **({"ops": part(pack, "nodes.compat").operations()} if streams else {}))
        copy.load_state_dict({k: v for k, v in module.state_dict().items() if k != "empty_text"})
        if name == "denoiser":
            copy.empty_text = module.empty_text
        copies[name] = hosting.host_component(handle.kind, copy, "fresh", torch.float32, handle.defaults)
    return copies


@pytest.mark.parametrize("mode", ["LOW_VRAM", "NORMAL_VRAM", "NO_VRAM"])
@torch.inference_mode()
def test_low_memory_modes_give_the_same_bits(
    mode: str, pack: ModuleType, nodes: dict[str, Any], handles: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's own loading decides what to stream, as `--lowvram`, a full card and `--novram` make it decide.

    The options exclude `--cpu`, so the processor is passed off as a card with next to no free memory. Copies between
    two devices are the one thing that this cannot show.
    """
    import comfy.model_management as management

    images = clip()
    settings = {**SAMPLING, "length": 3, "overlap": 1, "scene_cuts": "off"}
    expected = nodes["SeTeVSRUpscaleImages"].execute(images, "none needed", 2.0, **settings, **handles).result[0]
    management.unload_all_models()
    monkeypatch.setattr(management, "vram_state", management.VRAMState[mode])
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    free = management.minimum_inference_memory() + 20_000
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: free)
    fresh = fresh_handles(pack, handles)
    try:
        result = nodes["SeTeVSRUpscaleImages"].execute(images, "none needed", 2.0, **settings, **fresh).result[0]
        for name in ("denoiser", "vae"):
            patcher = fresh[name].patcher
            assert patcher.model.model_lowvram, name
            assert patcher.model.model_loaded_weight_memory < patcher.model_size() / 2, name
        assert torch.equal(result, expected)
    finally:
        management.unload_all_models()


@torch.inference_mode()
def test_sam2_stays_on_the_processor_without_memory(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--novram` never loads a network whole, and SAM 2's own layers cannot be streamed."""
    import comfy.model_management as management

    card = torch.device("meta")
    monkeypatch.setattr(management, "get_torch_device", lambda *_: card)
    devices, hosting = part(pack, "nodes.hosting").devices, part(pack, "nodes.hosting")
    for mode, place in (("LOW_VRAM", "meta"), ("NO_VRAM", "cpu")):
        monkeypatch.setattr(management, "vram_state", management.VRAMState[mode])
        assert devices(hosting.ENCODER)[0].type == place
        assert devices(hosting.DENOISER)[0].type == devices(hosting.VAE)[0].type == "meta"


@torch.inference_mode()
def test_cancel_stops_a_run(nodes: dict[str, Any], handles: dict[str, Any]) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        nodes["SeTeVSRUpscaleImages"].execute(clip(), "none needed", 2.0, **SAMPLING, **handles)


@torch.inference_mode()
def test_cancel_stops_what_comes_before_the_networks(
    nodes: dict[str, Any], pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for cuts and the recognition of a video in memory look at every frame, which takes long."""
    import comfy.model_management as management

    seen: list[float] = []
    progress = part(pack, "nodes.progress").NodeProgress
    report = progress.report
    monkeypatch.setattr(progress, "report", lambda self, done, *more: (seen.append(done), report(self, done, *more)))
    for steady in (0, 1):
        nodes["SeTeVSRSplitSegments"].execute(clip(), 2.0, steady=steady)
        assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0) and len(seen) == 4 * (1 + steady)
        seen.clear()
    works = (
        lambda: nodes["SeTeVSRSplitSegments"].execute(clip(), 2.0, steady=0),
        lambda: part(pack, "nodes.media").identity_of(clip(), None, Fraction(24)),
    )
    for work in works:
        management.interrupt_current_processing(True)
        with pytest.raises(management.InterruptProcessingException):
            work()


def test_preset_decides_what_is_left_open(pack: ModuleType) -> None:
    choices, widgets = part(pack, "nodes.choices"), part(pack, "nodes.widgets")
    resolve_settings = part(pack, "setevsr_core.settings").resolve_settings
    open_choices = choices.sampling_choices(steps=0, sampler=widgets.PRESETS_OWN, strength=0.0)
    settings = resolve_settings(open_choices, {"steps": 9, "sampler": "ddim", "strength": 0.5})
    assert (settings.steps, settings.sampler, settings.strength) == (9, "ddim", 0.5)
    assert choices.sampling_choices(steps=20, sampler=widgets.DECODER_ONLY, strength=1.0)["steps"] == 0


# ---- pictures -------------------------------------------------------------------------------------------------------
def test_compare_puts_pictures_beside_each_other(nodes: dict[str, Any]) -> None:
    small, large = torch.zeros(3, 10, 20, 3), torch.ones(1, 40, 80, 4)
    (image,) = nodes["SeTeVSRCompare"].execute(small, large, "a, b", zoom=2.0).result
    label, crop, gap = 16, 20, 4
    assert image.shape == (3, label + 40 + gap + crop, 80 + gap + 80, 3)
    assert image[:, label : label + 40, :80].max() == 0
    assert image[:, label : label + 40, 84:].min() == 1
    (single,) = nodes["SeTeVSRCompare"].execute(small, large, frame=2, zoom=0.0, direction="column").result
    assert single.shape == (1, 2 * (label + 40) + gap, 80, 3)


def test_a_compared_video_is_cancelled_and_must_fit(
    pack: ModuleType, nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frame by frame: each is that of a comparison by itself, and nothing but the result grows with their number."""
    import comfy.model_management as management
    import psutil

    video, still, compare = clip(6, 40, 60), clip(1, 20, 30, 4), nodes["SeTeVSRCompare"].execute
    (image,) = compare(video, still, third=1 - video).result
    for index in (0, 5):
        assert torch.equal(image[index : index + 1], compare(video, still, third=1 - video, frame=index).result[0])
    pictures, count = part(pack, "nodes.pictures"), part(pack, "setevsr_core.workload").count
    long = video.repeat(20, 1, 1, 1)
    peak = count(lambda: pictures.compare([long], ["a"])).peak_bytes
    assert peak < 1.1 * len(long) * pictures.compare([video[:1]], ["a"]).nbytes
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=image.nbytes))
    with pytest.raises(part(pack, "setevsr_core.errors").InputError, match="needs .* show one frame"):
        compare(video, still, third=1 - video)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        compare(video, still)


@torch.inference_mode()
def test_compare_reads_videos_no_further_than_it_must(
    pack: ModuleType, nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    from comfy_api.latest import InputImpl, Types

    from .video_helpers import make_clip

    reader, compare = part(pack, "setevsr_core.video.reading").VideoReader, nodes["SeTeVSRCompare"].execute
    errors, path = part(pack, "setevsr_core.errors"), make_clip(tmp_path / "in.mp4", count=9, size=(16, 24))
    video, frames, still = InputImpl.VideoFromFile(str(path)), torch.stack(list(reader(path))), clip(1, 16, 24)
    made = InputImpl.VideoFromComponents(Types.VideoComponents(images=1 - frames, frame_rate=Fraction(24)))
    (image,) = compare(video, made, third=still).result
    assert torch.equal(image, compare(frames, 1 - frames, third=still).result[0])
    media = part(pack, "nodes.media")
    open_video = media.reader_of

    def understated(video: Any) -> Any:
        found = open_video(video)
        found.expected_frames = 2
        return found

    with monkeypatch.context() as patched:
        patched.setattr(media, "reader_of", understated)
        assert torch.equal(compare(video, made, third=still).result[0], image)
    read: list[int] = []
    decode = reader._frames
    monkeypatch.setattr(reader, "_frames", lambda self: (read.append(1) or frame for frame in decode(self)))
    assert torch.equal(compare(video, made, third=still, frame=4).result[0], image[4:5])
    assert len(read) == 5
    with pytest.raises(errors.InputError, match="frame 9 does not exist: 'first' has 9 frames"):
        compare(video, still, frame=9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=frames.nbytes))
    with pytest.raises(errors.InputError, match="needs .* show one frame"):
        compare(video, still)


def test_compare_refuses_unequal_batches(pack: ModuleType, nodes: dict[str, Any]) -> None:
    with pytest.raises(part(pack, "setevsr_core.errors").InputError, match="'2' has 2 frames, another has 3"):
        nodes["SeTeVSRCompare"].execute(torch.zeros(3, 8, 8, 3), torch.zeros(2, 8, 8, 3))
    with pytest.raises(part(pack, "setevsr_core.errors").InputError, match="frame 5 does not exist: 'first' has 3"):
        nodes["SeTeVSRCompare"].execute(torch.zeros(3, 8, 8, 3), torch.zeros(3, 8, 8, 3), frame=5)


def test_like_meanings_get_like_colours(pack: ModuleType) -> None:
    embeddings = torch.zeros(2, 8, 2, 2)
    embeddings[:, 0, 0], embeddings[:, 1, 1] = 1.0, 1.0
    picture = part(pack, "nodes.pictures").principal_colours(embeddings, (4, 6))
    assert picture.shape == (2, 4, 6, 3)
    assert torch.equal(picture[0], picture[1])
    assert (picture[0, 0] - picture[0, 0, 0]).abs().max() < 1e-5
    assert (picture[0, 0, 0] - picture[0, 3, 0]).abs().max() > 0.9


def test_the_picture_of_meanings_needs_no_copy_of_them(pack: ModuleType) -> None:
    """Frame by frame it is the picture of all tokens at once."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(64, 32, 16, 16, generator=generator) * torch.linspace(3, 1, 32)[:, None, None]
    pictures, count = part(pack, "nodes.pictures"), part(pack, "setevsr_core.workload").count
    tokens = embeddings.double().movedim(1, -1).reshape(-1, 32)
    tokens = tokens - tokens.mean(0)
    axes = torch.linalg.eigh(tokens.T @ tokens)[1].flip(1)[:, :3]
    strongest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    colours = tokens @ (axes * strongest.sign())
    low, high = torch.quantile(colours, torch.tensor([0.02, 0.98]).double(), dim=0)
    expected = ((colours - low) / (high - low)).clamp(0, 1).reshape(64, 16, 16, 3)
    picture = pictures.principal_colours(embeddings, (16, 16))
    torch.testing.assert_close(picture.double(), expected, atol=1e-3, rtol=0)
    assert count(lambda: pictures.principal_colours(embeddings, (16, 16))).peak_bytes < embeddings.nbytes


# ---- judging --------------------------------------------------------------------------------------------------------
def test_measure_gives_known_figures(pack: ModuleType, nodes: dict[str, Any]) -> None:
    truth = clip(frames=3, height=24, width=32)[..., :3].clamp(0.2, 0.8)
    output = nodes["SeTeVSRMeasure"].execute(truth + 0.1, truth, "psnr, ssim, ssim_y, sharpness, lpips")
    text, psnr, ssim, lpips, warping = output.result
    assert psnr == pytest.approx(20.0, abs=1e-3) and 0 < ssim < 1
    assert lpips != lpips and warping != warping  # not a number: the file is not there, and it was not asked for
    assert "| PSNR ↑ | 20.00 |" in text and "| LPIPS | not measured: no file alexnet_features" in text
    assert f"in the folder '{part(pack, 'nodes.folders').own_folder()}' |" in text
    assert output.ui.as_dict() == {"text": (text,)}


def test_measure_offers_all_figures_and_loses_none_where_one_fails(
    pack: ModuleType, nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks at the whole video gets it in one piece, and any that fails says why."""
    measures, errors = part(pack, "setevsr_core.evaluation.measures"), part(pack, "setevsr_core.errors")
    names = part(pack, "nodes.measuring").FIGURES
    assert set(names) == set(measures.MEASURES)
    seen: list[int] = []

    def vmaf(result: torch.Tensor, truth: torch.Tensor) -> float:
        seen.append(len(result))
        return 50.0

    def broken(result: torch.Tensor, truth: torch.Tensor) -> float:
        raise errors.VideoError("DOVER's evaluate_one_video.py failed")

    for name, figure in (("vmaf", vmaf), ("dover", broken)):
        measure = dataclasses.replace(measures.MEASURES[name], build=lambda _, figure=figure: figure)
        monkeypatch.setitem(measures.MEASURES, name, measure)
    for package in ("brisque", "pyiqa", "DISTS_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("vgg16_features.safetensors", "musiq_koniq10k.pth", "RN50.pt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(part(pack, "nodes.folders"), "own_folders", lambda: [tmp_path])
    truth = clip(frames=3, height=24, width=32)[..., :3].clamp(0.2, 0.8)
    text, psnr, *_ = nodes["SeTeVSRMeasure"].execute(truth + 0.1, truth, ", ".join(names)).result
    assert psnr == pytest.approx(20.0, abs=1e-3) and seen == [3] and "| VMAF ↑ | 50.00 |" in text
    assert "| DOVER | not measured: not everywhere: DOVER's evaluate_one_video.py failed |" in text
    for title, reason in (("DISTS", "DISTS needs the Python package"), ("BRISQUE", "BRISQUE needs the Python package"),
                          ("MUSIQ", "MUSIQ needs the Python package"), ("CLIP-IQA", "CLIPIQA needs the Python package"),
                          ("LPIPS", "no file alexnet_features"), ("NIQE", "no file niqe_pris_params.npz")):
        assert f"| {title} | not measured: {reason}" in text
    assert len(text.splitlines()) == 2 + len(names)


def test_measure_without_an_original(nodes: dict[str, Any]) -> None:
    text, psnr, _, _, warping = nodes["SeTeVSRMeasure"].execute(torch.full((2, 24, 32, 3), 0.5)).result
    assert psnr != psnr and warping == pytest.approx(0.0, abs=1e-4)
    assert text.startswith("No original was given") and "PSNR" not in text


def test_measure_says_so_when_the_result_is_shifted(nodes: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 24, 24, generator=generator)
    truth = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic")
    truth = truth.clamp(0, 1).movedim(1, -1)
    execute = nodes["SeTeVSRMeasure"].execute
    said = execute(truth.roll(2, 2), truth, "psnr").result[0]
    assert re.search(r"shifted by \+(1\.9|2\.0)\d px to the right", said)
    assert "shifted" not in execute(truth, truth, "psnr").result[0]


def test_measure_refuses_what_cannot_be_compared(pack: ModuleType, nodes: dict[str, Any]) -> None:
    errors = part(pack, "setevsr_core.errors")
    with pytest.raises(errors.InputError, match="'result' is 2 frames of 16x16, 'truth' 2 of 8x8"):
        nodes["SeTeVSRMeasure"].execute(torch.zeros(2, 16, 16, 3), torch.zeros(2, 8, 8, 3))
    with pytest.raises(errors.SettingsError, match="'beauty' is none of psnr"):
        nodes["SeTeVSRMeasure"].execute(torch.zeros(2, 16, 16, 3), figures="psnr, beauty")


def test_temporal_profile_shows_one_line_over_time(nodes: dict[str, Any]) -> None:
    video = torch.zeros(3, 10, 40, 3)
    for i in range(3):
        video[i, 5, 10 * i] = 1.0
    (image,) = nodes["SeTeVSRTemporalProfile"].execute(video, "moving", thickness=2, position=0.55).result
    label = 20
    assert image.shape == (1, label + 6, 40, 3)
    assert [int(line.argmax()) for line in image[0, label:, :, 0]] == [0, 0, 10, 10, 20, 20]
    (both,) = nodes["SeTeVSRTemporalProfile"].execute(video, "a, a", second=video, direction="column").result
    assert both.shape[0] == 1 and both.shape[1] == label + 10


def test_what_only_a_link_can_bring_is_refused(pack: ModuleType, nodes: dict[str, Any]) -> None:
    """ComfyUI checks neither the range nor the choice of a value that comes over a link, and lets NaN pass."""
    wrong, images = part(pack, "setevsr_core.errors").SettingsError, clip(3)
    with pytest.raises(wrong, match="scene_cuts must be one of auto, off, got '1, 2'"):
        nodes["SeTeVSRSplitSegments"].execute(images, 2.0, 3, 1, "1, 2")
    with pytest.raises(wrong, match="scene_cuts"):
        part(pack, "nodes.choices").cut_choice("Auto")
    with pytest.raises(wrong, match="thickness is -3"):
        nodes["SeTeVSRTemporalProfile"].execute(images, thickness=-3)
    with pytest.raises(wrong, match="centre"):
        nodes["SeTeVSRCompare"].execute(images, images, centre_x=float("nan"))


def test_temporal_profile_refuses_pictures_and_unequal_videos(pack: ModuleType, nodes: dict[str, Any]) -> None:
    errors = part(pack, "setevsr_core.errors")
    with pytest.raises(errors.InputError, match="'first' is a single picture"):
        nodes["SeTeVSRTemporalProfile"].execute(torch.zeros(1, 8, 8, 3))
    with pytest.raises(errors.InputError, match="same number of frames"):
        nodes["SeTeVSRTemporalProfile"].execute(torch.zeros(3, 8, 8, 3), second=torch.zeros(2, 8, 8, 3))
